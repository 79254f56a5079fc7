"""A tenant's quota of refusals that are entries of their own each minute; what is beyond is counted.

A caller that hammers on closed doors fills a counter, not the log; the count becomes one entry.
"""

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from modelkeep_platform.core.events import Event, Outcome
from modelkeep_platform.core.ids import PrincipalId, TenantId
from modelkeep_platform.core.ports import Clock

WINDOW_S: Final = 60
SUMMARY: Final = "refusal:summary"


class Quota(NamedTuple):
    """How many refusals are recorded singly each minute: of a tenant, and of one principal of it."""

    tenant: int
    principal: int


@dataclass(slots=True)
class RefusalWindow:
    """One tenant's minute: since when, in seconds, whose were recorded singly, and how many only counted."""

    began_at: int
    recorded: Counter[PrincipalId] = field(default_factory=Counter)
    counted: int = 0


class RefusalWindows:
    """Every tenant's minute; safe for threads.

    Args:
        clock: ends minutes.
        per_window: says how many refusals of a tenant are recorded singly each minute.
    """

    def __init__(self, *, clock: Clock, per_window: Callable[[TenantId], Quota]) -> None:
        self._clock = clock
        self._per_window = per_window
        self._windows: dict[TenantId, RefusalWindow] = {}
        self._lock = threading.Lock()

    def admit(self, tenant: TenantId, principal: PrincipalId) -> tuple[RefusalWindow | None, bool]:
        """Take one refusal of `principal` in.

        Returns:
            The minute that this one ended, if it has a count to be recorded; and whether this refusal is recorded
            singly rather than counted.
        """
        now, quota = self._clock.now_s(), self._per_window(tenant)
        with self._lock:
            ended, window = None, self._windows.get(tenant)
            if window is None or now >= window.began_at + WINDOW_S:
                ended = window if window is not None and window.counted else None
                window = self._windows[tenant] = RefusalWindow(now)
            admitted = window.recorded.total() < quota.tenant and window.recorded[principal] < quota.principal
            window.recorded += Counter({principal: 1}) if admitted else Counter()
            window.counted += not admitted
            return ended, admitted

    def take(self, *, unfinished: bool) -> dict[TenantId, RefusalWindow]:
        """Take out the minutes that are over, with `unfinished` all, and return those that have a count."""
        before = self._clock.now_s() - WINDOW_S
        with self._lock:
            over = {key: one for key, one in self._windows.items() if unfinished or one.began_at <= before}
            for tenant in over:
                del self._windows[tenant]
        return {tenant: window for tenant, window in over.items() if window.counted}

    def put_back(self, tenant: TenantId, window: RefusalWindow) -> None:
        """Keep a count that could not be recorded for the tenant's next summary."""
        with self._lock:
            self._windows.setdefault(tenant, RefusalWindow(window.began_at)).counted += window.counted


def summary(tenant: TenantId, window: RefusalWindow, outcome: Outcome = Outcome.DENIED) -> Event:
    """Return the entry that says how many refusals, or failures, of a minute were only counted."""
    return Event(
        tenant=tenant,
        action=SUMMARY,
        outcome=outcome,
        facts={"unrecorded": window.counted, "since": window.began_at, "window_s": WINDOW_S},
    )
