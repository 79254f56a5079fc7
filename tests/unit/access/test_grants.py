"""Grants: what is refused, what is written, and when they end."""

from typing import Any

import pytest

from fakes.access import DATASET, MODEL, AccessRoom, refused
from fakes.core import ACME, GLOBEX, FakeAuthorizer, tenant_caller
from modelkeep_platform.access import grants as grants_module
from modelkeep_platform.access.grants import Grant
from modelkeep_platform.core.actions import GRANTABLE, Action
from modelkeep_platform.core.callers import Role
from modelkeep_platform.core.decisions import Decision
from modelkeep_platform.core.errors import ForbiddenError, NotFoundError, UnprocessableError
from modelkeep_platform.core.events import Outcome
from modelkeep_platform.core.refs import ResourceRef
from modelkeep_platform.storage.pages import PageRequest

ADMIN = tenant_caller(ACME)
PARTNER = tenant_caller(GLOBEX, Role.DEVELOPER)


def give(room: AccessRoom, **changes: Any) -> Grant:
    wanted: dict[str, Any] = {
        "kind": "model",
        "name": "m",
        "grantee": "globex",
        "actions": ["model:predict"],
        "expires_at": None,
        **changes,
    }
    return room.grants.create(wanted.pop("caller", ADMIN), **wanted)


def allowed(room: AccessRoom, action: Action = Action.MODEL_PREDICT, ref: ResourceRef = MODEL) -> bool:
    return room.authorizer.allows(PARTNER, action, ref)


def test_a_grant_opens_its_actions_on_its_object_for_its_grantee(room: AccessRoom) -> None:
    assert not allowed(room)
    grant = give(room, actions=["model:predict", "model:read", "model:predict"])
    assert grant == Grant(
        id=grant.id,
        kind="model",
        name="m",
        object_id="mdl_acme",
        grantee="globex",
        actions=("model:predict", "model:read"),
        created_at=room.clock.now_s(),
        expires_at=None,
    )
    assert grant.id.startswith("grt_")
    assert allowed(room)
    assert allowed(room, Action.MODEL_READ)
    assert not allowed(room, Action.MODEL_EXPORT)
    assert not allowed(room, Action.DATASET_READ, DATASET)
    decision = room.authorizer.require(PARTNER, Action.MODEL_PREDICT, MODEL)
    assert (decision.grant_id, decision.expires_at) == (grant.id, None)


def test_a_grant_is_recorded_with_its_effect(room: AccessRoom) -> None:
    before = room.database.epoch()
    grant = give(room)
    (event,) = room.recorder.events
    assert (event.tenant, event.action, event.outcome, event.actor, event.ref) == (
        ACME,
        Action.GRANT_CREATE,
        Outcome.DONE,
        ADMIN,
        MODEL,
    )
    assert event.facts == {"grant": grant.id, "grantee": GLOBEX, "actions": "model:predict"}
    assert room.epoch.current() == room.database.epoch() == before + 1


@pytest.mark.parametrize(("kind", "name"), [("model", "m"), ("dataset", "d")])
def test_every_grantable_action_of_a_kind_can_be_granted(room: AccessRoom, kind: str, name: str) -> None:
    wanted = sorted(str(action) for action in GRANTABLE if action.startswith(f"{kind}:"))
    assert give(room, kind=kind, name=name, actions=wanted).actions == tuple(wanted)


UNGRANTABLE = sorted(str(action) for action in set(Action) - GRANTABLE)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        *(({"actions": [action]}, "grant_refused") for action in UNGRANTABLE),
        ({"actions": ["model:predict", "model:delete"]}, "grant_refused"),
        ({"actions": ["dataset:read"]}, "grant_refused"),
        ({"actions": []}, "grant_refused"),
        ({"actions": ["*"]}, "grant_refused"),
        ({"actions": ["model:"]}, "grant_refused"),
        ({"kind": "policy", "actions": ["policy:read"]}, "grant_refused"),
        ({"kind": "job"}, "grant_refused"),
        ({"kind": ""}, "grant_refused"),
        ({"grantee": "nobody"}, "invalid_grantee"),
        ({"grantee": "acme"}, "invalid_grantee"),
        ({"grantee": "platform"}, "invalid_grantee"),
        ({"grantee": GLOBEX}, "invalid_grantee"),
        ({"grantee": ""}, "invalid_grantee"),
        ({"expires_at": 1_800_000_000}, "grant_refused"),
        ({"expires_at": 0}, "grant_refused"),
        ({"expires_at": -1}, "grant_refused"),
        ({"expires_at": 253_402_300_800}, "grant_refused"),
        ({"expires_at": 2**70}, "grant_refused"),
    ],
    ids=str,
)
def test_what_cannot_be_granted_is_refused_and_changes_nothing(
    room: AccessRoom, changes: dict[str, Any], code: str
) -> None:
    before = room.state()
    with pytest.raises(UnprocessableError) as raised:
        give(room, **changes)
    assert raised.value.error_code == code
    assert room.state() == before


@pytest.mark.parametrize("grantee", ["globex", "nobody"])
def test_whoever_owns_no_such_object_learns_no_tenants_slug(room: AccessRoom, grantee: str) -> None:
    with pytest.raises(NotFoundError) as raised:
        give(room, name="nothing", grantee=grantee)
    assert grantee not in raised.value.message


def test_a_message_names_what_could_be_granted(room: AccessRoom) -> None:
    with pytest.raises(UnprocessableError) as raised:
        give(room, actions=["model:delete"])
    assert raised.value.message == "what can be granted on a model is `model:export`, `model:predict`, `model:read`"
    with pytest.raises(UnprocessableError) as raised:
        give(room, kind="job")
    assert raised.value.message == "grants are given on `model`, `dataset`"


@pytest.mark.parametrize("name", ["nothing", "globex~m", "d", "acme~nothing", ""])
def test_only_own_objects_that_exist_are_granted(room: AccessRoom, name: str) -> None:
    before = room.state()
    with pytest.raises(NotFoundError):
        give(room, name=name)
    assert room.state() == before
    assert refused(room.recorder.events[-1], ADMIN) == ("grant:create", "not found")


@pytest.mark.parametrize("role", [Role.DEVELOPER, Role.ANALYST, Role.AUDITOR])
def test_only_administrators_give_and_revoke(room: AccessRoom, role: Role) -> None:
    grant = give(room)
    before = room.state()
    member = tenant_caller(ACME, role)
    with pytest.raises(ForbiddenError):
        give(room, caller=member)
    with pytest.raises(ForbiddenError):
        room.grants.revoke(member, grant.id)
    assert room.state() == before
    assert [refused(event, member)[0] for event in room.refusals()] == ["grant:create", "grant:revoke"]


def test_a_policy_can_keep_one_object_from_being_granted(room: AccessRoom) -> None:
    room.put_policy(
        ACME,
        '@id("keep") forbid (principal, action == Modelkeep::Action::"grant:create", resource)'
        ' when { context.name == "m" };',
    )
    with pytest.raises(ForbiddenError) as raised:
        give(room)
    assert raised.value.details["policies"] == ["keep"]
    assert give(room, kind="dataset", name="d", actions=["dataset:read"]).name == "d"


def test_a_policy_can_keep_a_grant_of_one_object_from_being_revoked(room: AccessRoom) -> None:
    kept, other = give(room), give(room, kind="dataset", name="d", actions=["dataset:read"])
    room.put_policy(
        ACME,
        '@id("keep") forbid (principal, action == Modelkeep::Action::"grant:revoke", resource)'
        ' when { context.name == "m" };',
    )
    with pytest.raises(ForbiddenError) as raised:
        room.grants.revoke(ADMIN, kept.id)
    assert raised.value.details["policies"] == ["keep"]
    room.grants.revoke(ADMIN, other.id)
    assert allowed(room)


def test_a_grant_ends_at_its_second_also_for_what_was_decided_before(room: AccessRoom) -> None:
    give(room, expires_at=room.clock.now_s() + 10)
    decision = room.authorizer.require(PARTNER, Action.MODEL_PREDICT, MODEL)
    assert decision.expires_at == room.clock.now_s() + 10
    assert room.authorizer.cached(PARTNER, Action.MODEL_PREDICT, MODEL, {}) is not None
    room.clock.advance(9)
    room.epoch.refresh()
    assert allowed(room)
    room.clock.advance(1)
    room.epoch.refresh()
    assert room.authorizer.cached(PARTNER, Action.MODEL_PREDICT, MODEL, {}) is None
    assert not allowed(room)


def test_of_several_grants_the_longest_counts_and_each_is_revoked_by_itself(room: AccessRoom) -> None:
    give(room, expires_at=room.clock.now_s() + 10)
    lasting, other = give(room), give(room, expires_at=room.clock.now_s() + 20)
    assert room.authorizer.require(PARTNER, Action.MODEL_PREDICT, MODEL).grant_id == lasting.id
    room.grants.revoke(ADMIN, lasting.id)
    assert room.authorizer.require(PARTNER, Action.MODEL_PREDICT, MODEL).grant_id == other.id
    room.grants.revoke(ADMIN, other.id)
    assert allowed(room)
    room.clock.advance(10)
    room.epoch.refresh()
    assert not allowed(room)


def test_a_revoked_grant_is_refused_at_the_next_call_and_can_be_given_again(room: AccessRoom) -> None:
    grant = give(room)
    room.authorizer.require(PARTNER, Action.MODEL_PREDICT, MODEL)
    room.grants.revoke(ADMIN, grant.id)
    event = room.recorder.events[-1]
    assert (event.action, event.outcome, event.facts) == (
        Action.GRANT_REVOKE,
        Outcome.DONE,
        {"grant": grant.id, "grantee": GLOBEX, "object": "mdl_acme"},
    )
    with pytest.raises(NotFoundError):
        room.authorizer.require(PARTNER, Action.MODEL_PREDICT, MODEL)
    again = give(room)
    assert again.id != grant.id
    assert allowed(room)


def test_an_ended_grant_can_be_revoked_and_given_again(room: AccessRoom) -> None:
    ended = give(room, expires_at=room.clock.now_s() + 1)
    room.clock.advance(2)
    room.epoch.refresh()
    give(room)
    assert allowed(room)
    room.grants.revoke(ADMIN, ended.id)
    assert allowed(room)


def test_a_grant_of_another_tenant_or_none_cannot_be_revoked(room: AccessRoom) -> None:
    grant = give(room)
    before = room.state()
    foreign = tenant_caller(GLOBEX)
    messages = set()
    for caller, wanted in ((foreign, grant.id), (foreign, "grt_nothing"), (ADMIN, "grt_nothing"), (ADMIN, "")):
        with pytest.raises(NotFoundError) as raised:
            room.grants.revoke(caller, wanted)
        messages.add((raised.value.message, raised.value.error_code, str(raised.value.details)))
        assert refused(room.recorder.events[-1], caller) == ("grant:revoke", "not found")
    assert len(messages) == 1
    assert room.state() == before


def test_of_two_that_revoke_at_once_one_finds_nothing(room: AccessRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    grant = give(room)
    require = room.authorizer.require

    def faster(*asked: Any) -> Decision:
        decision = require(*asked)
        monkeypatch.undo()
        room.grants.revoke(ADMIN, grant.id)
        return decision

    monkeypatch.setattr(room.authorizer, "require", faster)
    with pytest.raises(NotFoundError):
        room.grants.revoke(ADMIN, grant.id)
    done = [event for event in room.recorder.events if event.action == Action.GRANT_REVOKE]
    assert [event.outcome for event in done] == [Outcome.DONE, Outcome.DENIED]


def test_grants_are_listed_for_their_owner_page_by_page_with_ended_ones(room: AccessRoom) -> None:
    given = {give(room, expires_at=room.clock.now_s() + 1 + number).id for number in range(3)}
    room.clock.advance(2)
    room.epoch.refresh()
    first = room.grants.list(ADMIN, PageRequest(limit=2))
    second = room.grants.list(ADMIN, PageRequest(limit=2, cursor=first.next_cursor))
    assert second.next_cursor is None
    assert {grant.id for grant in (*first.items, *second.items)} == given
    assert [grant.id for grant in room.grants.list(tenant_caller(GLOBEX), PageRequest()).items] == []
    assert len(room.grants.list(tenant_caller(ACME, Role.AUDITOR), PageRequest()).items) == 3


def test_grants_stop_at_the_limit_of_a_tenant(room: AccessRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grants_module, "MAX_GRANTS", 2)
    first, _ = give(room), give(room)
    before = room.state()
    with pytest.raises(UnprocessableError) as raised:
        give(room)
    assert raised.value.error_code == "grant_refused"
    assert room.state() == before
    room.grants.revoke(ADMIN, first.id)
    give(room)


def test_an_authorizer_that_lets_the_missing_pass_gives_nothing(
    room: AccessRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    careless = FakeAuthorizer()
    allow = careless.require(ADMIN, Action.GRANT_CREATE, MODEL)
    monkeypatch.setattr(room.authorizer, "require", lambda *_: allow)
    before = room.state()
    with pytest.raises(RuntimeError):
        give(room, name="nothing")
    assert room.state() == before
