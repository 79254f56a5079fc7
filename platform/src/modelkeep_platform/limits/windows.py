"""Requests a minute, counted in memory and shared by server processes through leases.

A window is one minute of the clock. A single process counts by itself. Several share a tenant's allowance through the
database: a process takes a lease of a few per cent of what is left of the window and counts that down in memory, so
the database is asked a few dozen times a minute for each busy tenant, and never more is allowed than the limit. What a
process leased and did not use is lost to the others until the next window: at most five per cent of the limit.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError as DuplicateError

from modelkeep_platform.core.ports import Clock
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.tables.limits import request_windows

WINDOW_S: Final = 60
_UNUSED_SHARE: Final = 20
_KEPT: Final = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where somebody stands in the present window.

    Args:
        limit: how many requests a window allows.
        remaining: how many are left, as far as this process knows.
        reset_s: seconds until the next window.
        allowed: whether this request was.
    """

    limit: int
    remaining: int
    reset_s: int
    allowed: bool


@dataclass(slots=True)
class _Window:
    began_at: int
    leased: int = 0
    used: int = 0
    exhausted: bool = False


class Windows:
    """Counts requests by key.

    Args:
        database: where leases are noted.
        clock: cuts windows.
        limit: how many requests a window allows for one key.
        processes: how many server processes are alive.
    """

    def __init__(self, *, database: Database, clock: Clock, limit: int, processes: Callable[[], int]) -> None:
        self._database = database
        self._clock = clock
        self._limit = limit
        self._processes = processes
        self._windows: OrderedDict[str, _Window] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, key: str) -> Standing | None:
        """Count a request from memory; None when a lease must be taken first (`lease`, which reads the database)."""
        now = self._clock.now_s()
        with self._lock:
            window = self._window(key, now)
            if self._processes() == 1 and not window.leased:
                return self._count(window, now, self._limit)
            if window.used >= window.leased and not window.exhausted:
                return None
            return self._count(window, now, window.leased)

    def lease(self, key: str) -> None:
        """Take some of what is left of the window for this process."""
        began_at = self._began_at(self._clock.now_s())
        wanted = max(1, self._limit // (_UNUSED_SHARE * max(1, self._processes())))
        got = self._claim(key, began_at, wanted)
        with self._lock:
            window = self._window(key, began_at)
            # What this process let through while it was alone counts against the shared window, too.
            window.leased = max(window.leased, window.used) + got
            window.exhausted = got == 0

    def _claim(self, key: str, began_at: int, wanted: int) -> int:
        here = (request_windows.c.key == key, request_windows.c.began_at == began_at)
        with self._lock:
            alone = self._window(key, began_at)
            before = 0 if alone.leased else alone.used
        try:
            with self._database.platform() as tx:
                row = tx.first(sa.select(request_windows).where(*here))
                if row is None:
                    tx.execute(sa.delete(request_windows).where(request_windows.c.began_at < began_at - WINDOW_S))
                    tx.execute(sa.insert(request_windows).values(key=key, began_at=began_at, used=0))
                used = (0 if row is None else row["used"]) + before
                got = max(0, min(wanted, self._limit - used))
                tx.execute(sa.update(request_windows).where(*here).values(used=used + got))
        except DuplicateError:
            return self._claim(key, began_at, wanted)
        return got

    def _window(self, key: str, now: int) -> _Window:
        began_at = self._began_at(now)
        window = self._windows.get(key)
        if window is None or window.began_at < began_at:
            window = self._windows[key] = _Window(began_at)
            self._windows.move_to_end(key)
            while len(self._windows) > _KEPT:
                self._windows.popitem(last=False)
        return window

    def _count(self, window: _Window, now: int, bound: int) -> Standing:
        allowed = window.used < bound
        window.used += allowed
        return Standing(
            limit=self._limit,
            remaining=max(0, min(self._limit, bound) - window.used),
            reset_s=window.began_at + WINDOW_S - now,
            allowed=allowed,
        )

    def _began_at(self, now: int) -> int:
        return now - now % WINDOW_S
