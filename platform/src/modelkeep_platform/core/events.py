"""What the audit log is told."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import Caller
from modelkeep_platform.core.decisions import Decision
from modelkeep_platform.core.ids import TenantId
from modelkeep_platform.core.refs import ResourceRef


class Outcome(StrEnum):
    """How far the action came.

    What takes more than one transaction has two entries: an intent and, however it ends, one entry more.
    """

    DENIED = "denied"
    INTENT = "intent"
    DONE = "done"
    FAILED = "failed"
    ABANDONED = "abandoned"
    EXPIRED = "expired"


Facts: TypeAlias = Mapping[str, str | int | bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One entry to be: who (none: the platform itself), did what, to what, with which outcome.

    `tenant` is the log the entry belongs to (the owner of the resource). When the actor is of another
    tenant the recorder writes the entry to the actor's log too. `facts` never hold row values,
    weights, secrets or inputs; `personal` facts are sealed under the tenant's key.
    """

    tenant: TenantId
    action: Action | str
    outcome: Outcome
    actor: Caller | None = None
    ref: ResourceRef | None = None
    decision: Decision | None = None
    facts: Facts = field(default_factory=dict)
    personal: Facts = field(default_factory=dict)
