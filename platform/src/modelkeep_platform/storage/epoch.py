"""The epoch as caches see it: a number in memory that follows the database.

A thread re-reads it every 200 ms, off the request path; a process that changed something refreshes at once.
If it could not be read for a second the watcher fails closed: `current` raises.
"""

import threading
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from modelkeep_platform.core.errors import UnavailableError
from modelkeep_platform.core.ports import Clock
from modelkeep_platform.storage.database import Database

INTERVAL_S: Final = 0.2
STALE_S: Final = 1.0


class EpochWatcher:
    """Follows the epoch; start it with the server and close it with it.

    Args:
        database: where the epoch is.
        clock: tells how old the last reading is.
    """

    def __init__(self, *, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="epoch", daemon=True)
        self._number = -1
        self._read_at = float("-inf")

    def start(self) -> None:
        """Read once, then keep following."""
        self.refresh()
        self._thread.start()

    def refresh(self) -> None:
        """Read now; call it after a commit that bumped the epoch."""
        started = self._clock.monotonic_s()
        number = self._database.epoch()
        self._number = max(number, self._number)
        self._read_at = started

    def current(self) -> int:
        """Return the number caches must carry to be used.

        Raises:
            UnavailableError: the epoch could not be read for a second; nothing cached may be used.
        """
        if self._clock.monotonic_s() - self._read_at > STALE_S:
            message = "the platform cannot read its policy epoch; try again"
            raise UnavailableError(message, code="epoch_unreadable")
        return self._number

    def close(self) -> None:
        """Stop following."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def _follow(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            try:
                self.refresh()
            except SQLAlchemyError:
                continue  # `current` fails closed once the last reading is too old
