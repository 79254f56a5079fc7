"""Places over several processes: together never more than there are, and free for whoever needs them."""

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

import pytest
import sqlalchemy as sa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fakes.core import FakeClock, FakeLimits, tenant_caller
from modelkeep_platform.core.errors import RateLimitedError
from modelkeep_platform.limits import places
from modelkeep_platform.limits.places import Place, Places, Wanted
from modelkeep_platform.limits.service import RequestLimits
from modelkeep_platform.storage.blobs import FULL, StorageError
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.schema import metadata
from modelkeep_platform.storage.tables.limits import request_places
from modelkeep_platform.storage.tables.processes import server_processes
from services.house import wait_until

MOST = 20


def memory() -> Database:
    database = Database("sqlite:///:memory:")
    metadata.create_all(database.engine, tables=[request_places, server_processes])
    return database


@pytest.fixture
def quick() -> Iterator[Database]:
    database = memory()
    yield database
    database.close()


class Process:
    """One server process and the requests that it has under way."""

    def __init__(self, servers: "Servers", name: str) -> None:
        self.name = name
        self.places = Places(
            database=servers.database, clock=servers.clock, process_id=name, others=lambda: servers.alive - {name}
        )
        self.held: list[Place] = []
        self.leases = 0

    def ask(self, *wanted: Wanted) -> bool:
        """Begin one request; return whether it may."""
        asked = wanted or (Wanted("acme", MOST, "this tenant"),)
        try:
            while (place := self.places.take(asked)) is None:
                self.leases += 1
                self.places.lease(asked)
        except RateLimitedError:
            return False
        self.held.append(place)
        return True

    def fill(self) -> int:
        """Begin requests until one is refused; return how many are under way."""
        while self.ask():
            pass
        return len(self.held)

    def end(self, count: int | None = None) -> None:
        """End the last requests, or all."""
        for _ in range(len(self.held) if count is None else count):
            with self.held.pop():
                pass


class Servers:
    """Processes on one database; `alive` says who is."""

    def __init__(self, database: Database, count: int) -> None:
        self.database, self.clock = database, FakeClock()
        self.alive = frozenset(f"server-{number}" for number in range(count))
        self.each = [Process(self, name) for name in sorted(self.alive)]

    def written(self) -> dict[str, int]:
        with self.database.platform(read_only=True) as tx:
            return {row["process"]: row["places"] for row in tx.all(sa.select(request_places))}

    def later(self, seconds: float = 1.0) -> None:
        self.clock.advance(seconds)
        for process in self.each:
            if process.name in self.alive:
                process.places.settle()


@pytest.mark.parametrize("count", [2, 3, 8])
def test_processes_together_fill_all_places_and_no_more(quick: Database, count: int) -> None:
    servers = Servers(quick, count)
    assert sum(process.fill() for process in servers.each) == MOST


def test_one_process_gets_every_place_that_no_other_uses(quick: Database) -> None:
    servers = Servers(quick, 2)
    one, two = servers.each
    assert one.fill() == MOST
    one.end()
    assert not two.ask()
    servers.later()
    servers.later()
    assert two.fill() == MOST


def test_what_was_needed_a_moment_ago_is_kept_and_the_rest_is_given_back(quick: Database) -> None:
    servers = Servers(quick, 2)
    one, two = servers.each
    one.fill()
    one.end(15)
    servers.later()
    assert servers.written() == {one.name: MOST}
    servers.later()
    assert servers.written() == {one.name: 5}
    assert two.fill() == 15


def test_a_steady_load_asks_the_database_no_more(quick: Database) -> None:
    servers = Servers(quick, 2)
    one = servers.each[0]
    for _ in range(10):
        one.ask()
    servers.later()
    leases = one.leases
    for _ in range(50):
        one.end(3)
        assert all(one.ask() for _ in range(3))
        servers.later(0.5)
    assert one.leases == leases


def test_a_flood_that_is_refused_asks_the_database_four_times_a_second(quick: Database) -> None:
    servers = Servers(quick, 2)
    one, two = servers.each
    one.fill()
    for _ in range(100):
        assert not two.ask()
        servers.clock.advance(0.01)
    assert two.leases <= 5


def test_a_process_that_is_alone_writes_nothing(quick: Database) -> None:
    servers = Servers(quick, 1)
    (one,) = servers.each
    assert one.fill() == MOST
    servers.later()
    assert (servers.written(), one.leases) == ({}, 0)


def test_a_second_process_learns_what_the_first_has_under_way(quick: Database) -> None:
    servers = Servers(quick, 2)
    one, two = servers.each
    servers.alive = frozenset({one.name})
    for _ in range(12):
        one.ask()
    servers.alive = frozenset({one.name, two.name})
    servers.later()
    assert two.fill() == MOST - 12


def test_the_places_of_the_dead_are_free(quick: Database) -> None:
    servers = Servers(quick, 3)
    one, two, three = servers.each
    assert one.fill() == MOST
    servers.alive -= {one.name}
    assert two.fill() == MOST
    assert not three.ask()


def test_whoever_is_left_alone_counts_by_itself_again(quick: Database) -> None:
    servers = Servers(quick, 2)
    one, two = servers.each
    two.fill()
    one.ask()
    two.end()
    two.places.close()
    servers.alive -= {two.name}
    servers.later()
    assert servers.written() == {}
    assert one.fill() == MOST


def test_a_process_that_begins_clears_what_the_gone_left(quick: Database) -> None:
    servers = Servers(quick, 2)
    servers.each[0].fill()
    begun = Places(database=quick, clock=servers.clock, process_id="new", others=frozenset)
    begun.start()
    begun.close()
    assert servers.written() == {}


def test_a_request_that_one_limit_refuses_takes_no_place_of_the_other(quick: Database) -> None:
    servers = Servers(quick, 2)
    one, two = servers.each
    mine, ours = Wanted("acme/me", 2, "this account"), Wanted("acme", 3, "this tenant")
    assert [one.ask(mine, ours) for _ in range(3)] == [True, True, False]
    assert two.ask(Wanted("acme/you", 2, "this account"), ours)
    assert not two.ask(Wanted("acme/you", 2, "this account"), ours)


def test_an_operator_that_lowers_the_number_is_heard_at_once(quick: Database) -> None:
    servers = Servers(quick, 2)
    one = servers.each[0]
    assert all(one.ask() for _ in range(10))
    assert not one.ask(Wanted("acme", 5, "this tenant"))
    one.end(6)
    assert one.ask(Wanted("acme", 5, "this tenant"))


def test_threads_of_several_processes_never_have_too_many_under_way(database: Database) -> None:
    servers = Servers(database, 3)
    counting, running, most = threading.Lock(), 0, 0

    def ask(at: int) -> None:
        nonlocal running, most
        process = servers.each[at % 3]
        wanted = [Wanted("acme", MOST, "this tenant")]
        for _ in range(30):
            try:
                while (place := process.places.take(wanted)) is None:
                    process.places.lease(wanted)
            except RateLimitedError:
                process.places.settle()
                servers.clock.advance(0.3)
                continue
            with place:
                with counting:
                    running += 1
                    most = max(most, running)
                time.sleep(0.0005)
                with counting:
                    running -= 1

    with ThreadPoolExecutor(3 * MOST) as pool:
        list(pool.map(ask, range(3 * MOST)))
    assert MOST // 2 < most <= MOST
    assert sum(process.places.filled for process in servers.each) == 0


def test_what_the_database_does_not_take_is_written_when_it_does(
    quick: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = Servers(quick, 2)
    one, two = servers.each
    assert one.fill() == MOST
    one.end()
    servers.later()
    with monkeypatch.context() as patch:
        patch.setattr(quick, "platform", broken)
        with pytest.raises(StorageError):
            servers.later()
        with pytest.raises(StorageError):
            two.ask()
        with pytest.raises(StorageError):
            one.places.settle()
        one.places.close()
    servers.later()
    assert two.fill() == MOST
    assert not one.ask()


def broken(**_options: object) -> NoReturn:
    raise StorageError(FULL, code="disk_full")


def test_a_thread_gives_back_also_after_the_database_failed(quick: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "SETTLED_S", 0.01)
    servers = Servers(quick, 2)
    one = servers.each[0]
    one.places.start()
    with monkeypatch.context() as patch:
        patch.setattr(one.places, "settle", broken)
        time.sleep(0.1)
    assert one.ask()
    one.end()
    wait_until(lambda: servers.written() == {}, "the place to be given back")
    one.places.close()


def test_a_request_that_is_given_up_while_it_waits_holds_nothing(database: Database) -> None:
    servers = Servers(database, 2)
    waiting, go_on = threading.Event(), threading.Event()
    room = RequestLimits(
        database=database,
        clock=servers.clock,
        limits=FakeLimits(concurrent_requests=MOST, principal_concurrent_requests=MOST),
        process_id="server-0",
        others=lambda: {"server-1"},
    )
    lease = room._places.lease

    def slowly(wanted: Sequence[Wanted]) -> None:
        waiting.set()
        go_on.wait()
        lease(wanted)

    async def give_up() -> None:
        task = asyncio.create_task(room.place(tenant_caller()))
        await asyncio.to_thread(waiting.wait)
        task.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room._places, "lease", slowly)
        asyncio.run(give_up())
    assert room.under_way == 0
    for _ in range(3):
        room._places.settle()
    assert servers.written() == {}


class Sharing(RuleBasedStateMachine):
    """Any order of requests, ends and settling: what is under way is never more than there are places."""

    def __init__(self) -> None:
        super().__init__()
        self.database = memory()
        self.servers = Servers(self.database, 3)

    def teardown(self) -> None:
        self.database.close()

    @rule(at=st.integers(0, 2), count=st.integers(1, 8))
    def begin(self, at: int, count: int) -> None:
        for _ in range(count):
            self.servers.each[at].ask()

    @rule(at=st.integers(0, 2), count=st.integers(1, 12))
    def end(self, at: int, count: int) -> None:
        process = self.servers.each[at]
        process.end(min(count, len(process.held)))

    @rule(at=st.integers(0, 2))
    def settle(self, at: int) -> None:
        self.servers.each[at].places.settle()

    @rule(seconds=st.sampled_from([0.1, 0.3]))
    def wait(self, seconds: float) -> None:
        self.servers.clock.advance(seconds)

    @rule(at=st.integers(0, 2))
    def all_that_is_free_can_be_had(self, at: int) -> None:
        for _ in range(2):
            self.servers.later()
        others = sum(len(process.held) for number, process in enumerate(self.servers.each) if number != at)
        assert self.servers.each[at].fill() == MOST - others

    @invariant()
    def never_too_many(self) -> None:
        running = {process.name: len(process.held) for process in self.servers.each}
        written = self.servers.written()
        assert sum(running.values()) <= sum(written.values()) <= MOST or not written
        assert all(count <= written.get(name, 0) for name, count in running.items())


TestSharing = Sharing.TestCase
TestSharing.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
