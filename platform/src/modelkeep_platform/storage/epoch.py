"""The epoch as caches see it: a number in memory that follows the database.

A thread re-reads it every 200 ms, off the request path, and another says so to the other processes: it has to write,
and may wait for its turn while reading goes on. If it could not be read for a second the watcher fails
closed: `current` raises. A process that changed something calls `refresh`, which reads at once and returns when every
other live process has seen the change, or after a second: whoever has not seen it by then has failed closed, or is
dead, and `unacknowledged` names it.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from modelkeep_platform.core.errors import UnavailableError
from modelkeep_platform.core.ports import Clock
from modelkeep_platform.storage.blobs import StorageError
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.peers import Peers

INTERVAL_S: Final = 0.2
STALE_S: Final = 1.0
_POLL_S: Final = 0.02


class EpochWatcher:
    """Follows the epoch; start it with the server and close it with it.

    Args:
        database: where the epoch is.
        clock: tells how old the last reading is.
        peers: this process's heartbeat and the other processes; None for a command that serves nothing.
        sleep: waits between looks at the others.
    """

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        peers: Peers | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._database = database
        self._clock = clock
        self._peers = peers
        self._sleep = sleep
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._repeat, args=(duty,), name=name, daemon=True)
            for name, duty in (("epoch", self._read), ("heartbeat", self._beat))
        ]
        self._lock = threading.Lock()
        self._number = -1
        self._read_at = float("-inf")
        self._behind = threading.local()

    def start(self) -> None:
        """Read once, then keep following."""
        self._read()
        self._beat()
        for thread in self._threads:
            thread.start()

    def refresh(self) -> None:
        """Read now and wait for the other processes; call it after a commit that bumped the epoch."""
        self._read()
        if self._peers is None:
            return
        deadline = self._clock.monotonic_s() + STALE_S
        behind: Sequence[str] = self._peers.behind(self._number)
        while behind and self._clock.monotonic_s() < deadline:
            self._sleep(_POLL_S)
            behind = self._peers.behind(self._number)
        if behind:
            self._behind.names = sorted({*getattr(self._behind, "names", ()), *behind})

    def unacknowledged(self) -> Sequence[str]:
        """Return which processes had not seen this thread's last changes in time, once."""
        names: Sequence[str] = getattr(self._behind, "names", ())
        self._behind.names = ()
        return names

    def current(self) -> int:
        """Return the number caches must carry to be used.

        Raises:
            UnavailableError: the epoch could not be read for a second; nothing cached may be used.
        """
        if self._clock.monotonic_s() - self._read_at > STALE_S:
            message = "the platform cannot read its policy epoch; try again"
            raise UnavailableError(message, code="epoch_unreadable")
        return self._number

    @property
    def age_s(self) -> float:
        """Return how long ago the epoch was last read, in seconds."""
        return self._clock.monotonic_s() - self._read_at

    def last_known(self) -> int:
        """Return the number as it was last read, however long ago; for caches whose entries are only ever dropped."""
        return self._number

    @property
    def others(self) -> frozenset[str]:
        """Return the names of the other server processes that are alive."""
        return frozenset() if self._peers is None else self._peers.others

    @property
    def processes(self) -> int:
        """Return how many server processes are alive, this one included."""
        return 1 + len(self.others)

    def close(self) -> None:
        """Stop following, and take the heartbeat away."""
        self._stop.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=5)
        if self._peers is not None:
            self._peers.leave()

    def _read(self) -> None:
        started = self._clock.monotonic_s()
        number = self._database.epoch()
        # INVARIANT: it never goes back: what was acknowledged to others is what this process decides by.
        with self._lock:
            self._number = max(number, self._number)
            self._read_at = max(started, self._read_at)

    def _beat(self) -> None:
        # INVARIANT: what is acknowledged was read before; from then on this process decides by it.
        if self._peers is not None:
            self._peers.beat(self._number)

    def _repeat(self, duty: Callable[[], None]) -> None:
        while not self._stop.wait(INTERVAL_S):
            try:
                duty()
            except (SQLAlchemyError, StorageError):
                continue  # `current` fails closed once the last reading is too old
