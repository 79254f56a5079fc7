"""What the registry says of models and versions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modelkeep_platform.core.decisions import Decision
from modelkeep_platform.core.ids import ObjectId
from modelkeep_platform.core.refs import ResourceRef
from modelkeep_platform.models.graph.format import Graph, Tensor
from modelkeep_platform.uploads.rows import Upload


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model: a name in a tenant, with versions and aliases."""

    id: ObjectId
    name: str
    description: str
    created_at: int
    aliases: Mapping[str, int]
    latest_version: int | None
    owner: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """One immutable version; `state` is ``pending`` or ``ready``."""

    model_id: ObjectId
    name: str
    version: int
    state: str
    graph_sha256: str
    weights_sha256: str
    weights_bytes: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    provenance: Mapping[str, Any]
    created_at: int
    created_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NewVersion:
    """A version that waits for its weights."""

    model_id: ObjectId
    version: int
    upload: Upload


@dataclass(frozen=True, slots=True, kw_only=True)
class ServableVersion:
    """A version that the caller may use now, with what serving needs to know of it."""

    ref: ResourceRef
    name: str
    version: int
    alias: str
    graph: Graph
    weights_bytes: int
    decision: Decision
