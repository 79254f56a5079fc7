"""Refusals at the edge: noted singly up to a quota, counted beyond it; strangers counted by source and minute."""

import pytest

from fakes.core import ACME, GLOBEX, FakeClock, FakeRecorder, operator_caller, tenant_caller
from modelkeep_platform.audit.refusals import MAX_SOURCES, OTHERS, STRANGERS, RefusalNotes
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
    return RefusalNotes(recorder=recorder, clock=clock, per_window=lambda _: Quota(3, 3), max_sources=4)


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


def test_strangers_are_one_entry_for_each_source_and_minute(
    notes: RefusalNotes, recorder: Stubborn, clock: FakeClock
) -> None:
    began = clock.now_s()
    for source, status in [("192.0.2.1", 401), ("192.0.2.1", 401), ("192.0.2.1", 404), ("192.0.2.2", 401)]:
        notes.of_stranger(source, status)
    notes.sweep()
    assert recorder.events == [], "nothing is written before the minute is over"
    clock.advance(WINDOW_S)
    notes.sweep()
    notes.of_stranger("192.0.2.1", 401)
    clock.advance(WINDOW_S)
    notes.sweep()
    first, second, later = recorder.events
    assert {event.tenant for event in recorder.events} == {PLATFORM}
    assert {event.action for event in recorder.events} == {STRANGERS}
    assert all(event.actor is None for event in recorder.events)
    assert first.facts == {"count": 3, "status_401": 2, "status_404": 1, "since": began, "window_s": WINDOW_S}
    assert first.personal == {"source": "192.0.2.1"}, "an address is personal: it is sealed"
    assert (second.facts["count"], second.personal["source"]) == (1, "192.0.2.2")
    assert later.facts["since"] == began + WINDOW_S


@pytest.mark.parametrize(
    ("sources", "shown"),
    [
        pytest.param(["2001:db8:1:2::1", "2001:db8:1:2:ffff::9"], ["2001:db8:1:2::/64"], id="one-subscriber"),
        pytest.param(["::ffff:192.0.2.1", "192.0.2.1"], ["192.0.2.1"], id="mapped"),
        pytest.param(["", ""], ["unknown"], id="none"),
        pytest.param(["x" * 500], ["x" * 64], id="no-address"),
    ],
)
def test_a_source_is_what_one_subscriber_has(
    notes: RefusalNotes, recorder: Stubborn, sources: list[str], shown: list[str]
) -> None:
    for source in sources:
        notes.of_stranger(source, 401)
    notes.close()
    assert [event.personal["source"] for event in recorder.events] == shown


def test_a_flood_of_sources_fills_one_counter_and_not_the_log(notes: RefusalNotes, recorder: Stubborn) -> None:
    for number in range(300):
        notes.of_stranger(f"198.51.100.{number % 250}", 401)
    notes.close()
    counts = {event.personal["source"]: event.facts["count"] for event in recorder.events}
    assert len(counts) == 5
    assert counts[OTHERS] == 300 - 4 - 4
    assert MAX_SOURCES == 200


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
