"""Members and accounts as they stand now, for work that outlives the call that began it."""

from modelkeep_platform.core.callers import TenantCaller
from modelkeep_platform.core.ids import PrincipalId, RequestId, TenantId, new_object_id
from modelkeep_platform.core.ports import Entropy
from modelkeep_platform.identity.memberships import Memberships
from modelkeep_platform.identity.registry import ACTIVE, TenantRegistry
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.transactions import System


class PresentPrincipals:
    """Looks principals up by their tenant and subject.

    Args:
        database: where memberships are.
        registry: the tenants there are.
        memberships: who belongs to them.
        entropy: names what is done for them.
    """

    def __init__(
        self, *, database: Database, registry: TenantRegistry, memberships: Memberships, entropy: Entropy
    ) -> None:
        self._database = database
        self._registry = registry
        self._memberships = memberships
        self._entropy = entropy

    def is_active(self, tenant: TenantId) -> bool:
        """Return whether the tenant is active."""
        return self._registry.is_active(tenant)

    def present(self, tenant: TenantId, principal: PrincipalId) -> TenantCaller | None:
        """Return a member or account with its roles of now; None when it, or its tenant, may not act any more."""
        if not self.is_active(tenant):
            return None
        with self._database.tenant(tenant, by=System(reason="look at a job's principal"), read_only=True) as tx:
            membership = self._memberships.find(tx, principal)
        if membership is None or membership.state != ACTIVE:
            return None
        return TenantCaller(
            tenant=tenant,
            principal=membership.subject,
            principal_kind=membership.kind,
            name=membership.name,
            roles=membership.roles,
            token_id="",
            request_id=RequestId(new_object_id(self._entropy, "req")),
        )
