"""What an operator does to a tenant: named by slug, decided before anything is said of it, recorded in both logs."""

from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import OperatorCaller
from modelkeep_platform.core.events import Event, Facts, Outcome
from modelkeep_platform.core.ids import PLATFORM, ObjectId, TenantId
from modelkeep_platform.core.ports import Authorizer
from modelkeep_platform.core.refs import PLATFORM_REF, Kind, ResourceRef, missing
from modelkeep_platform.identity.registry import Tenant, TenantRegistry


def find(registry: TenantRegistry, authorizer: Authorizer, caller: OperatorCaller, slug: str, action: Action) -> Tenant:
    """Decide `action` and return the tenant with this slug.

    Raises:
        ForbiddenError: the caller may not.
        NotFoundError: there is no such tenant.
    """
    found = registry.by_slug(slug)
    if found is None:
        authorizer.require(caller, action, missing(PLATFORM, Kind.PLATFORM))
        raise RuntimeError("a missing object was allowed")
    authorizer.require(caller, action, PLATFORM_REF)
    return found


def done(caller: OperatorCaller, action: Action, tenant: Tenant, facts: Facts | None = None) -> Event:
    """Return the entry of the tenant's own log; the recorder writes the platform's beside it."""
    return Event(
        tenant=tenant.id,
        action=action,
        outcome=Outcome.DONE,
        actor=caller,
        ref=tenant_ref(tenant.id),
        facts={"tenant": tenant.id, "slug": tenant.slug, **(facts or {})},
    )


def tenant_ref(tenant: TenantId) -> ResourceRef:
    """Return the reference of a tenant itself."""
    return ResourceRef(owner=tenant, kind=Kind.TENANT, object_id=ObjectId(tenant))
