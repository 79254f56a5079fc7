"""Heartbeats: who is alive, who has seen an epoch, and what a change waits for."""

from contextlib import AbstractContextManager

import pytest
import sqlalchemy as sa

from fakes.core import ACME, FakeClock
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.epoch import STALE_S, EpochWatcher
from modelkeep_platform.storage.peers import ALIVE_S, Peers
from modelkeep_platform.storage.tables.processes import server_processes
from modelkeep_platform.storage.transactions import PlatformTransaction, System


def peers(database: Database, clock: FakeClock, name: str) -> Peers:
    return Peers(database=database, clock=clock, process_id=name)


def bump(database: Database) -> int:
    with database.tenant(ACME, by=System(reason="a test")) as tx:
        tx.bump_epoch()
    return database.epoch()


def test_a_process_is_alive_for_three_seconds_after_its_last_beat(database: Database, clock: FakeClock) -> None:
    one, two = peers(database, clock, "one"), peers(database, clock, "two")
    one.beat(1)
    two.beat(1)
    assert two.others == {"one"}
    clock.advance(ALIVE_S + 1)
    two.beat(1)
    assert two.others == frozenset()
    assert two.behind(2) == []


def test_a_clock_that_steps_forward_makes_nobody_dead(database: Database, clock: FakeClock) -> None:
    one, two, dead = (peers(database, clock, name) for name in ("one", "two", "dead"))
    for each in (dead, two, one):
        each.beat(1)
    clock.advance(ALIVE_S + 1)
    two.beat(1)
    assert one.behind(2) == ["two"]
    steady_s = clock.time_s
    clock.advance(86_400)
    clock.monotonic_s = lambda: steady_s  # type: ignore[method-assign]
    # Not even before the others have written another row.
    assert one.behind(2) == ["two"]
    two.beat(1)
    one.beat(1)
    assert one.behind(2) == ["two"]
    assert one.others == {"two"}


def test_a_process_is_never_behind_what_others_have_reached(database: Database, clock: FakeClock) -> None:
    ahead, late = FakeClock(clock.now_s() + 3600), clock
    peers(database, ahead, "one").beat(1)
    two = peers(database, late, "two")
    two.beat(1)
    assert late.now_s() == ahead.now_s()
    with database.platform(read_only=True) as tx:
        rows = {row["id"]: row["seen_at"] for row in tx.all(sa.select(server_processes))}
    assert rows == {"one": ahead.now_s(), "two": ahead.now_s()}


def test_who_leaves_takes_the_dead_along_and_nobody_else(database: Database, clock: FakeClock) -> None:
    one, two, dead = (peers(database, clock, name) for name in ("one", "two", "dead"))
    for each in (dead, two, one):
        each.beat(1)
    for _ in range(ALIVE_S + 1):
        clock.advance(1)
        two.beat(1)
        one.beat(1)
    one.leave()
    with database.platform(read_only=True) as tx:
        assert [row["id"] for row in tx.all(sa.select(server_processes.c.id))] == ["two"]


def test_whoever_has_not_seen_the_epoch_is_named(database: Database, clock: FakeClock) -> None:
    one, two = peers(database, clock, "one"), peers(database, clock, "two")
    one.beat(1)
    two.beat(1)
    assert one.behind(1) == []
    assert one.behind(2) == ["two"]
    two.beat(2)
    assert one.behind(2) == []
    two.leave()
    assert one.behind(3) == []


def test_a_process_that_never_beat_leaves_nothing_to_take_away(database: Database, clock: FakeClock) -> None:
    peers(database, clock, "one").beat(1)
    peers(database, clock, "two").leave()
    with database.platform(read_only=True) as tx:
        assert len(tx.all(sa.select(server_processes.c.id))) == 1


def test_a_change_returns_when_the_others_have_seen_it(database: Database, clock: FakeClock) -> None:
    two = peers(database, clock, "two")
    two.beat(1)
    watcher = EpochWatcher(
        database=database, clock=clock, peers=peers(database, clock, "one"), sleep=lambda _s: two.beat(database.epoch())
    )
    bump(database)
    watcher.refresh()
    assert list(watcher.unacknowledged()) == []


def test_a_change_names_those_that_did_not_see_it_within_a_second(database: Database, clock: FakeClock) -> None:
    peers(database, clock, "two").beat(1)
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        clock.advance(seconds)

    watcher = EpochWatcher(database=database, clock=clock, peers=peers(database, clock, "one"), sleep=sleep)
    bump(database)
    watcher.refresh()
    assert sum(waited) == pytest.approx(STALE_S, abs=0.05)
    assert list(watcher.unacknowledged()) == ["two"]
    assert list(watcher.unacknowledged()) == []


def test_beats_are_written_once_a_second_and_once_an_epoch(
    database: Database, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = peers(database, clock, "one")
    writes: list[int] = []
    original = database.platform

    def counted(*, read_only: bool = False) -> AbstractContextManager[PlatformTransaction]:
        writes.append(not read_only)
        return original(read_only=read_only)

    monkeypatch.setattr(database, "platform", counted)
    for epoch in (1, 1, 1, 2, 2):
        one.beat(epoch)
    assert sum(writes) == 2
    clock.advance(1)
    one.beat(2)
    assert sum(writes) == 3
