"""The JSON of grants, policies and the log."""

from typing import Any

from modelkeep_platform.http.wire.fields import Answer, Body, Count, Word, Words


class NewGrant(Body):
    """Gives another tenant actions on one object."""

    kind: Word
    name: Word
    grantee: Word
    actions: Words
    expires_at: Count | None = None


class Grant(Answer):
    """What another tenant may do, until when."""

    id: str
    kind: str
    name: str
    object_id: str
    grantee: str
    actions: list[str]
    created_at: int
    expires_at: int | None


class PolicyText(Body):
    """A policy in Cedar."""

    text: str


class PolicyVersion(Answer):
    """One immutable policy version."""

    version: int
    state: str
    created_at: int
    created_by: str
    sha256: str


class PolicyVersionText(PolicyVersion):
    """A policy version with its text."""

    text: str


class PolicyChecked(Answer):
    """A policy that would be accepted; warnings may be empty."""

    valid: bool
    warnings: list[str]


class AuditEntry(Answer):
    """An entry of the tenant's log; `entry` and `salt` are base64 and give the leaf."""

    id: str
    index: int | None
    time: int
    action: str
    outcome: str
    actor_tenant: str | None
    actor_kind: str | None
    principal: str | None
    name: str | None
    kind: str | None
    object_id: str | None
    request_id: str | None
    policies: list[str]
    facts: dict[str, Any]
    salt: str
    entry: str
    leaf_hash: str


class InclusionProof(Answer):
    """That one leaf is in the tree of a checkpoint; hashes are base64."""

    index: int
    size: int
    leaf_hash: str
    hashes: list[str]
    checkpoint: str


class ConsistencyProof(Answer):
    """That a newer tree extends an older one; hashes are base64."""

    old: int
    new: int
    hashes: list[str]
    checkpoint: str


class LogKey(Answer):
    """The key under which checkpoints verify."""

    name: str
    algorithm: str
    public_key: str
    key_hash: str
