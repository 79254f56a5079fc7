"""The platform's time never goes back, whatever the system's clock does, and is lost by no pause between readings."""

import logging
import threading
from datetime import UTC, datetime

import pytest

from modelkeep_platform.telemetry import system
from modelkeep_platform.telemetry.system import SystemClock

NOON = 1_800_000_000.25


class Machine:
    """What the operating system says: two clocks that go on together, until one is set."""

    def __init__(self) -> None:
        self.wall, self.steady = NOON, 50.0

    def time(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.steady

    def pass_(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr(system, "time", machine)
    return machine


def test_it_is_the_systems_clock(machine: Machine) -> None:
    clock = SystemClock()
    for _ in range(3):
        assert clock.now_s() == int(machine.wall)
        assert clock.now() == datetime.fromtimestamp(machine.wall, UTC)
        assert clock.monotonic_s() == machine.steady
        machine.pass_(1234.5)


@pytest.mark.parametrize("back_s", [1, 60, 86_400], ids=["a second", "a minute", "a day"])
def test_set_back_it_goes_on_from_where_it_was(machine: Machine, back_s: int) -> None:
    clock = SystemClock()
    before = clock.now_s()
    machine.wall -= back_s
    assert clock.now_s() == before
    machine.pass_(10)
    assert clock.now_s() == before + 10
    assert clock.now().timestamp() == pytest.approx(NOON + 10)
    # The system's clock catches up, and leads from then on.
    machine.wall += back_s + 5
    assert clock.now_s() == before + 15


def test_set_forward_it_follows_at_once(machine: Machine) -> None:
    clock = SystemClock()
    clock.now_s()
    machine.wall += 3600
    assert clock.now_s() == int(machine.wall)


def test_it_does_not_go_back_when_a_wrong_time_is_mended(machine: Machine) -> None:
    clock = SystemClock()
    machine.wall += 3600
    ahead = clock.now_s()
    machine.wall -= 3600
    assert clock.now_s() == ahead
    assert SystemClock().now_s() == ahead - 3600


def test_a_pause_between_the_two_readings_moves_nothing(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = SystemClock()
    before = clock.now_s()
    pauses = [100.0]

    def held_up() -> float:
        wall = machine.wall
        machine.pass_(pauses.pop() if pauses else 0.0)
        return wall

    monkeypatch.setattr(machine, "time", held_up)
    assert clock.now_s() == before + 100
    assert clock.now_s() == before + 100 == int(machine.wall)
    assert caplog.records == []


def test_it_follows_what_other_processes_have_reached(machine: Machine) -> None:
    clock = SystemClock()
    clock.not_before(int(NOON) + 600)
    assert clock.now_s() == int(NOON) + 600
    machine.pass_(30)
    assert clock.now_s() == int(NOON) + 630
    clock.not_before(int(NOON))
    assert clock.now_s() == int(NOON) + 630


def test_it_says_once_that_the_clock_was_set_back_and_once_that_it_caught_up(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    clock = SystemClock()
    with caplog.at_level(logging.WARNING):
        clock.now_s()
        machine.wall -= 3600
        for _ in range(3):
            clock.now_s()
        assert [record.message for record in caplog.records] == ["the system's clock was set back"]
        assert caplog.records[0].__dict__["fields"]["count"] == 3600
        machine.wall += 3600
        for _ in range(3):
            clock.now_s()
    assert [record.message for record in caplog.records][1:] == ["the system's clock has caught up"]


def test_threads_never_see_it_go_back() -> None:
    clock = SystemClock()
    wrong: list[tuple[float, float]] = []

    def look() -> None:
        last = clock.now().timestamp()
        for _ in range(5_000):
            now = clock.now().timestamp()
            if now < last:
                wrong.append((last, now))
            last = now

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
