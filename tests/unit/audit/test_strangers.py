"""Refusals of strangers: counted by source and minute, and written as counts."""

import pytest

from fakes.core import FakeClock, FakeRecorder
from modelkeep_platform.audit.refusal_notes import RefusalNotes
from modelkeep_platform.audit.strangers import MAX_SOURCES, OTHERS, STRANGERS
from modelkeep_platform.core.ids import PLATFORM
from modelkeep_platform.core.refusals import WINDOW_S, Quota


@pytest.fixture
def notes(recorder: FakeRecorder, clock: FakeClock) -> RefusalNotes:
    return RefusalNotes(recorder=recorder, clock=clock, per_window=lambda _: Quota(3, 3), max_sources=4)


def test_strangers_are_one_entry_for_each_source_and_minute(
    notes: RefusalNotes, recorder: FakeRecorder, clock: FakeClock
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
    notes: RefusalNotes, recorder: FakeRecorder, sources: list[str], shown: list[str]
) -> None:
    for source in sources:
        notes.of_stranger(source, 401)
    notes.close()
    assert [event.personal["source"] for event in recorder.events] == shown


def test_a_flood_of_sources_fills_one_counter_and_not_the_log(notes: RefusalNotes, recorder: FakeRecorder) -> None:
    for number in range(300):
        notes.of_stranger(f"198.51.100.{number % 250}", 401)
    notes.close()
    counts = {event.personal["source"]: event.facts["count"] for event in recorder.events}
    assert len(counts) == 5
    assert counts[OTHERS] == 300 - 4 - 4
    assert MAX_SOURCES == 200
