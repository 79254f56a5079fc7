"""Tenants' own policies: versions that never change, one of them active, and nobody locked out."""

import hashlib
import threading
from typing import Any

import pytest

from fakes.access import BY, AccessRoom, refused
from fakes.core import ACME, GLOBEX, FakeLimits, tenant_caller
from modelkeep_platform.access.policies import PolicyService, PolicyVersion
from modelkeep_platform.access.shipped import shipped
from modelkeep_platform.access.validation import InvalidPolicyError
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import PrincipalKind, Role, TenantCaller
from modelkeep_platform.core.errors import (
    ConflictError,
    ForbiddenError,
    IntegrityError,
    MalformedError,
    NotFoundError,
    UnprocessableError,
)
from modelkeep_platform.core.events import Outcome
from modelkeep_platform.core.refs import Kind, collection
from modelkeep_platform.storage.pages import PageRequest
from modelkeep_platform.storage.tables.access import active_policies, policy_versions

ADMIN = tenant_caller(ACME)
AUDITOR = tenant_caller(ACME, Role.AUDITOR, name="auditor")
TEXT = '@id("no-deletes") forbid (principal, action == Modelkeep::Action::"model:delete", resource);'
PUBLISH = 'action == Modelkeep::Action::"policy:publish"'
POLICIES = collection(ACME, Kind.POLICY)


def stored(room: AccessRoom) -> list[tuple[int, str]]:
    with room.database.tenant(ACME, by=BY, read_only=True) as tx:
        return [
            (row["version"], row["text"])
            for row in tx.all(tx.select(policy_versions).order_by(policy_versions.c.version))
        ]


def test_publishing_makes_the_next_version_active_and_records_it(room: AccessRoom) -> None:
    before = room.database.epoch()
    published = room.policies.publish(ADMIN, TEXT)
    digest = hashlib.sha256(TEXT.encode()).hexdigest()
    assert published == PolicyVersion(
        version=2,
        state="active",
        created_at=room.clock.now_s(),
        created_by=ADMIN.principal,
        sha256=digest,
        text=TEXT,
    )
    (event,) = room.recorder.events
    assert (event.tenant, event.action, event.outcome, event.actor) == (
        ACME,
        Action.POLICY_PUBLISH,
        Outcome.DONE,
        ADMIN,
    )
    assert event.ref is not None
    assert (event.ref.kind, event.ref.object_id) == (Kind.POLICY, "2")
    assert event.facts == {"version": 2, "sha256": digest}
    assert room.epoch.current() == room.database.epoch() == before + 1
    assert stored(room) == [(1, shipped("tenant-default.cedar")), (2, TEXT)]


def test_a_published_policy_decides_the_next_call_of_its_tenant_alone(room: AccessRoom) -> None:
    models = collection(ACME, Kind.MODEL)
    room.authorizer.require(ADMIN, Action.MODEL_DELETE, models)
    room.policies.publish(ADMIN, TEXT)
    with pytest.raises(ForbiddenError) as raised:
        room.authorizer.require(ADMIN, Action.MODEL_DELETE, models)
    assert raised.value.details == {
        "action": "model:delete",
        "reasons": ["policy `no-deletes` forbids it"],
        "policies": ["no-deletes"],
    }
    assert [side.policy_version for side in room.authorizer.require(ADMIN, Action.MODEL_READ, models).sides] == [2]
    room.authorizer.require(tenant_caller(GLOBEX), Action.MODEL_DELETE, collection(GLOBEX, Kind.MODEL))


def test_activating_an_earlier_version_rolls_back_and_makes_no_new_one(room: AccessRoom) -> None:
    room.policies.publish(ADMIN, TEXT)
    rolled = room.policies.activate(ADMIN, 1)
    assert (rolled.version, rolled.state) == (1, "active")
    assert room.recorder.events[-1].action == Action.POLICY_ACTIVATE
    assert room.recorder.events[-1].facts["version"] == 1
    room.authorizer.require(ADMIN, Action.MODEL_DELETE, collection(ACME, Kind.MODEL))
    assert room.policies.get(ADMIN, 2).state == "retired"
    assert room.policies.activate(ADMIN, 2).state == "active"
    assert len(stored(room)) == 2
    assert room.policies.publish(ADMIN, "").version == 3


@pytest.mark.parametrize("version", [0, 2, -1, 2**31, 2**63, 10**30])
def test_a_version_that_is_not_there_is_not_found(room: AccessRoom, version: int) -> None:
    before = room.state()
    for call, action in ((room.policies.get, "policy:read"), (room.policies.activate, "policy:activate")):
        with pytest.raises(NotFoundError):
            call(ADMIN, version)
        assert refused(room.recorder.events[-1], ADMIN) == (action, "not found")
    assert room.state() == before


def test_versions_are_of_their_tenant(room: AccessRoom) -> None:
    room.policies.publish(ADMIN, TEXT)
    foreign = tenant_caller(GLOBEX)
    with pytest.raises(NotFoundError):
        room.policies.get(foreign, 2)
    assert [version.version for version in room.policies.list(foreign, PageRequest()).items] == [1]


def test_versions_are_listed_newest_first_page_by_page(room: AccessRoom) -> None:
    for _ in range(4):
        room.policies.publish(ADMIN, TEXT)
    room.policies.activate(ADMIN, 3)
    first = room.policies.list(AUDITOR, PageRequest(limit=2))
    second = room.policies.list(AUDITOR, PageRequest(limit=2, cursor=first.next_cursor))
    third = room.policies.list(AUDITOR, PageRequest(limit=2, cursor=second.next_cursor))
    listed = [(one.version, one.state) for page in (first, second, third) for one in page.items]
    assert listed == [(5, "retired"), (4, "retired"), (3, "active"), (2, "retired"), (1, "retired")]
    assert third.next_cursor is None


@pytest.mark.parametrize("cursor", ["wrI=", "YQ==", "LTE=", "OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5", "MSA="])
def test_a_cursor_that_was_not_given_out_is_refused(room: AccessRoom, cursor: str) -> None:
    with pytest.raises(MalformedError) as raised:
        room.policies.list(ADMIN, PageRequest(cursor=cursor))
    assert raised.value.error_code == "invalid_page"


@pytest.mark.parametrize("role", [Role.DEVELOPER, Role.ANALYST, Role.AUDITOR])
def test_only_administrators_change_policies(room: AccessRoom, role: Role) -> None:
    before = room.state()
    member = tenant_caller(ACME, role)
    with pytest.raises(ForbiddenError):
        room.policies.publish(member, TEXT)
    with pytest.raises(ForbiddenError):
        room.policies.activate(member, 1)
    assert room.state() == before
    assert [refused(event, member)[0] for event in room.refusals()] == ["policy:publish", "policy:activate"]


def test_who_may_not_publish_learns_nothing_of_the_text(room: AccessRoom) -> None:
    with pytest.raises(ForbiddenError):
        room.policies.publish(AUDITOR, "not cedar")


def test_checking_publishes_nothing_and_warns(room: AccessRoom) -> None:
    before = room.state()
    assert room.policies.check(AUDITOR, TEXT).warnings == ()
    checked = room.policies.check(ADMIN, "// only a remark; no policy")
    assert (checked.valid, checked.warnings) == (True, ("the text holds no policy: roles alone decide",))
    assert "no `@id`" in room.policies.check(ADMIN, "permit (principal, action, resource);").warnings[0]
    with pytest.raises(InvalidPolicyError):
        room.policies.check(ADMIN, "permit")
    with pytest.raises(ForbiddenError):
        room.policies.check(tenant_caller(ACME, Role.DEVELOPER), TEXT)
    assert room.state() == before


def lockout(room: AccessRoom, text: str, caller: TenantCaller = ADMIN) -> str:
    before = room.state()
    with pytest.raises(UnprocessableError) as raised:
        room.policies.publish(caller, text)
    assert raised.value.error_code == "policy_lockout"
    assert room.state() == before
    return raised.value.message


LOCKING = {
    "everything": '@id("x") forbid (principal, action, resource);',
    "publish": f'@id("x") forbid (principal, {PUBLISH}, resource);',
    "activate": '@id("x") forbid (principal, action == Modelkeep::Action::"policy:activate", resource);',
    "read": '@id("x") forbid (principal, action == Modelkeep::Action::"policy:read", resource);',
    "people": '@id("x") forbid (principal is Modelkeep::User, action, resource);',
    "administrators": '@id("x") forbid (principal, action, resource)'
    ' when { principal.roles.contains("tenant-admin") };',
    "all-but-one-name": f'@id("x") forbid (principal, {PUBLISH}, resource) unless {{ principal.name == "app" }};',
    "all-but-the-old-stand-in": f'@id("x") forbid (principal, {PUBLISH}, resource)'
    ' unless { principal.name == "any administrator" };',
    "all-but-one-principal": f'@id("x") forbid (principal, {PUBLISH}, resource)'
    ' unless { principal == Modelkeep::User::"principal-app" };',
    "fails": f'@id("x") permit (principal, {PUBLISH}, resource)'
    " when { context.version - 9223372036854775807 - 2 > 0 };",
}


@pytest.mark.parametrize("text", LOCKING.values(), ids=LOCKING)
def test_what_would_lock_administrators_out_is_refused(room: AccessRoom, text: str) -> None:
    message = lockout(room, text)
    assert message.startswith("`x` would deny `policy:" if "9223372036854775807" not in text else "an error in")
    with pytest.raises(UnprocessableError):
        room.policies.check(AUDITOR, text)


@pytest.mark.parametrize(
    "condition",
    ['principal.name == "app"', 'principal == Modelkeep::User::"principal-app"', 'principal.name like "a*p"'],
    ids=["name", "principal", "pattern"],
)
def test_nobody_publishes_what_locks_the_publisher_out(room: AccessRoom, condition: str) -> None:
    text = f'@id("x") forbid (principal, {PUBLISH}, resource) when {{ {condition} }};'
    expected = "you could not publish again: `x` would deny it; let a member publish this who can still mend it"
    assert lockout(room, text) == expected
    with pytest.raises(UnprocessableError):
        room.policies.check(ADMIN, text)
    # Another administrator may do it, and is still there to mend it.
    other = tenant_caller(ACME, name="other")
    assert room.policies.publish(other, text).version == 2
    with pytest.raises(ForbiddenError):
        room.policies.publish(ADMIN, "")
    assert room.policies.publish(other, "").version == 3


def test_a_publisher_by_policy_cannot_drop_the_policy_that_made_it_one(room: AccessRoom) -> None:
    developer = tenant_caller(ACME, Role.DEVELOPER, name="dev")
    given = f'@id("dev-publishes") permit (principal, {PUBLISH}, resource) when {{ principal.name == "dev" }};'
    room.policies.publish(ADMIN, given)
    assert room.policies.publish(developer, given + TEXT).version == 3
    assert "nothing would permit it" in lockout(room, TEXT, developer)
    assert room.policies.publish(ADMIN, TEXT).version == 4
    with pytest.raises(ForbiddenError):
        room.policies.publish(developer, given)


def test_rolling_back_to_what_locks_out_is_refused(room: AccessRoom) -> None:
    bad = f'@id("x") forbid (principal, {PUBLISH}, resource) when {{ principal.name == "app" }};'
    version = room.policies.publish(tenant_caller(ACME, name="other"), bad).version
    room.policies.publish(tenant_caller(ACME, name="other"), "")
    before = room.state()
    with pytest.raises(UnprocessableError) as raised:
        room.policies.activate(ADMIN, version)
    assert raised.value.error_code == "policy_lockout"
    assert room.state() == before


def test_policies_that_except_administrators_are_taken(room: AccessRoom) -> None:
    text = '@id("x") forbid (principal, action, resource) unless { principal.roles.contains("tenant-admin") };'
    room.policies.publish(ADMIN, text)
    with pytest.raises(ForbiddenError):
        room.policies.list(AUDITOR, PageRequest())
    assert room.policies.activate(ADMIN, 1).state == "active"


def test_an_account_that_is_administrator_may_publish(room: AccessRoom) -> None:
    account = tenant_caller(ACME, Role.TENANT_ADMIN, name="ci", kind=PrincipalKind.SERVICE_ACCOUNT)
    assert room.policies.publish(account, TEXT).created_by == "principal-ci"


@pytest.mark.parametrize("call", ["get", "activate"])
def test_a_stored_text_that_is_not_what_was_published_is_neither_shown_nor_activated(
    room: AccessRoom, call: str
) -> None:
    room.put_policy(ACME, TEXT, sha256="0" * 64)
    room.put_policy(ACME, "")
    before = room.state()
    with pytest.raises(IntegrityError):
        getattr(room.policies, call)(ADMIN, 2)
    assert room.state() == before


def test_a_stored_text_that_is_no_longer_valid_is_not_activated(room: AccessRoom) -> None:
    room.put_policy(ACME, 'permit (principal, action == Modelkeep::Action::"model:old", resource);')
    room.put_policy(ACME, "")
    before = room.state()
    with pytest.raises(InvalidPolicyError):
        room.policies.activate(ADMIN, 2)
    assert room.state() == before


def test_publishing_at_once_gives_each_its_own_version(room: AccessRoom) -> None:
    texts = [f'@id("p{number}") {TEXT.partition(") ")[2]}' for number in range(4)]
    found: dict[int, Any] = {}
    ready = threading.Barrier(len(texts))

    def publish(text: str) -> None:
        ready.wait()
        published = room.policies.publish(ADMIN, text)
        found[published.version] = published.text

    threads = [threading.Thread(target=publish, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [2, 3, 4, 5]
    assert dict(stored(room)[1:]) == found
    active = [one.version for one in room.policies.list(ADMIN, PageRequest()).items if one.state == "active"]
    assert active == [5]
    assert [event.facts["version"] for event in room.recorder.events] == [2, 3, 4, 5]


def test_a_failed_record_leaves_no_version(room: AccessRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    before = room.state()

    def fail(*_: object) -> None:
        raise IntegrityError("the log cannot be written")

    monkeypatch.setattr(room.recorder, "record", fail)
    with pytest.raises(IntegrityError):
        room.policies.publish(ADMIN, TEXT)
    assert room.state() == before


def test_a_default_is_installed_in_the_tenants_own_transaction_or_the_platforms(room: AccessRoom) -> None:
    fresh = tenant_caller("dddddddd-0000-4000-8000-000000000004")  # type: ignore[arg-type]
    with room.database.platform() as tx:
        room.policies.install_default(tx, fresh.tenant)
    assert room.policies.get(fresh, 1).created_by == "platform"


def test_a_policy_of_a_tenant_made_before_its_first_version_becomes_version_one(
    room: AccessRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow = room.authorizer.require(ADMIN, Action.POLICY_PUBLISH, POLICIES)
    monkeypatch.setattr(room.authorizer, "require", lambda *_: allow)
    with room.database.tenant(ACME, by=BY) as tx:
        tx.change(tx.delete(policy_versions))
    assert room.policies.publish(ADMIN, TEXT).version == 1


def test_versions_stop_at_the_limit_and_can_still_be_activated(room: AccessRoom) -> None:
    policies = PolicyService(
        database=room.database,
        authorizer=room.authorizer,
        recorder=room.recorder,
        epoch=room.epoch,
        clock=room.clock,
        limits=FakeLimits(policy_versions=2),
    )
    policies.publish(ADMIN, TEXT)
    before = room.state()
    with pytest.raises(ConflictError) as raised:
        policies.publish(ADMIN, "")
    assert raised.value.error_code == "too_many_policies"
    assert room.state() == before
    assert policies.activate(ADMIN, 1).state == "active"


def test_a_version_that_vanishes_while_it_is_read_is_a_bug_and_says_so(room: AccessRoom) -> None:
    with pytest.raises(RuntimeError):
        room.policies._read(ADMIN, 9)


def test_a_tenant_without_an_active_version_lists_none_as_active(room: AccessRoom) -> None:
    room.authorizer.require(ADMIN, Action.POLICY_LIST, POLICIES)
    with room.database.tenant(ACME, by=BY) as tx:
        tx.change(tx.delete(active_policies))
    # The epoch did not move, so the earlier decision still holds.
    assert [one.state for one in room.policies.list(ADMIN, PageRequest()).items] == ["retired"]
