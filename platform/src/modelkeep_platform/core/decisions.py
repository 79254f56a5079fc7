"""The outcome of asking policy."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.ids import TenantId
from modelkeep_platform.core.machine import Clock
from modelkeep_platform.core.refs import ResourceRef

Attributes: TypeAlias = Mapping[str, str | int | bool]
"""Facts about the call that policies may test (Cedar context), for example ``{"alias": "production"}``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """What one tenant's policies contributed to a decision: for that tenant's log, and for no other."""

    tenant: TenantId
    policies: tuple[str, ...]
    policy_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Allow or deny, and what determined it.

    An allow decision is also the key that opens a storage transaction of a foreign owner. `sides` holds one side within
    a tenant, two when a grant crosses tenants, and of a refusal only the side that refused; none when no policy was
    asked. `reasons` are what the caller is told. `expires_at` is the end of the grant, in seconds since the epoch of
    Unix; None when there is no grant or it does not end.
    """

    allow: bool
    action: Action
    ref: ResourceRef
    caller_tenant: TenantId
    sides: tuple[Side, ...] = ()
    reasons: tuple[str, ...] = ()
    grant_id: str | None = None
    expires_at: int | None = None

    def side(self, tenant: TenantId) -> Side | None:
        """Return the side of `tenant`, or None when its policies did not determine the decision."""
        return next((side for side in self.sides if side.tenant == tenant), None)

    def ended(self, clock: Clock) -> bool:
        """Return whether the grant that it rests on, if any, is over by now."""
        return self.expires_at is not None and self.expires_at <= clock.now_s()
