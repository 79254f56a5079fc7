"""The authorizer: reasons, two sides, what is kept, and what is recorded of refusals."""

import dataclasses
import logging
import threading
from dataclasses import replace
from typing import Any

import pytest

from fakes.access import FOREIGN, INITECH, MODEL, AccessRoom, refused
from fakes.core import ACME, GLOBEX, FakeClock, FakeRecorder, operator_caller, tenant_caller
from modelkeep_platform.access.refusals import RefusalLog
from modelkeep_platform.access.service import NOT_FOUND, OWNER_FORBIDS
from modelkeep_platform.access.store import ActiveGrant
from modelkeep_platform.core.actions import PLATFORM_ACTIONS, Action
from modelkeep_platform.core.callers import Caller, PrincipalKind, Role
from modelkeep_platform.core.decisions import Attributes, Side
from modelkeep_platform.core.errors import ForbiddenError, NotFoundError, UnavailableError
from modelkeep_platform.core.events import Event, Outcome
from modelkeep_platform.core.ids import PLATFORM, ObjectId, PrincipalId, TenantId
from modelkeep_platform.core.refs import PLATFORM_REF, Kind, ResourceRef, collection, missing
from modelkeep_platform.core.refusals import Quota

DEVELOPER = tenant_caller(ACME, Role.DEVELOPER)
ANALYST = tenant_caller(ACME, Role.ANALYST)
FAILS = '@id("x") permit (principal, action, resource) when { context.version + 9223372036854775807 > 0 };'


def denied(room: AccessRoom, caller: Caller, action: Action, ref: ResourceRef, facts: Attributes | None = None) -> Any:
    with pytest.raises(ForbiddenError) as raised:
        room.authorizer.require(caller, action, ref, facts)
    return raised.value


def test_an_allow_decision_says_who_what_by_which_policies_and_version(room: AccessRoom) -> None:
    decision = room.authorizer.require(DEVELOPER, Action.MODEL_READ, MODEL)
    assert decision.allow
    assert (decision.action, decision.ref, decision.caller_tenant) == (Action.MODEL_READ, MODEL, ACME)
    assert decision.sides == (Side(tenant=ACME, policies=("developer-builds",), policy_version=1),)
    assert (decision.reasons, decision.grant_id, decision.expires_at) == ((), None, None)
    assert room.recorder.events == []


def test_a_refusal_says_why_and_what_to_do(room: AccessRoom) -> None:
    error = denied(room, tenant_caller(ACME, Role.ANALYST, Role.AUDITOR), Action.MODEL_DELETE, MODEL)
    reason = "no policy permits `model:delete` to the roles `analyst, auditor`"
    assert error.error_code == "forbidden"
    assert error.message == f"`model:delete` is denied: {reason}; ask the tenant's administrator"
    assert error.details == {"action": "model:delete", "reasons": [reason], "policies": []}


def test_every_forbidding_policy_is_named(room: AccessRoom) -> None:
    room.put_policy(
        ACME, '@id("a") forbid (principal, action, resource); @id("b") forbid (principal, action, resource);'
    )
    error = denied(room, DEVELOPER, Action.MODEL_READ, MODEL)
    assert error.details["policies"] == ["a", "b"]
    assert error.details["reasons"] == ["policy `a` forbids it", "policy `b` forbids it"]


def test_a_refusal_is_recorded_in_the_callers_log_with_its_decision(room: AccessRoom) -> None:
    denied(room, ANALYST, Action.MODEL_DELETE, MODEL)
    (event,) = room.recorder.events
    assert refused(event, ANALYST) == ("model:delete", event.decision.reasons[0] if event.decision else None)
    assert (event.ref, event.facts["kind"]) == (MODEL, "model")
    assert event.decision is not None
    assert not event.decision.allow


def test_what_is_foreign_is_refused_to_the_byte_like_what_is_missing(room: AccessRoom) -> None:
    room.put_grant(FOREIGN, INITECH, ["model:read"])
    errors, events = [], []
    for ref in (
        FOREIGN,
        missing(GLOBEX, Kind.MODEL),
        missing(ACME, Kind.MODEL),
        ResourceRef(owner=GLOBEX, kind=Kind.MODEL, object_id=ObjectId("mdl_none")),
    ):
        with pytest.raises(NotFoundError) as raised:
            room.authorizer.require(DEVELOPER, Action.MODEL_READ, ref)
        errors.append((raised.value.message, raised.value.error_code, dict(raised.value.details)))
        event = room.recorder.events[-1]
        events.append((event.tenant, event.action, event.ref, dict(event.facts)))
    assert errors == [(NOT_FOUND, "not_found", {})] * 4
    assert events == [(ACME, Action.MODEL_READ, None, {"kind": "model", "reason": "not found"})] * 4


def test_a_guess_reads_the_database_as_often_whether_the_object_is_there_or_not(
    room: AccessRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[ResourceRef] = []
    read = room.store._read_grants

    def counted(ref: ResourceRef, grantee: TenantId) -> tuple[ActiveGrant, ...]:
        reads.append(ref)
        return read(ref, grantee)

    monkeypatch.setattr(room.store, "_read_grants", counted)
    for ref in (FOREIGN, missing(GLOBEX, Kind.MODEL)) * 3:
        assert not room.authorizer.allows(DEVELOPER, Action.MODEL_READ, ref)
    assert reads == [FOREIGN, missing(GLOBEX, Kind.MODEL)] * 3


def test_a_grant_of_nothing_opens_nothing(room: AccessRoom) -> None:
    room.put_grant(missing(GLOBEX, Kind.MODEL), ACME, ["model:read"])
    with pytest.raises(NotFoundError):
        room.authorizer.require(DEVELOPER, Action.MODEL_READ, missing(GLOBEX, Kind.MODEL))


def test_a_granted_object_without_the_verb_is_forbidden_and_says_so(room: AccessRoom) -> None:
    room.put_grant(FOREIGN, ACME, ["model:read"])
    error = denied(room, DEVELOPER, Action.MODEL_PREDICT, FOREIGN)
    assert error.details["reasons"] == ["`model:predict` is not granted on this object"]
    (event,) = room.recorder.events
    assert (event.tenant, event.ref) == (ACME, None)


def test_each_side_has_its_own_policies_and_version(room: AccessRoom) -> None:
    room.put_grant(FOREIGN, ACME, ["model:read"])
    room.put_policy(ACME, '@id("mine") permit (principal, action, resource) when { context.cross_tenant };')
    for _ in range(3):
        room.put_policy(GLOBEX, '@id("theirs") permit (principal, action, resource) when { context.cross_tenant };')
    decision = room.authorizer.require(DEVELOPER, Action.MODEL_READ, FOREIGN)
    assert decision.side(ACME) == Side(tenant=ACME, policies=("developer-builds", "mine"), policy_version=2)
    assert decision.side(GLOBEX) == Side(tenant=GLOBEX, policies=("grant", "theirs"), policy_version=4)
    assert decision.side(INITECH) is None


CALLERS_FORBID = '@id("mine") forbid (principal, action, resource) when { context.cross_tenant };'
OWNERS_FORBID = '@id("theirs") forbid (principal, action, resource) when { context.cross_tenant };'


@pytest.mark.parametrize("owners", [OWNERS_FORBID, FAILS], ids=["forbids", "fails"])
def test_of_a_refusal_by_the_owners_policies_the_caller_learns_that_alone(room: AccessRoom, owners: str) -> None:
    room.put_grant(FOREIGN, ACME, ["model:read"])
    room.put_policy(GLOBEX, owners)
    error = denied(room, DEVELOPER, Action.MODEL_READ, FOREIGN, {"version": 3})
    assert error.message == f"`model:read` is denied: {OWNER_FORBIDS}; ask the owner"
    assert error.details == {"action": "model:read", "reasons": [OWNER_FORBIDS], "policies": []}
    (event,) = room.refusals()
    assert (event.tenant, event.facts["reason"]) == (ACME, OWNER_FORBIDS)
    assert event.decision is not None
    assert event.decision.side(ACME) is None, "nothing of the caller's own policies refused it"


def test_where_both_forbid_the_caller_learns_its_own_tenants_reason(room: AccessRoom) -> None:
    room.put_grant(FOREIGN, ACME, ["model:read"])
    room.put_policy(ACME, CALLERS_FORBID)
    room.put_policy(GLOBEX, OWNERS_FORBID)
    error = denied(room, DEVELOPER, Action.MODEL_READ, FOREIGN)
    assert error.details["policies"] == ["mine"]
    (event,) = room.refusals()
    assert event.decision is not None
    assert event.decision.sides == (Side(tenant=ACME, policies=("mine",), policy_version=2),)


def test_a_grant_is_an_allow_decision_about_its_owner_and_names_itself(room: AccessRoom) -> None:
    grant_id = room.put_grant(FOREIGN, ACME, ["model:read"])
    decision = room.authorizer.require(DEVELOPER, Action.MODEL_READ, FOREIGN)
    assert decision.grant_id == grant_id
    with room.database.tenant(GLOBEX, by=decision, read_only=True) as tx:
        assert tx.owner == GLOBEX


@pytest.mark.parametrize("side", ["own", "owner", "caller"])
def test_a_policy_that_fails_denies_and_alerts_without_telling_the_caller(
    room: AccessRoom, side: str, caplog: pytest.LogCaptureFixture
) -> None:
    room.put_grant(FOREIGN, ACME, ["model:read"])
    room.put_policy(GLOBEX if side == "owner" else ACME, FAILS)
    ref = MODEL if side == "own" else FOREIGN
    logger = logging.getLogger("modelkeep_platform")
    propagated, logger.propagate = logger.propagate, True
    try:
        with caplog.at_level(logging.ERROR):
            error = denied(room, DEVELOPER, Action.MODEL_READ, ref, {"version": 3})
    finally:
        logger.propagate = propagated
    told = OWNER_FORBIDS if side == "owner" else "a policy failed while it was evaluated"
    assert error.details == {"action": "model:read", "reasons": [told], "policies": []}
    assert "integer overflow" not in error.message
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    said = vars(record)["fields"]
    assert (said["tenant"], said["action"]) == (GLOBEX if side == "owner" else ACME, "model:read")
    # The engine's words repeat the policy's text, which is its tenant's.
    assert "integer overflow" not in str(vars(record))
    assert room.refusals()[-1].facts["reason"] == told


def test_a_failing_policy_hides_behind_no_other_reason(room: AccessRoom) -> None:
    # The guard of operators forbids by name, the tenant's policy by failing: the name is what is said.
    room.put_policy(ACME, FAILS)
    error = denied(
        room,
        tenant_caller(),
        Action.TENANT_CREATE,
        ResourceRef(owner=ACME, kind=Kind.PLATFORM, object_id=MODEL.object_id),
        {"version": 1},
    )
    assert error.details["policies"] == ["guard-operators"]


@pytest.mark.parametrize("action", sorted(set(Action) - PLATFORM_ACTIONS), ids=str)
def test_operators_are_refused_tenants_actions_before_policy_is_asked(room: AccessRoom, action: Action) -> None:
    for ref in (collection(ACME, Kind.MODEL), missing(ACME, Kind.MODEL), PLATFORM_REF):
        error = denied(room, operator_caller(), action, ref)
        assert error.error_code == "operator_forbidden"
        assert error.details["reasons"] == [
            "operators run the platform; they have no access to what belongs to tenants"
        ]
        assert refused(room.recorder.events[-1], operator_caller())[0] == action


def test_operators_reach_the_platform_and_nothing_missing(room: AccessRoom) -> None:
    decision = room.authorizer.require(operator_caller(), Action.TENANT_LIST, PLATFORM_REF)
    assert decision.sides == (Side(tenant=PLATFORM, policies=("operator-platform",), policy_version=0),)
    with pytest.raises(NotFoundError):
        room.authorizer.require(operator_caller(), Action.TENANT_SUSPEND, missing(PLATFORM, Kind.PLATFORM))
    assert room.recorder.events[-1].tenant == PLATFORM
    error = denied(room, operator_caller(), Action.ISSUER_ROTATE, collection(PLATFORM, Kind.JOB))
    assert error.details["reasons"] == ["no policy permits `issuer:rotate` to the roles ``"]


def test_allows_answers_as_require_does_and_records_nothing(room: AccessRoom) -> None:
    for action in Action:
        try:
            room.authorizer.require(ANALYST, action, collection(ACME, Kind.MODEL))
            required = True
        except ForbiddenError:
            required = False
        room.recorder.events.clear()
        assert room.authorizer.allows(ANALYST, action, collection(ACME, Kind.MODEL)) is required
        assert room.recorder.events == []


# --- what is kept -------------------------------------------------------------------------------


def test_an_allow_is_kept_for_its_epoch_and_found_without_any_storage(
    room: AccessRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    decision = room.authorizer.require(DEVELOPER, Action.MODEL_READ, MODEL)
    monkeypatch.setattr(room.authorizer, "_decide", None)
    assert room.authorizer.require(DEVELOPER, Action.MODEL_READ, MODEL) is decision
    assert room.authorizer.allows(DEVELOPER, Action.MODEL_READ, MODEL)
    assert room.authorizer.cached(DEVELOPER, Action.MODEL_READ, MODEL, {}) is decision
    with room.database.platform() as tx:
        tx.bump_epoch()
    assert room.authorizer.cached(DEVELOPER, Action.MODEL_READ, MODEL, {}) is decision
    room.epoch.refresh()
    assert room.authorizer.cached(DEVELOPER, Action.MODEL_READ, MODEL, {}) is None


def test_a_refusal_is_never_kept(room: AccessRoom) -> None:
    for _ in range(2):
        denied(room, ANALYST, Action.MODEL_DELETE, MODEL)
    assert len(room.recorder.events) == 2
    assert room.authorizer.cached(ANALYST, Action.MODEL_DELETE, MODEL, {}) is None


@pytest.mark.parametrize(
    ("caller", "ref", "facts"),
    [
        (replace(DEVELOPER, tenant=GLOBEX), MODEL, {}),
        (replace(DEVELOPER, principal=PrincipalId("other")), MODEL, {}),
        (replace(DEVELOPER, principal_kind=PrincipalKind.SERVICE_ACCOUNT), MODEL, {}),
        (replace(DEVELOPER, name="other"), MODEL, {}),
        (replace(DEVELOPER, roles=frozenset()), MODEL, {}),
        (replace(DEVELOPER, roles=frozenset({Role.ANALYST})), MODEL, {}),
        (operator_caller(), MODEL, {}),
        (DEVELOPER, replace(MODEL, owner=GLOBEX), {}),
        (DEVELOPER, replace(MODEL, kind=Kind.DATASET), {}),
        (DEVELOPER, replace(MODEL, object_id=ObjectId("mdl_2")), {}),
        (DEVELOPER, MODEL, {"name": "m"}),
        (DEVELOPER, MODEL, {"alias": "production"}),
        (DEVELOPER, MODEL, {"version": 1}),
    ],
    ids=lambda value: str(value)[-60:],
)
def test_a_kept_decision_answers_no_other_question(
    room: AccessRoom, caller: Caller, ref: ResourceRef, facts: Attributes
) -> None:
    room.authorizer.require(DEVELOPER, Action.MODEL_READ, MODEL)
    assert room.authorizer.cached(caller, Action.MODEL_READ, ref, facts) is None


def test_a_kept_decision_is_found_by_what_policies_see(room: AccessRoom) -> None:
    room.put_policy(ACME, '@id("one") forbid (principal, action, resource) when { context.version == 1 };')
    room.authorizer.require(DEVELOPER, Action.MODEL_READ, MODEL, {"version": True})  # no number: policies see 0
    denied(room, DEVELOPER, Action.MODEL_READ, MODEL, {"version": 1})
    assert room.authorizer.cached(DEVELOPER, Action.MODEL_READ, MODEL, {"version": 0, "more": "x"}) is not None
    again = replace(DEVELOPER, token_id="another", request_id=DEVELOPER.request_id)
    assert room.authorizer.cached(again, Action.MODEL_READ, MODEL, {}) is not None


def test_kept_decisions_are_bounded_and_the_one_used_longest_ago_goes(
    room: AccessRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room.authorizer._decisions, "_size", 2)
    for version in (1, 2, 1, 3):
        room.authorizer.require(DEVELOPER, Action.MODEL_READ, MODEL, {"version": version})
    kept = [room.authorizer.cached(DEVELOPER, Action.MODEL_READ, MODEL, {"version": n}) is not None for n in (1, 2, 3)]
    assert kept == [True, False, True]


def test_nothing_is_decided_while_the_epoch_cannot_be_read(room: AccessRoom) -> None:
    room.authorizer.require(DEVELOPER, Action.MODEL_READ, MODEL)
    room.clock.advance(1.5)
    with pytest.raises(UnavailableError) as raised:
        room.authorizer.require(DEVELOPER, Action.MODEL_READ, MODEL)
    assert raised.value.error_code == "epoch_unreadable"


def test_a_decision_made_while_a_policy_changed_is_not_kept_for_the_new_epoch(
    room: AccessRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide = room.authorizer._decide

    def slow(*asked: Any) -> Any:
        made = decide(*asked)
        room.put_policy(ACME, '@id("late") forbid (principal, action, resource);')
        return made

    monkeypatch.setattr(room.authorizer, "_decide", slow)
    room.authorizer.require(DEVELOPER, Action.MODEL_READ, MODEL)
    monkeypatch.undo()
    assert denied(room, DEVELOPER, Action.MODEL_READ, MODEL).details["policies"] == ["late"]


# --- refusals -----------------------------------------------------------------------------------


def log_of(room: AccessRoom, *, per_window: int) -> RefusalLog:
    return RefusalLog(
        database=room.database,
        recorder=room.recorder,
        clock=room.clock,
        per_window=lambda _: Quota(per_window, per_window),
    )


@pytest.fixture
def decision(room: AccessRoom) -> Any:
    denied(room, ANALYST, Action.MODEL_DELETE, MODEL)
    (event,) = room.recorder.events
    room.recorder.events.clear()
    return event.decision


def test_beyond_the_quota_of_a_minute_refusals_are_counted_and_the_count_recorded(
    room: AccessRoom, decision: Any, clock: FakeClock, recorder: FakeRecorder
) -> None:
    log = log_of(room, per_window=2)
    began = clock.now_s()
    for _ in range(5):
        log.record(ANALYST, decision)
    assert [event.action for event in recorder.events] == [Action.MODEL_DELETE] * 2
    clock.advance(60)
    log.record(ANALYST, decision)
    summary, single = recorder.events[2:]
    assert (summary.tenant, summary.action, summary.outcome, summary.actor) == (
        ACME,
        "refusal:summary",
        Outcome.DENIED,
        None,
    )
    assert summary.facts == {"unrecorded": 3, "since": began, "window_s": 60}
    assert single.action == Action.MODEL_DELETE


def test_one_account_takes_no_more_than_its_part_of_its_tenants_quota(room: AccessRoom, decision: Any) -> None:
    log = RefusalLog(
        database=room.database,
        recorder=room.recorder,
        clock=room.clock,
        per_window=lambda _: Quota(tenant=3, principal=2),
    )
    other = dataclasses.replace(ANALYST, principal=PrincipalId("usr_other"))
    for caller in (*[ANALYST] * 5, *[other] * 5):
        log.record(caller, decision)
    assert [event.actor for event in room.recorder.events] == [ANALYST, ANALYST, other]
    log.flush()
    assert room.recorder.events[-1].facts["unrecorded"] == 7


def test_a_tenant_has_its_own_quota(room: AccessRoom, decision: Any) -> None:
    log = log_of(room, per_window=1)
    for caller in (ANALYST, ANALYST, tenant_caller(GLOBEX, Role.ANALYST)):
        log.record(caller, decision)
    assert [event.tenant for event in room.recorder.events] == [ACME, GLOBEX]


def test_counts_are_flushed_once_when_the_server_stops(room: AccessRoom, decision: Any) -> None:
    log = log_of(room, per_window=1)
    for _ in range(3):
        log.record(ANALYST, decision)
    log.record(tenant_caller(GLOBEX), decision)
    log.flush()
    log.flush()
    assert [(event.tenant, event.facts.get("unrecorded")) for event in room.recorder.events] == [
        (ACME, None),
        (GLOBEX, None),
        (ACME, 2),
    ]
    room.authorizer.close()


def test_counts_of_minutes_that_are_over_are_recorded_without_another_refusal(room: AccessRoom, decision: Any) -> None:
    log = log_of(room, per_window=1)
    for _ in range(3):
        log.record(ANALYST, decision)
    log.flush(unfinished=False)
    assert len(room.recorder.events) == 1
    room.clock.advance(60)
    log.flush(unfinished=False)
    assert [event.facts.get("unrecorded") for event in room.recorder.events] == [None, 2]


def test_a_count_that_cannot_be_recorded_is_kept_and_keeps_no_other_tenants(
    room: AccessRoom, decision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, record = log_of(room, per_window=1), room.recorder.record
    for caller in (ANALYST, tenant_caller(GLOBEX)):
        for _ in range(3):
            log.record(caller, decision)
    room.recorder.events.clear()

    def fail(tx: Any, event: Event) -> None:
        if event.tenant == ACME:
            raise UnavailableError("the audit log cannot take entries")
        record(tx, event)

    monkeypatch.setattr(room.recorder, "record", fail)
    with pytest.raises(UnavailableError):
        log.flush()
    room.clock.advance(60)
    with pytest.raises(UnavailableError):
        log.record(ANALYST, decision)
    monkeypatch.undo()
    log.flush()
    assert [(event.tenant, event.facts.get("unrecorded")) for event in room.recorder.events] == [(GLOBEX, 2), (ACME, 2)]


def test_a_minute_without_excess_leaves_no_summary(room: AccessRoom, decision: Any) -> None:
    log = log_of(room, per_window=2)
    for _ in range(2):
        log.record(ANALYST, decision)
        room.clock.advance(60)
    assert all(event.action == Action.MODEL_DELETE for event in room.recorder.events)


def test_a_refusal_that_cannot_be_recorded_is_still_no(room: AccessRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise UnavailableError("the audit log cannot take entries")

    monkeypatch.setattr(room.recorder, "record", fail)
    with pytest.raises(UnavailableError):
        room.authorizer.require(ANALYST, Action.MODEL_DELETE, MODEL)


def test_counting_is_exact_under_threads(room: AccessRoom, decision: Any) -> None:
    log = log_of(room, per_window=3)

    def knock() -> None:
        for _ in range(25):
            log.record(ANALYST, decision)

    threads = [threading.Thread(target=knock) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.flush()
    assert len(room.recorder.events) == 4
    assert room.recorder.events[-1].facts["unrecorded"] == 97
