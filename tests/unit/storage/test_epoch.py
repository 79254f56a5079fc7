"""The epoch in memory follows the database, and is not used when it is too old."""

import threading
import time
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from fakes.core import ACME, FakeClock
from modelkeep_platform.core.errors import UnavailableError
from modelkeep_platform.storage import epoch as module
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.epoch import STALE_S, EpochWatcher
from modelkeep_platform.storage.peers import Peers
from modelkeep_platform.storage.tables.epoch import epoch
from modelkeep_platform.storage.transactions import System
from modelkeep_platform.telemetry.system import SystemClock


@pytest.fixture
def watcher(database: Database, clock: FakeClock) -> EpochWatcher:
    return EpochWatcher(database=database, clock=clock)


def _bump(database: Database) -> None:
    with database.tenant(ACME, by=System(reason="a test")) as tx:
        tx.bump_epoch()


def test_before_the_first_reading_nothing_cached_may_be_used(watcher: EpochWatcher) -> None:
    with pytest.raises(UnavailableError) as caught:
        watcher.current()
    assert caught.value.error_code == "epoch_unreadable"


def test_a_refresh_after_a_bump_shows_it(database: Database, watcher: EpochWatcher) -> None:
    watcher.refresh()
    assert watcher.current() == 1
    _bump(database)
    assert watcher.current() == 1
    watcher.refresh()
    assert watcher.current() == 2


def test_a_bump_that_rolled_back_moves_nothing(database: Database) -> None:
    with pytest.raises(LookupError), database.platform() as tx:
        tx.bump_epoch()
        raise LookupError
    assert database.epoch() == 1


@pytest.mark.parametrize(("age_s", "usable"), [(STALE_S, True), (STALE_S + 0.001, False)], ids=["just", "too old"])
def test_a_reading_is_used_for_one_second(watcher: EpochWatcher, clock: FakeClock, age_s: float, usable: bool) -> None:
    watcher.refresh()
    clock.advance(age_s)
    if usable:
        assert watcher.current() == 1
    else:
        with pytest.raises(UnavailableError):
            watcher.current()
        watcher.refresh()
        assert watcher.current() == 1


def test_the_number_never_goes_back(database: Database, watcher: EpochWatcher) -> None:
    _bump(database)
    watcher.refresh()
    with database.platform() as tx:
        tx.execute(sa.update(epoch).values(number=1))
    watcher.refresh()
    assert watcher.current() == 2


def test_the_thread_follows_and_survives_an_unreadable_database(
    database: Database, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "INTERVAL_S", 0.001)
    watcher = EpochWatcher(database=database, clock=clock)
    readings: Iterator[int | OperationalError] = iter([5, OperationalError("read", {}, OSError("down")), 6])
    done = threading.Event()

    def read() -> int:
        reading = next(readings, None)
        if reading is None:
            done.set()
            return 6
        if isinstance(reading, OperationalError):
            raise reading
        return reading

    monkeypatch.setattr(database, "epoch", read)
    watcher.start()
    assert done.wait(5)
    assert watcher.current() == 6
    watcher.close()
    watcher.close()


def test_closing_what_never_started_is_no_error(watcher: EpochWatcher) -> None:
    watcher.close()


def test_reading_goes_on_while_the_heartbeat_waits_for_its_turn_to_write(database: Database) -> None:
    clock = SystemClock()
    peers = Peers(database=database, clock=clock, process_id="one")
    watcher = EpochWatcher(database=database, clock=clock, peers=peers)
    watcher.start()
    try:
        with database.platform():
            end = clock.monotonic_s() + STALE_S + 1
            while clock.monotonic_s() < end:
                watcher.current()
                time.sleep(0.05)
    finally:
        watcher.close()
