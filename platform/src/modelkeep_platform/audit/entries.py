"""One entry of the log: how an event becomes bytes, and what of it is committed to.

The leaf commits to ``0x01 || SHA-256(salt || entry)``. The salt hides the entry: without it, whoever sees a
sibling's hash in a proof could guess another tenant's entry. Names of people are sealed under the tenant's
own key, so that shredding the key blanks them and the log still verifies.
"""

import base64
import hashlib
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from modelkeep_platform.core.callers import Caller, TenantCaller
from modelkeep_platform.core.events import Event
from modelkeep_platform.core.ids import ObjectId, TenantId

AUDIT_KEY: Final = ObjectId("audit-log")
"""The object id under whose data key personal fields are sealed, in every tenant."""

SALT_BYTES: Final = 32
_LEAF_VERSION: Final = b"\x01"
_json: Final = msgspec.json.Encoder(order="sorted").encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An entry as it is stored: the bytes, the salt, and what is found again by."""

    id: str
    tenant: TenantId
    created_at: int
    request_id: str
    salt: bytes
    body: bytes


def leaf_data(salt: bytes, body: bytes) -> bytes:
    """Return ``0x01 || SHA-256(salt || body)``."""
    return _LEAF_VERSION + hashlib.sha256(salt + body).digest()


def personal_fields(event: Event) -> bytes:
    """Return the JSON of what is sealed: who, by id and name, and the event's personal facts."""
    actor = event.actor
    fields: dict[str, Any] = dict(event.personal)
    if actor is not None:
        fields |= {"principal": actor.principal, "name": actor.name}
    return _json(fields)


def entry_body(event: Event, *, entry_id: str, log: TenantId, created_at: int, sealed_personal: bytes) -> bytes:
    """Return the entry's canonical bytes: JSON with sorted names and no spaces.

    Args:
        event: what happened.
        entry_id: the entry's random id.
        log: the tenant whose log this entry belongs to.
        created_at: seconds since the epoch.
        sealed_personal: the sealed personal fields; empty when the actor is of another tenant.
    """
    actor, ref, decision = event.actor, event.ref, event.decision
    # INVARIANT: a log names the policies of its own tenant; the other side's ids and version are the other tenant's.
    side = None if decision is None else decision.side(log)
    fields: dict[str, Any] = {
        "v": 1,
        "id": entry_id,
        "time": created_at,
        "tenant": log,
        "action": str(event.action),
        "outcome": str(event.outcome),
        "actor": _actor(actor),
        "resource": None if ref is None else {"owner": ref.owner, "kind": str(ref.kind), "id": ref.object_id},
        "policies": [] if side is None else list(side.policies),
        "policy_version": None if side is None else side.policy_version,
        "grant": None if decision is None else decision.grant_id,
        "request_id": None if actor is None else actor.request_id,
        "facts": dict(event.facts),
        "personal": base64.b64encode(sealed_personal).decode("ascii"),
    }
    return _json(fields)


def _actor(actor: Caller | None) -> dict[str, str] | None:
    if actor is None:
        return None
    kind = str(actor.principal_kind) if isinstance(actor, TenantCaller) else "operator"
    return {"tenant": actor.tenant, "kind": kind}
