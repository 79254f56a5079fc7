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
    assert two.alive == 2
    clock.advance(ALIVE_S + 1)
    two.beat(1)
    assert two.alive == 1
    assert two.behind(2) == []


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
