"""Places for requests that are under way at once, by key, shared by server processes through leases.

A process that is alone counts in memory. Several write down, by key, how many places each may fill, and together never
more than there are. A process fills its own from memory; when they are taken it asks the database for a few more, and
twice a second it gives back those that it did not need since. So a place is free for another process within a second
after it was last used, and a request costs no database while a load is steady.

A process that was alone says how many requests it has under way when it sees a second one, a heartbeat after that
began; until then both count alone. The places of a process that died are free when its heartbeat is over.
"""

import math
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from modelkeep_platform.core.errors import RateLimitedError
from modelkeep_platform.core.ports import Clock
from modelkeep_platform.storage.blobs import StorageError
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.tables.limits import request_places
from modelkeep_platform.storage.tables.processes import server_processes
from modelkeep_platform.storage.transactions import PlatformTransaction

SETTLED_S: Final = 0.5
"""How often a process gives back what it did not need, in seconds."""
_LOTS: Final = 8
_ASK_AGAIN_S: Final = 0.25
_SOON_S: Final = 1


class Wanted(NamedTuple):
    """One place that a request needs.

    Args:
        key: whose.
        most: how many there are, over all processes.
        who: what a refusal calls the one whose they are.
    """

    key: str
    most: int
    who: str


@dataclass(slots=True)
class _Use:
    """What this process uses of one key's places: now, at most since it last settled, what it may, what is written."""

    running: int = 0
    peak: int = 0
    held: int = 0
    written: int = 0
    ask_at_s: float = -math.inf

    def settle(self, *, alone: bool) -> None:
        """Hold what was needed, and no more."""
        self.held = 0 if alone else min(self.peak, max(self.held, self.running))
        self.peak = self.running

    @property
    def unused(self) -> bool:
        """Return whether there is nothing to remember."""
        return not (self.running or self.held or self.written)


class Place:
    """Places of one request; leaving the block frees them."""

    __slots__ = ("_keys", "_places")

    def __init__(self, places: "Places", keys: tuple[str, ...]) -> None:
        self._places = places
        self._keys = keys

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._places.free(self._keys)


class Places:
    """Counts what is under way; safe for threads.

    Args:
        database: where the processes write down what they may fill.
        clock: says when to ask again.
        process_id: this process's name, unique on the database.
        others: returns the names of the other server processes that are alive.

    Attributes:
        filled: how many requests have a place in this process.
    """

    def __init__(
        self, *, database: Database, clock: Clock, process_id: str, others: Callable[[], Collection[str]]
    ) -> None:
        self._database = database
        self._clock = clock
        self._process_id = process_id
        self._others = others
        self.filled = 0
        self._uses: dict[str, _Use] = {}
        self._lock = threading.Lock()
        self._leasing = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="places", daemon=True)

    def start(self) -> None:
        """Forget the places of processes that are gone, and begin giving back what is not needed."""
        with self._database.platform() as tx:
            known = sa.select(server_processes.c.id)
            tx.execute(sa.delete(request_places).where(request_places.c.process.not_in(known)))
        self._thread.start()

    def close(self) -> None:
        """Stop, and give back everything, which the dead do anyway: nothing is lost when the database fails."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        with suppress(SQLAlchemyError, StorageError), self._database.platform() as tx:
            tx.execute(sa.delete(request_places).where(request_places.c.process == self._process_id))

    def take(self, wanted: Sequence[Wanted]) -> Place | None:
        """Take one place of every key, or of none.

        Returns:
            The places; None when the database must be asked for more of them first (`lease`, in a thread).

        Raises:
            RateLimitedError: all places of a key are taken.
        """
        alone = not self._others()
        with self._lock:
            must_lease = False
            for key, most, who in wanted:
                use = self._uses.get(key)
                if use is None:
                    use = self._uses[key] = _Use()
                if use.running < (most if alone else min(most, use.held)):
                    continue
                if alone or use.running >= most or self._clock.monotonic_s() < use.ask_at_s:
                    raise RateLimitedError(
                        f"{who} may have {most} requests under way at once; wait until one has ended",
                        retry_after_s=_SOON_S,
                        code="too_many_at_once",
                    )
                must_lease = True
            if must_lease:
                return None
            for key, _, _ in wanted:
                use = self._uses[key]
                use.running += 1
                use.peak = max(use.peak, use.running)
            self.filled += 1
        return Place(self, tuple(one.key for one in wanted))

    def lease(self, wanted: Sequence[Wanted]) -> None:
        """Ask for more places of every key of which this process has none left."""
        # One at a time: of many requests that find nothing left, one asks and the others find what it got.
        with self._leasing:
            for key, most, _ in wanted:
                with self._lock:
                    use = self._uses.setdefault(key, _Use())
                    if use.running < use.held:
                        continue
                others = self._others()
                lot = max(1, most // (_LOTS * (1 + len(others))))
                with self._database.platform() as tx:
                    free = most - _held_by(tx, key, others)
                    with self._lock:
                        # INVARIANT: what is held in memory is no more than what is written down.
                        held = max(use.running, min(use.running + lot, free))
                    self._write(tx, key, held)
                with self._lock:
                    use.held = use.written = held
                    if use.running >= held:
                        use.ask_at_s = self._clock.monotonic_s() + _ASK_AGAIN_S

    def free(self, keys: Sequence[str]) -> None:
        """Give a place of every key back."""
        with self._lock:
            for key in keys:
                self._uses[key].running -= 1
            self.filled -= 1

    def settle(self) -> None:
        """Give back what was not needed since this was last called, and write down what is under way."""
        with self._leasing:
            alone = not self._others()
            with self._lock:
                for use in self._uses.values():
                    use.settle(alone=alone)
                self._uses = {key: use for key, use in self._uses.items() if not use.unused}
                changed = {key: (use, use.held) for key, use in self._uses.items() if use.held != use.written}
            if not changed:
                return
            with self._database.platform() as tx:
                for key, (_, held) in changed.items():
                    self._write(tx, key, held)
            for use, held in changed.values():
                use.written = held

    def _write(self, tx: PlatformTransaction, key: str, held: int) -> None:
        mine = (request_places.c.key == key) & (request_places.c.process == self._process_id)
        if not held:
            tx.execute(sa.delete(request_places).where(mine))
        elif not tx.execute(sa.update(request_places).where(mine).values(places=held)).rowcount:
            values = {"key": key, "process": self._process_id, "places": held}
            tx.execute(sa.insert(request_places).values(**values))

    def _run(self) -> None:
        while not self._stop.wait(SETTLED_S):
            try:
                self.settle()
            except (SQLAlchemyError, StorageError):
                continue  # what was written holds, and what was not is written the next time


def _held_by(tx: PlatformTransaction, key: str, processes: Collection[str]) -> int:
    theirs = (request_places.c.key == key) & request_places.c.process.in_(processes)
    row = tx.first(sa.select(sa.func.coalesce(sa.func.sum(request_places.c.places), 0).label("n")).where(theirs))
    return 0 if row is None else int(row["n"])
