"""Who is calling, after the token was verified and membership was read."""

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from modelkeep_platform.core.ids import PLATFORM, PrincipalId, RequestId, TenantId


class Role(StrEnum):
    """Roles a member or service account can hold in its tenant; from our own table, never the token."""

    TENANT_ADMIN = "tenant-admin"
    DEVELOPER = "developer"
    ANALYST = "analyst"
    AUDITOR = "auditor"


class PrincipalKind(StrEnum):
    """What kind of principal holds the token."""

    USER = "user"
    SERVICE_ACCOUNT = "service_account"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantCaller:
    """A member or service account of one tenant."""

    tenant: TenantId
    principal: PrincipalId
    principal_kind: PrincipalKind
    name: str
    roles: frozenset[Role]
    token_id: str
    request_id: RequestId


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorCaller:
    """A platform operator: its own client and audience, accepted on platform actions only."""

    principal: PrincipalId
    name: str
    token_id: str
    request_id: RequestId

    @property
    def tenant(self) -> TenantId:
        """The platform's reserved tenant id, under which operators' entries are recorded."""
        return PLATFORM


Caller: TypeAlias = TenantCaller | OperatorCaller
