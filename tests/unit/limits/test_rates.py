"""Rates over several processes: together within the rate and the burst, and near to it however requests are spread."""

from collections.abc import Callable, Iterator, Sequence

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.core import FakeClock
from modelkeep_platform.limits.bucket import Rate
from modelkeep_platform.limits.rates import Rates, Standing
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.schema import metadata
from modelkeep_platform.storage.tables.limits import request_buckets

RATE = Rate.of(6_000, burst_seconds=3)
"""100 a second, 300 at once."""


class SteppedClock(FakeClock):
    """A clock of the day that can be set; the steady one goes on."""

    step_s = 0.0

    def monotonic_s(self) -> float:
        return self.time_s - self.step_s

    def set_by(self, seconds: float) -> None:
        self.step_s += seconds
        self.time_s += seconds


class Processes:
    """Server processes on one database, as many as `alive` says."""

    def __init__(self, database: Database, clock: FakeClock, count: int) -> None:
        self.clock, self.alive = clock, count
        self.each = [Rates(database=database, clock=clock, processes=lambda: self.alive) for _ in range(count)]
        self.leases = 0

    def ask(self, at: int = 0, key: str = "acme", rate: Rate = RATE) -> Standing:
        """Ask one process for one request."""
        rates = self.each[at]
        while (standing := rates.take([(key, rate)])) is None:
            self.leases += 1
            rates.lease([(key, rate)])
        return standing

    def passed(self, seconds: float, spread: Callable[[int], Sequence[int]], rate: Rate = RATE) -> int:
        """Let each process be asked as `spread` says every 10 ms, and return how many requests passed."""
        passed = 0
        for tick in range(round(seconds * 100)):
            self.clock.advance(0.01)
            passed += sum(self.ask(at, rate=rate).allowed for at in spread(tick))
        return passed


@pytest.fixture
def quick() -> Iterator[Database]:
    """A database in memory: what is asked is how often, not how long."""
    database = Database("sqlite:///:memory:")
    metadata.create_all(database.engine, tables=[request_buckets])
    yield database
    database.close()


SPREADS: dict[str, Callable[[int], Callable[[int], Sequence[int]]]] = {
    "a flood on all": lambda count: lambda _tick: [at for at in range(count) for _ in range(3)],
    "a flood on one": lambda _count: lambda _tick: [0] * 5,
    "a flood that wanders": lambda count: lambda tick: [tick // 50 % count] * 5,
    "one floods, the others ask now and then": lambda count: lambda tick: [0, 0, 0, tick % count],
}


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("count", [2, 3, 8])
def test_processes_together_let_the_rate_through(quick: Database, clock: FakeClock, count: int, spread: str) -> None:
    processes = Processes(quick, clock, count)
    spreads = SPREADS[spread](count)
    first = processes.passed(5, spreads)
    assert first <= RATE.burst + 5 * RATE.per_second + count
    # The burst is over: what passes now is the rate, within a twentieth.
    more = processes.passed(15, spreads)
    assert 0.95 * 15 * RATE.per_second <= more <= 1.05 * 15 * RATE.per_second + count
    assert first + more <= RATE.burst + 20 * RATE.per_second + count


@pytest.mark.parametrize(("per_minute", "count"), [(10, 2), (10, 8), (60, 3), (1, 2)])
def test_small_limits_hold_among_processes(quick: Database, clock: FakeClock, per_minute: int, count: int) -> None:
    processes, rate = Processes(quick, clock, count), Rate.of(per_minute, burst_seconds=3)
    passed = processes.passed(60, lambda _tick: range(count), rate)
    # Nothing is charged that was not let through, so a whole burst and a whole minute are.
    assert rate.burst + per_minute - 1 <= passed <= rate.burst + per_minute


def test_whoever_stays_below_the_rate_is_never_refused(quick: Database, clock: FakeClock) -> None:
    processes = Processes(quick, clock, 3)
    for tick in range(3_000):
        clock.advance(0.0101)
        assert processes.ask(tick % 3).allowed


def test_the_database_is_asked_a_few_times_a_second_however_many_ask(quick: Database, clock: FakeClock) -> None:
    rate = Rate.of(60_000, burst_seconds=3)
    for alive, most in ((1, 0), (2, 8), (4, 16)):
        processes = Processes(quick, clock, alive)
        for _ in range(500):
            clock.advance(0.01)
            for _ in range(20):
                for at in range(alive):
                    processes.ask(at, rate=rate)
        lots_of_the_burst = 12
        assert processes.leases <= most * 5 + lots_of_the_burst


def test_a_second_process_finds_what_the_first_spent(quick: Database, clock: FakeClock) -> None:
    processes = Processes(quick, clock, 2)
    processes.alive = 1
    assert sum(processes.ask().allowed for _ in range(500)) == 300
    processes.alive = 2
    assert not processes.ask().allowed, "it brings what it spent"
    assert not processes.ask(1).allowed
    passed = processes.passed(10, lambda _tick: [0, 0, 1, 1])
    assert 0.9 * 1000 <= passed <= 1000 + 2


def test_whoever_is_left_alone_goes_on_by_itself_until_it_is_not(quick: Database, clock: FakeClock) -> None:
    processes = Processes(quick, clock, 2)
    processes.passed(2, lambda _tick: [0, 0, 0, 1, 1, 1])
    processes.alive, asked = 1, processes.leases
    alone = processes.passed(5, lambda _tick: [0] * 5)
    assert 500 <= alone <= 500 + RATE.burst
    assert processes.leases == asked
    processes.alive = 2
    again = processes.passed(10, lambda _tick: [0, 0, 0, 1, 1, 1])
    assert 0.9 * 1000 <= again <= 1000 + 2


@pytest.mark.parametrize("alive", [1, 2])
def test_another_rate_holds_at_once(quick: Database, clock: FakeClock, alive: int) -> None:
    # Before, every process holds a lot.
    processes, small, large = (
        Processes(quick, clock, alive),
        Rate.of(1, burst_seconds=3),
        Rate.of(60_000, burst_seconds=3),
    )
    assert all(processes.ask(at, rate=large).allowed for at in range(alive))
    assert sum(processes.ask(at, rate=small).allowed for at in range(alive) for _ in range(50)) <= 1
    assert processes.ask(rate=small).wait_s > 1
    clock.advance(0.1)
    assert processes.ask(rate=large).allowed


@pytest.mark.parametrize("step", [-86_400, -1, 1, 86_400])
@pytest.mark.parametrize("alive", [1, 3])
def test_a_clock_that_is_set_gives_a_burst_at_most_and_locks_nobody_out(
    quick: Database, alive: int, step: float
) -> None:
    clock = SteppedClock()
    processes = Processes(quick, clock, alive)
    on_all = SPREADS["a flood on all"](alive)
    processes.passed(5, on_all)
    clock.set_by(step)
    passed = processes.passed(10, on_all)
    # Alone a process goes by the steady clock, and a step is nothing to it.
    extra = 0 if alive == 1 else RATE.burst
    assert 0.9 * 1000 - RATE.per_second <= passed <= 1000 + extra + alive
    assert passed >= 0.9 * 1000 or step < 0


def test_keys_do_not_know_one_another_and_none_is_charged_when_one_refuses(quick: Database, clock: FakeClock) -> None:
    (rates,) = Processes(quick, clock, 1).each
    small, large = Rate.of(2, burst_seconds=3), Rate.of(5, burst_seconds=3)
    for left in (1, 0):
        standing = rates.take([("a", small), ("t", large)])
        assert standing is not None
        assert (standing.key, standing.remaining, standing.allowed) == ("a", left, True)
    for _ in range(5):
        refused = rates.take([("a", small), ("t", large)])
        assert refused is not None
        assert (refused.key, refused.allowed, refused.wait_s) == ("a", False, 30)
    others = [rates.take([("b", large), ("t", large)]) for _ in range(3)]
    assert [one.remaining for one in others if one is not None] == [2, 1, 0]
    over = rates.take([("b", large), ("t", large)])
    assert over is not None
    assert (over.key, over.allowed) == ("t", False)


def test_a_bucket_of_a_lost_key_is_forgotten_and_old_rows_are_cleared(
    quick: Database, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelkeep_platform.limits.rates._KEPT", 3)
    processes = Processes(quick, clock, 2)
    for number in range(10):
        assert processes.ask(key=f"k{number}").allowed
    assert list(processes.each[0]._shares) == ["k7", "k8", "k9"]
    clock.advance(121)
    processes.ask(key="new")
    with quick.platform(read_only=True) as tx:
        assert [row["key"] for row in tx.all(sa.select(request_buckets))] == ["new"]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 400),
    st.integers(1, 60),
    st.lists(
        st.tuples(st.integers(0, 2), st.one_of(st.just(0.0), st.floats(0, 0.05), st.floats(0, 20)), st.integers(1, 6)),
        max_size=60,
    ),
)
def test_any_interleaving_over_processes_is_within_rate_and_burst(
    per_minute: int, seconds: int, story: list[tuple[int, float, int]]
) -> None:
    database = Database("sqlite:///:memory:")
    metadata.create_all(database.engine, tables=[request_buckets])
    try:
        clock, rate = FakeClock(), Rate.of(per_minute, burst_seconds=seconds)
        processes = Processes(database, clock, 3)
        began, passed = clock.time_s, 0
        for at, wait, times in story:
            clock.advance(wait)
            passed += sum(processes.ask(at, rate=rate).allowed for _ in range(times))
            assert passed <= rate.burst + rate.per_second * (clock.time_s - began) + 3
    finally:
        database.close()
