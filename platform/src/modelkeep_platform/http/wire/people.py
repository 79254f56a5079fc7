"""The JSON of people, tenants and the metadata of the login."""

import msgspec

from modelkeep_platform.http.wire.fields import Answer, Body, Change, Secret, Word, Words


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
    principal_storage_mib: Change = msgspec.UNSET
    open_uploads: Change = msgspec.UNSET
    principal_open_uploads: Change = msgspec.UNSET
    active_jobs: Change = msgspec.UNSET
    principal_active_jobs: Change = msgspec.UNSET
    running_jobs: Change = msgspec.UNSET
    serving_workers: Change = msgspec.UNSET
    members: Change = msgspec.UNSET
    service_accounts: Change = msgspec.UNSET
    policy_versions: Change = msgspec.UNSET
    idempotency_keys: Change = msgspec.UNSET
    refusals_per_minute: Change = msgspec.UNSET
    principal_refusals_per_minute: Change = msgspec.UNSET


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


class ResourceMetadata(Answer):
    """RFC 9728: where to log in for this platform."""

    resource: str
    authorization_servers: list[str]
    bearer_methods_supported: list[str]
    scopes_supported: list[str]
