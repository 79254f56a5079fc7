"""Server processes on one database: heartbeats, and who has seen an epoch.

A process writes its row when it sees a new epoch, and once a second. It is alive while others see its row change: for
three seconds after it last did, by the steady clock of whoever looks. So no clock that steps makes a process seem dead
or alive. A row that has not changed for a minute is cleared away by whoever finds it.

Rows carry the time, too. No process is behind what it reads there, so that all agree, also with one that was started
after the system's clock was set back, and with what ran before a crash. Who stops in order takes its row away, and
those of the dead: when all have stopped, the system's clock is taken as it is.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import sqlalchemy as sa

from modelkeep_platform.core.ports import Clock
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.tables.processes import server_processes
from modelkeep_platform.storage.transactions import PlatformTransaction, Row

ALIVE_S: Final = 3
_FORGET_S: Final = 60


class SharedClock(Clock, Protocol):
    """A clock that can be told what other processes have reached."""

    def not_before(self, seconds: int) -> None:
        """Let time be at least `seconds` since the Unix epoch."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """Another process's row: what it said, and since when, by the steady clock of this process."""

    seen_at: int
    since_s: float


class Peers:
    """This process's heartbeat, and what it knows of the others.

    Args:
        database: where heartbeats are.
        clock: stamps them, and follows theirs.
        process_id: this process's name, unique on the database.
    """

    def __init__(self, *, database: Database, clock: SharedClock, process_id: str) -> None:
        self._database = database
        self._clock = clock
        self.process_id = process_id
        self._beat: tuple[int, int] | None = None
        self._others: dict[str, _Seen] = {}
        self._lock = threading.Lock()
        self.others: frozenset[str] = frozenset()

    def beat(self, epoch: int) -> None:
        """Say that this process is alive and has seen `epoch`; writes at most once a second and once an epoch."""
        now = self._clock.now_s()
        if self._beat == (now, epoch):
            return
        with self._database.platform() as tx:
            mine = server_processes.c.id == self.process_id
            rows = tx.all(sa.select(server_processes.c.id, server_processes.c.seen_at).where(~mine))
            now = max([now, *(row["seen_at"] for row in rows)])
            changed = tx.execute(sa.update(server_processes).where(mine).values(seen_at=now, epoch=epoch))
            if not changed.rowcount:
                values = {"id": self.process_id, "started_at": now, "seen_at": now, "epoch": epoch}
                tx.execute(sa.insert(server_processes).values(**values))
            self.others = frozenset(self._alive(rows))
            self._clear(tx, older_s=_FORGET_S)
        self._clock.not_before(now)
        self._beat = (now, epoch)

    def behind(self, epoch: int) -> Sequence[str]:
        """Return the other live processes that have not seen `epoch`."""
        with self._database.platform(read_only=True) as tx:
            rows = tx.all(sa.select(server_processes).where(server_processes.c.id != self.process_id))
        alive = self._alive(rows)
        return [row["id"] for row in rows if row["id"] in alive and row["epoch"] < epoch]

    def leave(self) -> None:
        """Take this process's row away, and those of the dead; nobody waits for it any more."""
        if self._beat is None:
            return
        with self._database.platform() as tx:
            tx.execute(sa.delete(server_processes).where(server_processes.c.id == self.process_id))
            self._clear(tx, older_s=ALIVE_S)

    def _alive(self, rows: Sequence[Row]) -> set[str]:
        """Note what every other process says now; return those that said something else a short while ago."""
        now_s = self._clock.monotonic_s()
        with self._lock:
            before, self._others = self._others, {}
            for row in rows:
                known = before.get(row["id"])
                if known is None or known.seen_at != row["seen_at"]:
                    known = _Seen(row["seen_at"], now_s)
                self._others[row["id"]] = known
            return {name for name, seen in self._others.items() if now_s - seen.since_s <= ALIVE_S}

    def _clear(self, tx: PlatformTransaction, *, older_s: int) -> None:
        now_s = self._clock.monotonic_s()
        with self._lock:
            dead = [name for name, seen in self._others.items() if now_s - seen.since_s > older_s]
        tx.execute(sa.delete(server_processes).where(server_processes.c.id.in_(dead)))
