"""The JSON of `/v1`: what bodies may hold and what answers hold.

These types are the API; the OpenAPI document is made from them. Services return values of their own, whose
attributes of the same names are copied here, so a field that is not named here cannot leak. Times are seconds
since the Unix epoch, UTC; ids are opaque.
"""

from typing import Annotated, Any, Generic, TypeAlias, TypeVar

import msgspec

Item = TypeVar("Item")

# What bodies may hold at most. Services check the rest (and say it better): these bounds keep from the database what no
# service could mean, and stand in the OpenAPI document.
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=(1 << 53) - 1)]
Change: TypeAlias = Count | msgspec.UnsetType | None
Number: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=999_999_999)]
Word: TypeAlias = Annotated[str, msgspec.Meta(max_length=256)]
Digest: TypeAlias = Annotated[str, msgspec.Meta(max_length=128)]
Text: TypeAlias = Annotated[str, msgspec.Meta(max_length=2000)]
Secret: TypeAlias = Annotated[str, msgspec.Meta(max_length=1024)]
Words: TypeAlias = Annotated[list[Annotated[str, msgspec.Meta(max_length=64)]], msgspec.Meta(max_length=64)]


class Body(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A request body; unknown fields are refused."""


class Answer(msgspec.Struct, kw_only=True):
    """An answer."""


class ListOf(Answer, Generic[Item]):
    """One page of a list; `next_cursor` is null on the last."""

    items: list[Item]
    next_cursor: str | None


# --- people and tenants ---------------------------------------------------------------------------


class TenantName(Answer):
    """A tenant, briefly."""

    id: str
    slug: str
    name: str


class Tenant(TenantName):
    """A tenant, as its operator sees it."""

    state: str
    created_at: int


class Link(Answer):
    """A one-time link; the token is shown in this answer alone."""

    token: str
    url: str
    expires_at: int


class TenantCreated(Answer):
    """A new tenant and the link by which its administrator enrols."""

    tenant: Tenant
    enrolment: Link


class Limit(Answer):
    """One limit of a tenant: what holds, what the settings say for all, whether it was set for this one, its use.

    `used` is null where no count is kept: requests, for which every answer says what is left.
    """

    value: int
    default: int
    own: bool
    used: int | None


class TenantDetails(Tenant):
    """A tenant with its limits, by name."""

    limits: dict[str, Limit]


class LimitChanges(Body):
    """Sets limits of one tenant: a number sets one, null takes it back, what is not named stays as it is."""

    requests_per_minute: Change = msgspec.UNSET
    principal_requests_per_minute: Change = msgspec.UNSET
    burst_seconds: Change = msgspec.UNSET
    concurrent_requests: Change = msgspec.UNSET
    principal_concurrent_requests: Change = msgspec.UNSET
    storage_mib: Change = msgspec.UNSET
    open_uploads: Change = msgspec.UNSET
    active_jobs: Change = msgspec.UNSET
    running_jobs: Change = msgspec.UNSET
    serving_workers: Change = msgspec.UNSET
    members: Change = msgspec.UNSET
    service_accounts: Change = msgspec.UNSET
    policy_versions: Change = msgspec.UNSET
    idempotency_keys: Change = msgspec.UNSET
    refusals_per_minute: Change = msgspec.UNSET


class NewTenant(Body):
    """Asks for a tenant."""

    slug: Word
    name: Word


class Enrolment(Body):
    """Uses an enrolment link or an invitation."""

    token: Secret
    username: Word
    password: Secret


class Enrolled(Answer):
    """Who one has become."""

    tenant: TenantName
    principal: str
    name: str
    roles: list[str]


class WhoAmI(Answer):
    """The caller, as the platform sees it."""

    kind: str
    tenant: TenantName | None
    principal: str
    name: str
    roles: list[str]


class Member(Answer):
    """A person of the tenant."""

    id: str
    name: str
    roles: list[str]
    state: str
    created_at: int


class NewMember(Body):
    """Invites a person."""

    username: Word
    roles: Words


class MemberInvited(Answer):
    """The invited member and the link to pass on."""

    member: Member
    invitation: Link


class Roles(Body):
    """Sets the roles of a member."""

    roles: Words


class ServiceAccount(Answer):
    """An application's account."""

    id: str
    name: str
    roles: list[str]
    client_id: str
    created_at: int


class NewServiceAccount(Body):
    """Asks for an account."""

    name: Word
    roles: Words


class ServiceAccountSecret(Answer):
    """An account with its secret, which is shown in this answer alone."""

    service_account: ServiceAccount
    client_secret: str


# --- uploads, models ------------------------------------------------------------------------------


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


# --- datasets, budgets, jobs ----------------------------------------------------------------------


class NewDataset(Body):
    """Describes a dataset to be uploaded; docs/reference/datasets.md explains each field."""

    name: Word
    format: Word
    schema: dict[str, Any]
    privacy: dict[str, Any]
    size_bytes: Count
    sha256: Digest
    description: Text = ""


class DatasetCreated(Answer):
    """Where the dataset's bytes go."""

    dataset_id: str
    name: str
    upload: Upload


class Dataset(Answer):
    """A dataset; of a private one the number of rows is never shown, only the declared one."""

    id: str
    name: str
    description: str
    format: str
    schema: dict[str, Any]
    privacy: dict[str, Any]
    state: str
    created_at: int


class Charge(Answer):
    """What one job spent."""

    job_id: str
    noise_multiplier: float
    sample_rate: float
    steps: int
    state: str
    at: int


class Budget(Answer):
    """A dataset's privacy budget."""

    dataset: str
    epsilon: float
    delta: float
    epsilon_spent: float
    epsilon_reserved: float
    charges: list[Charge]


class JobSpec(Body):
    """Declares a training run; docs/reference/jobs.md explains each field."""

    dataset: Word
    into: Word
    model: dict[str, Any]
    loss: Word
    optimizer: dict[str, Any]
    steps: Count
    sample_rate: float
    privacy: dict[str, Any] | None = None
    microbatch: Count | None = None
    checkpoint_every: Count | None = None


class Plan(Answer):
    """What a job would cost and whether it fits."""

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


class Progress(Answer):
    """How far a job is."""

    step: int
    steps: int
    epsilon_charged: float | None


class JobError(Answer):
    """Why a job failed, without data."""

    code: str
    message: str


class JobResult(Answer):
    """The version a job made."""

    model: str
    version: int


class Job(Answer):
    """A training run."""

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


class JobLine(Answer):
    """One line of a job's log."""

    at: int
    text: str


# --- grants, policies, audit ----------------------------------------------------------------------


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


class ResourceMetadata(Answer):
    """RFC 9728: where to log in for this platform."""

    resource: str
    authorization_servers: list[str]
    bearer_methods_supported: list[str]
    scopes_supported: list[str]
