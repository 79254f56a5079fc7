"""One decision of the authorizer, uncached and cached, in a tenant and across two.

Uncached: nothing of this very decision is in memory. Texts are compiled, and the opinions of policies that cannot tell
this call from one before are kept, as in a server. Asked by each name, the tenant's policy reads the name, so Cedar is
asked each time. The first decision of an epoch reads the database.
"""

from itertools import count
from pathlib import Path

import cedarpy

from benchmarks.harness import Figure, Floor, each_us, interleave
from fakes.access import FOREIGN, MODEL, AccessRoom, quick_database
from fakes.core import ACME, GLOBEX, FakeClock, FakeRecorder, tenant_caller
from modelkeep_platform.access.engine import question
from modelkeep_platform.access.shipped import OWN_SIDE, compiled
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import TenantCaller
from modelkeep_platform.core.decisions import Attributes
from modelkeep_platform.core.ids import ObjectId
from modelkeep_platform.core.refs import Kind, ResourceRef

TITLE = "Decisions"


def measure(folder: Path) -> list[Figure]:
    """Measure `PolicyAuthorizer.require` against one question to Cedar, and the cached one against a dictionary."""
    database = quick_database(folder / "platform.db")
    room = AccessRoom(database, FakeClock(), FakeRecorder())
    room.put_policy(ACME, OWN_POLICY)
    room.put_grant(FOREIGN, ACME, [str(Action.MODEL_PREDICT)])
    room.put_grant(MODEL, GLOBEX, [str(Action.MODEL_PREDICT)])
    caller, authorizer = tenant_caller(ACME), room.authorizer
    numbers = count()

    def another() -> tuple[ResourceRef, Attributes]:
        number = next(numbers)
        return ResourceRef(owner=ACME, kind=Kind.MODEL, object_id=ObjectId(f"mdl_{number}")), {"name": f"m-{number}"}

    def by_name() -> object:
        return authorizer.require(caller, Action.MODEL_PREDICT, *another())

    def alike() -> object:
        return authorizer.require(caller, Action.MODEL_READ, *another())

    def foreign() -> object:
        authorizer._decisions._entries.clear()
        return authorizer.require(caller, Action.MODEL_PREDICT, FOREIGN)

    def first() -> object:
        room.epoch._number += 1
        return authorizer.require(caller, Action.MODEL_PREDICT, MODEL)

    def cached() -> object:
        return authorizer.require(caller, Action.MODEL_PREDICT, MODEL)

    known = {_key(caller, MODEL): 1}
    policies, entities, request = _bare(caller)
    sides = interleave(
        each_us(by_name, times=300),
        each_us(alike, times=300),
        each_us(foreign, times=300),
        each_us(first, times=20),
        each_us(cached, times=5000),
        each_us(lambda: cedarpy.is_authorized(request, policies, entities), times=300),
        each_us(lambda: known.get(_key(caller, MODEL)), times=5000),
    )
    database.close()
    own, same, across, cold, warm, cedar, lookup = sides
    one = "one question to Cedar, parsed before"
    return [
        Figure(
            name="uncached, a policy that reads the name",
            unit="µs",
            ours=own,
            against=one,
            theirs=cedar,
            floor=Floor(at_most=100, ratio=0.5),
        ),
        Figure(
            name="uncached, policies that cannot tell the object from others",
            unit="µs",
            ours=same,
            against=one,
            theirs=cedar,
            floor=Floor(at_most=100),
        ),
        Figure(name="uncached, another tenant's object by a grant", unit="µs", ours=across, against=one, theirs=cedar),
        Figure(name="first of an epoch", unit="µs", ours=cold, against=one, theirs=cedar),
        Figure(
            name="cached",
            unit="µs",
            ours=warm,
            against="a dictionary, by the same key",
            theirs=lookup,
            floor=Floor(at_most=5),
        ),
    ]


OWN_POLICY = """
@id("nobody-predicts-drafts")
forbid (principal, action == Modelkeep::Action::"model:predict", resource) when { context.name like "draft-*" };
"""


def _key(caller: TenantCaller, ref: ResourceRef) -> tuple[object, ...]:
    return (
        *(caller.tenant, caller.principal_kind, caller.principal, caller.name, caller.roles),
        *(Action.MODEL_PREDICT, ref.owner, ref.kind, ref.object_id, ("", "", 0)),
    )


def _bare(caller: TenantCaller) -> tuple[cedarpy.PolicySet, cedarpy.Entities, dict[str, object]]:
    asked = question(caller, Action.MODEL_PREDICT, MODEL, {}, granted=frozenset())
    return compiled(OWN_SIDE), asked.entities, asked.request
