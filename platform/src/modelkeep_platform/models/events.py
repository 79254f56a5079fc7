"""What the registry records of what a caller did to a model."""

from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import TenantCaller
from modelkeep_platform.core.events import Event, Outcome
from modelkeep_platform.core.ids import ObjectId, TenantId
from modelkeep_platform.core.refs import Kind, ResourceRef


def model_event(
    caller: TenantCaller,
    action: Action,
    model_id: ObjectId,
    outcome: Outcome,
    *,
    owner: TenantId | None = None,
    **facts: str | int,
) -> Event:
    """Return the event of an action on a model of `owner`, by default the caller's own tenant."""
    tenant = owner or caller.tenant
    return Event(
        tenant=tenant,
        action=action,
        outcome=outcome,
        actor=caller,
        ref=ResourceRef(owner=tenant, kind=Kind.MODEL, object_id=model_id),
        facts=facts,
    )
