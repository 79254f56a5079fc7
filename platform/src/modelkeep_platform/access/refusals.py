"""Records refusals, up to a quota for each tenant and minute; what is beyond it is counted, and the count recorded.

A caller that hammers on closed doors fills a counter, not the log. The count goes into the tenant's log with the first
refusal after the minute, or with `flush`. A process that is killed loses the counts of its last minute, no more.
"""

import threading
from dataclasses import dataclass
from typing import Final

from modelkeep_platform.core.callers import Caller
from modelkeep_platform.core.decisions import Decision
from modelkeep_platform.core.events import Event, Outcome
from modelkeep_platform.core.ids import TenantId
from modelkeep_platform.core.limits import DEFAULT_QUOTA
from modelkeep_platform.core.ports import Clock, Recorder
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.transactions import System

WINDOW_S: Final = 60
PER_WINDOW: Final = DEFAULT_QUOTA.refusals_per_minute
SUMMARY: Final = "refusal:summary"
_SYSTEM: Final = System(reason="record a refusal")


@dataclass(slots=True)
class _Window:
    began_at: int
    recorded: int = 0
    counted: int = 0


class RefusalLog:
    """Writes refusals into the log of the caller's tenant.

    Args:
        database: where the log is.
        recorder: writes it.
        clock: ends a tenant's minute.
        per_window: how many refusals of one tenant are recorded singly each minute.
    """

    def __init__(self, *, database: Database, recorder: Recorder, clock: Clock, per_window: int = PER_WINDOW) -> None:
        self._database = database
        self._recorder = recorder
        self._clock = clock
        self._per_window = per_window
        self._windows: dict[TenantId, _Window] = {}
        self._lock = threading.Lock()

    def record(self, caller: Caller, decision: Decision) -> None:
        """Record that `caller` was refused, or count it; commits before it returns."""
        counted, recordable = self._admit(caller.tenant)
        events = [] if counted is None else [_summary(caller.tenant, counted)]
        if recordable:
            events.append(_refusal(caller, decision))
        self._write(caller.tenant, events)

    def flush(self) -> None:
        """Record every count there is; call it when the server stops."""
        with self._lock:
            windows, self._windows = self._windows, {}
        for tenant, window in windows.items():
            if window.counted:
                self._write(tenant, [_summary(tenant, window)])

    def _admit(self, tenant: TenantId) -> tuple[_Window | None, bool]:
        now = self._clock.now_s()
        with self._lock:
            window = self._windows.get(tenant)
            ended = None
            if window is None or now >= window.began_at + WINDOW_S:
                ended = window if window is not None and window.counted else None
                window = self._windows[tenant] = _Window(now)
            recordable = window.recorded < self._per_window
            window.recorded += recordable
            window.counted += not recordable
            return ended, recordable

    def _write(self, tenant: TenantId, events: list[Event]) -> None:
        if not events:
            return
        with self._database.tenant(tenant, by=_SYSTEM) as tx:
            for event in events:
                self._recorder.record(tx, event)


def _refusal(caller: Caller, decision: Decision) -> Event:
    # It belongs to the caller's own log: the owner must not learn who guesses, nor the guesser who owns.
    own = decision.ref.owner == caller.tenant and not decision.ref.is_missing
    return Event(
        tenant=caller.tenant,
        action=decision.action,
        outcome=Outcome.DENIED,
        actor=caller,
        ref=decision.ref if own else None,
        decision=decision,
        facts={"kind": str(decision.ref.kind), "reason": decision.reasons[0] if decision.reasons else ""},
    )


def _summary(tenant: TenantId, window: _Window) -> Event:
    return Event(
        tenant=tenant,
        action=SUMMARY,
        outcome=Outcome.DENIED,
        facts={"unrecorded": window.counted, "since": window.began_at, "window_s": WINDOW_S},
    )
