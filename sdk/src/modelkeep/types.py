"""What the server's answers hold, as frozen values. Times are seconds since the Unix epoch, UTC.

Fields a newer server adds are ignored; a missing field or one of another type is a `ProtocolError`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from modelkeep.errors import ConfigurationError

_EXISTS: Final = "`{}` exists; remove it, or say that it may be replaced (`overwrite=True`, `--force`)"
_FILE_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantName:
    """A tenant, briefly."""

    id: str
    slug: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """A tenant, as its operator sees it; `state` is ``active`` or ``suspended``."""

    id: str
    slug: str
    name: str
    state: str
    created_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One limit of a tenant.

    Attributes:
        value: what holds.
        default: what holds for every tenant for which nothing was set.
        own: whether the operator set it for this one.
        used: how much of it is used; None where no count is kept.
    """

    value: int
    default: int
    own: bool
    used: int | None

    @property
    def exceeded(self) -> bool:
        """Return whether more is used than may be: nothing is taken away, and nothing more is let in."""
        return self.used is not None and self.used > self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantDetails:
    """A tenant with its limits, by name."""

    id: str
    slug: str
    name: str
    state: str
    created_at: int
    limits: dict[str, Limit]


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A one-time link; the token is shown in this answer alone."""

    token: str = field(repr=False)
    url: str = field(repr=False)
    expires_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantCreated:
    """A new tenant and the link by which its administrator enrols."""

    tenant: Tenant
    enrolment: Link


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled:
    """Who one has become by an enrolment link or an invitation."""

    tenant: TenantName
    principal: str
    name: str
    roles: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class WhoAmI:
    """The caller, as the platform sees it; `kind` is ``tenant`` or ``operator``."""

    kind: str
    tenant: TenantName | None
    principal: str
    name: str
    roles: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A person of the tenant."""

    id: str
    name: str
    roles: list[str]
    state: str
    created_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberInvited:
    """The invited member and the link to pass on."""

    member: Member
    invitation: Link


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceAccount:
    """An application's account."""

    id: str
    name: str
    roles: list[str]
    client_id: str
    created_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceAccountSecret:
    """An account with its secret, which is shown in this answer alone."""

    service_account: ServiceAccount
    client_secret: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """An upload under way; `received` lists the parts that arrived.

    Attributes:
        object_id: of the model or dataset that it is for.
        version: the number that its model's version will have.
    """

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


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """Name, dtype and shape of a tensor; -1 varies."""

    name: str
    dtype: str
    shape: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model: a name with versions and aliases."""

    id: str
    name: str
    description: str
    created_at: int
    aliases: dict[str, int]
    latest_version: int | None
    owner: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """A model version as it came down, its digests checked; `modelkeep.torch.load` makes a module of it.

    Attributes:
        name: the model's name.
        version: its number.
        graph: the description.
        weights: safetensors.
    """

    name: str
    version: int
    graph: dict[str, Any] = field(repr=False)
    weights: bytes = field(repr=False)
    graph_sha256: str
    weights_sha256: str

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> tuple[Path, Path]:
        """Write ``<name>-<version>.graph.json`` and ``.safetensors`` into `folder`, readable by the owner only.

        Returns:
            The two paths, graph first.

        Raises:
            ConfigurationError: the name would leave the folder, or a file exists and `overwrite` is false.
        """
        # The name came from the server: it must be a plain file name before it is one.
        if not _FILE_NAME.match(self.name) or ".." in self.name:
            raise ConfigurationError(f"`{self.name}` is not a name that files may have; pass your own paths")
        stem = f"{self.name}-{self.version}"
        paths = Path(folder) / f"{stem}.graph.json", Path(folder) / f"{stem}.safetensors"
        contents = json.dumps(self.graph, indent=2, sort_keys=True).encode(), self.weights
        # All or nothing: a graph without its weights helps nobody.
        for path in paths:
            if not overwrite and os.path.lexists(path):
                raise ConfigurationError(_EXISTS.format(path))
        for path, content in zip(paths, contents, strict=True):
            _write(path, content, overwrite=overwrite)
        return paths


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A dataset's declaration; of a private one the number of rows is never shown, only the declared one."""

    id: str
    name: str
    description: str
    format: str
    schema: dict[str, Any]
    privacy: dict[str, Any]
    state: str
    created_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What one job spent, or has reserved."""

    job_id: str
    noise_multiplier: float
    sample_rate: float
    steps: int
    state: str
    at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A dataset's privacy budget: the limits, what was spent, what jobs under way hold back."""

    dataset: str
    epsilon: float
    delta: float
    epsilon_spent: float
    epsilon_reserved: float
    charges: list[Charge]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a job would cost and whether it fits; nothing is spent by asking."""

    private: bool
    steps: int
    sample_rate: float
    noise_multiplier: float | None
    clip_norm: float | None
    epsilon: float | None
    delta: float | None
    n_public: int | None
    fits: bool
    largest_epsilon: float | None
    epsilon_spent_before: float | None
    epsilon_spent_after: float | None
    accountant: str | None
    rdp_epsilon: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a job is; `epsilon_charged` is None for a job without privacy."""

    step: int
    steps: int
    epsilon_charged: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobError:
    """Why a job failed, without data."""

    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """The version a job made."""

    model: str
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A training run; `state` is ``queued``, ``running``, ``succeeded``, ``failed`` or ``cancelled``."""

    id: str
    name: str
    state: str
    dataset: str
    into: str
    created_at: int
    started_at: int | None
    finished_at: int | None
    progress: Progress
    error: JobError | None
    result: JobResult | None
    created_by: str

    @property
    def done(self) -> bool:
        """Return whether the job has ended."""
        return self.state not in {"queued", "running"}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLine:
    """One line of a job's log."""

    at: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What another tenant may do with one object, until when."""

    id: str
    kind: str
    name: str
    object_id: str
    grantee: str
    actions: list[str]
    created_at: int
    expires_at: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyVersion:
    """One immutable policy version; `text` is there when one version was asked for."""

    version: int
    state: str
    created_at: int
    created_by: str
    sha256: str
    text: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyChecked:
    """A policy that would be accepted."""

    valid: bool
    warnings: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """An entry of the tenant's log; `entry` and `salt` are base64 and give the leaf.

    `index` is None until the entry is in the tree, a moment after it was written.
    """

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
    salt: str = field(repr=False)
    entry: str = field(repr=False)
    leaf_hash: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedLog:
    """What `audit.verify` found true.

    Attributes:
        origin: the log's name.
        size: how many entries the checkpoint commits to.
        root: the tree's root hash, hex.
        extends: the size of the checkpoint kept before, which this one extends; None at the first look.
        entries_checked: how many own entries were proven to be in it.
    """

    origin: str
    size: int
    root: str
    extends: int | None
    entries_checked: int


def _write(path: Path, content: bytes, *, overwrite: bool) -> None:
    flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if overwrite else os.O_EXCL) | getattr(os, "O_NOFOLLOW", 0)
    try:
        handle = os.open(path, flags, 0o600)
        with os.fdopen(handle, "wb") as file:
            if hasattr(os, "fchmod"):
                os.fchmod(handle, 0o600)  # a file that is replaced may have been open to others
            file.write(content)
    except FileExistsError as exc:
        raise ConfigurationError(_EXISTS.format(path)) from exc
    except OSError as exc:
        raise ConfigurationError(f"`{path}` cannot be written: {exc.strerror}") from exc


JobSpec = Mapping[str, Any]
"""A job as JSON: dataset, into, model, loss, optimizer, steps, sample_rate, privacy; see docs/reference/jobs.md."""
