"""Server processes on one database: heartbeats, and who has seen an epoch.

A process writes its row when it sees a new epoch, and once a second. It is alive while its row is younger than
three seconds; a row that is older is cleared away by whoever finds it.
"""

from collections.abc import Sequence
from typing import Final

import sqlalchemy as sa

from modelkeep_platform.core.ports import Clock
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.tables.processes import server_processes

ALIVE_S: Final = 3
_FORGET_S: Final = 60


class Peers:
    """This process's heartbeat, and what it knows of the others.

    Args:
        database: where heartbeats are.
        clock: stamps them.
        process_id: this process's name, unique on the database.
    """

    def __init__(self, *, database: Database, clock: Clock, process_id: str) -> None:
        self._database = database
        self._clock = clock
        self.process_id = process_id
        self._beat: tuple[int, int] | None = None
        self.alive = 1

    def beat(self, epoch: int) -> None:
        """Say that this process is alive and has seen `epoch`; writes at most once a second and once an epoch."""
        now = self._clock.now_s()
        if self._beat == (now, epoch):
            return
        with self._database.platform() as tx:
            mine = server_processes.c.id == self.process_id
            changed = tx.execute(sa.update(server_processes).where(mine).values(seen_at=now, epoch=epoch))
            if not changed.rowcount:
                values = {"id": self.process_id, "started_at": now, "seen_at": now, "epoch": epoch}
                tx.execute(sa.insert(server_processes).values(**values))
            tx.execute(sa.delete(server_processes).where(server_processes.c.seen_at < now - _FORGET_S))
            self.alive = len(tx.all(sa.select(server_processes.c.id).where(self._is_alive())))
        self._beat = (now, epoch)

    def behind(self, epoch: int) -> Sequence[str]:
        """Return the other live processes that have not seen `epoch`."""
        with self._database.platform(read_only=True) as tx:
            rows = tx.all(
                sa.select(server_processes.c.id).where(
                    self._is_alive(), server_processes.c.id != self.process_id, server_processes.c.epoch < epoch
                )
            )
        return [row["id"] for row in rows]

    def leave(self) -> None:
        """Take this process's row away; nobody waits for it any more."""
        if self._beat is None:
            return
        with self._database.platform() as tx:
            tx.execute(sa.delete(server_processes).where(server_processes.c.id == self.process_id))

    def _is_alive(self) -> sa.ColumnElement[bool]:
        return server_processes.c.seen_at >= self._clock.now_s() - ALIVE_S
