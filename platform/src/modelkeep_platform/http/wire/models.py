"""The JSON of uploads and models."""

from typing import Any

from modelkeep_platform.http.wire.fields import Answer, Body, Count, Digest, Number, Text


class Upload(Answer):
    """An upload under way."""

    id: str
    kind: str
    object_id: str
    version: int
    size_bytes: int
    sha256: str
    part_bytes: int
    parts: int
    received: list[int]
    state: str
    expires_at: int


class Part(Answer):
    """One part that arrived."""

    number: int
    received: int


class NewVersion(Body):
    """Describes a model version to be uploaded."""

    graph: dict[str, Any]
    weights_bytes: Count
    weights_sha256: Digest
    description: Text = ""


class VersionCreated(Answer):
    """The version's number and where its weights go."""

    model_id: str
    version: int
    upload: Upload


class TensorSpec(Answer):
    """Name, dtype and shape of a tensor; -1 varies."""

    name: str
    dtype: str
    shape: list[int]


class Model(Answer):
    """A model."""

    id: str
    name: str
    description: str
    created_at: int
    aliases: dict[str, int]
    latest_version: int | None
    owner: str


class ModelVersion(Answer):
    """One immutable version."""

    model_id: str
    name: str
    version: int
    state: str
    graph_sha256: str
    weights_sha256: str
    weights_bytes: int
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    provenance: dict[str, Any]
    created_at: int
    created_by: str


class AliasTarget(Body):
    """Points an alias at a version."""

    version: Number
