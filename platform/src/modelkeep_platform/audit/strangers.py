"""Refusals of strangers, who showed no token that verifies: counted by source (`core.sources`) and minute.

Each count is one entry of the platform's log. A flood of requests so fills a counter, a flood of sources one counter
for all the rest.
"""

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from modelkeep_platform.core.events import Event, Outcome
from modelkeep_platform.core.ids import PLATFORM
from modelkeep_platform.core.ports import Clock
from modelkeep_platform.core.refusals import WINDOW_S
from modelkeep_platform.core.sources import subscriber

MAX_SOURCES: Final = 200
OTHERS: Final = "other sources"
STRANGERS: Final = "stranger:refused"


@dataclass(slots=True)
class StrangerMinute:
    """One source's minute: since when, in seconds, and how often each status was answered."""

    began_at: int
    statuses: Counter[int] = field(default_factory=Counter)


class StrangerCounts:
    """Every source's minute; safe for threads, and does no I/O.

    Args:
        clock: ends minutes.
        max_sources: how many sources are told apart each minute.
    """

    def __init__(self, *, clock: Clock, max_sources: int = MAX_SOURCES) -> None:
        self._clock = clock
        self._max_sources = max_sources
        self._minutes: dict[str, StrangerMinute] = {}
        self._lock = threading.Lock()

    def count(self, source: str, status: int) -> None:
        """Take one refusal in.

        Args:
            source: the address of the connection.
            status: what was answered.
        """
        now = self._clock.now_s()
        name = subscriber(source)
        with self._lock:
            minute = self._minutes.get(name)
            if minute is None and len(self._minutes) >= self._max_sources:
                name = OTHERS
                minute = self._minutes.get(name)
            if minute is None:
                minute = self._minutes[name] = StrangerMinute(now)
            minute.statuses[status] += 1

    def take(self, *, unfinished: bool) -> dict[str, StrangerMinute]:
        """Take out the minutes that are over, with `unfinished` all, and return them by source."""
        before = self._clock.now_s() - WINDOW_S
        with self._lock:
            over = {key: one for key, one in self._minutes.items() if unfinished or one.began_at <= before}
            for source in over:
                del self._minutes[source]
        return over

    def put_back(self, source: str, minute: StrangerMinute) -> None:
        """Keep a count that could not be recorded for the source's next entry."""
        with self._lock:
            self._minutes.setdefault(source, StrangerMinute(minute.began_at)).statuses += minute.statuses


def entry_of(source: str, minute: StrangerMinute) -> Event:
    """Return the entry that says how often strangers of a source were refused in a minute."""
    by_status = {f"status_{status}": count for status, count in sorted(minute.statuses.items())}
    return Event(
        tenant=PLATFORM,
        action=STRANGERS,
        outcome=Outcome.DENIED,
        facts={"count": minute.statuses.total(), "since": minute.began_at, "window_s": WINDOW_S, **by_status},
        personal={"source": source},  # an address is personal: it is sealed
    )
