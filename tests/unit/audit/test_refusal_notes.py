"""Refusals at the edge: noted singly up to a quota, counted beyond it; written when a minute is over."""

import pytest

from fakes.core import ACME, GLOBEX, FakeClock, FakeRecorder, operator_caller, tenant_caller
from modelkeep_platform.audit.refusal_notes import RefusalNotes
from modelkeep_platform.audit.strangers import STRANGERS
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.errors import UnavailableError
from modelkeep_platform.core.events import Event, Outcome
from modelkeep_platform.core.ids import PLATFORM
from modelkeep_platform.core.refusals import SUMMARY, WINDOW_S, Quota


class Stubborn(FakeRecorder):
    """A recorder that takes nothing while it is told so."""

    refuses = False

    def record_soon(self, event: Event) -> None:
        if self.refuses:
            raise UnavailableError("the audit log cannot take entries; try again", code="audit_unavailable")
        super().record_soon(event)


@pytest.fixture
def recorder() -> Stubborn:
    return Stubborn()


@pytest.fixture
def notes(recorder: Stubborn, clock: FakeClock) -> RefusalNotes:
    return RefusalNotes(recorder=recorder, clock=clock, per_window=lambda _: Quota(3, 3))


def refuse(notes: RefusalNotes, times: int = 1) -> None:
    for _ in range(times):
        notes.of_caller(tenant_caller(), Action.JOB_CREATE, code="invalid_json", route="POST /v1/jobs")


def test_a_refusal_of_a_known_caller_is_an_entry_of_its_own_tenants_log(
    notes: RefusalNotes, recorder: Stubborn
) -> None:
    refuse(notes)
    notes.of_caller(operator_caller(), "request", code="too_large", route="POST /v1/tenants")
    tenants, operators = recorder.events
    assert (tenants.tenant, tenants.action, tenants.outcome) == (ACME, Action.JOB_CREATE, Outcome.DENIED)
    assert tenants.facts == {"reason": "invalid_json", "route": "POST /v1/jobs"}
    assert tenants.actor == tenant_caller()
    assert tenants.ref is None
    assert operators.tenant == PLATFORM


def test_what_failed_is_noted_as_failed(notes: RefusalNotes, recorder: Stubborn) -> None:
    notes.of_caller(
        tenant_caller(), Action.MODEL_EXPORT, code="sealed_invalid", route="GET /v1/models", outcome=Outcome.FAILED
    )
    (event,) = recorder.events
    assert (event.action, event.outcome) == (Action.MODEL_EXPORT, Outcome.FAILED)
    assert event.facts == {"error": "sealed_invalid", "route": "GET /v1/models"}


def test_refusals_on_purpose_do_not_crowd_out_what_says_that_stored_bytes_were_changed(
    notes: RefusalNotes, recorder: Stubborn
) -> None:
    refuse(notes, 100)
    for _ in range(5):
        notes.of_caller(
            tenant_caller(), Action.MODEL_EXPORT, code="sealed_invalid", route="GET", outcome=Outcome.FAILED
        )
    failed = [event for event in recorder.events if event.outcome is Outcome.FAILED]
    assert [event.action for event in failed] == [Action.MODEL_EXPORT] * 3
    notes.sweep(unfinished=True)
    counted = {event.outcome: event.facts["unrecorded"] for event in recorder.events if event.action == SUMMARY}
    assert counted == {Outcome.DENIED: 97, Outcome.FAILED: 2}


def test_past_a_tenants_quota_refusals_are_counted_and_the_count_is_one_entry(
    notes: RefusalNotes, recorder: Stubborn, clock: FakeClock
) -> None:
    began = clock.now_s()
    refuse(notes, 10)
    assert len(recorder.events) == 3
    notes.of_caller(tenant_caller(GLOBEX), Action.JOB_CREATE, code="invalid_json", route="POST /v1/jobs")
    assert len(recorder.events) == 4, "another tenant has a quota of its own"
    clock.advance(WINDOW_S)
    refuse(notes)
    summary, single = recorder.events[4:]
    assert (summary.tenant, summary.action) == (ACME, SUMMARY)
    assert summary.facts == {"unrecorded": 7, "since": began, "window_s": WINDOW_S}
    assert single.action is Action.JOB_CREATE


def test_a_count_is_written_when_its_minute_is_over_though_nobody_is_refused_again(
    notes: RefusalNotes, recorder: Stubborn, clock: FakeClock
) -> None:
    refuse(notes, 4)
    notes.sweep()
    assert [event.action for event in recorder.events] == [Action.JOB_CREATE] * 3
    clock.advance(WINDOW_S)
    notes.sweep()
    notes.sweep()
    assert [event.action for event in recorder.events[3:]] == [SUMMARY]


def test_what_the_log_does_not_take_stays_counted(notes: RefusalNotes, recorder: Stubborn, clock: FakeClock) -> None:
    refuse(notes, 5)
    notes.of_stranger("192.0.2.1", 401)
    recorder.events.clear()
    clock.advance(WINDOW_S)
    recorder.refuses = True
    notes.sweep()
    with pytest.raises(UnavailableError):
        refuse(notes)
    recorder.refuses = False
    notes.close()
    assert sorted(
        (str(event.action), event.facts.get("unrecorded", event.facts.get("count"))) for event in recorder.events
    ) == [
        (SUMMARY, 2),
        (STRANGERS, 1),
    ]


def test_a_count_that_ends_while_the_log_takes_nothing_goes_into_the_next(
    notes: RefusalNotes, recorder: Stubborn, clock: FakeClock
) -> None:
    refuse(notes, 5)
    clock.advance(WINDOW_S)
    recorder.refuses = True
    with pytest.raises(UnavailableError):
        refuse(notes)
    recorder.refuses = False
    recorder.events.clear()
    notes.close()
    assert [event.facts["unrecorded"] for event in recorder.events] == [2]


def test_it_runs_beside_requests_and_writes_everything_when_it_is_closed(
    notes: RefusalNotes, recorder: Stubborn
) -> None:
    notes.start()
    notes.of_stranger("192.0.2.1", 401)
    notes.close()
    assert [event.facts["count"] for event in recorder.events] == [1]
