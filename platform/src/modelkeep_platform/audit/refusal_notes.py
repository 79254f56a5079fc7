"""Refusals that policy did not decide: of known callers singly up to a quota, beyond it as counts.

Policy's own refusals are recorded by `access`, in the transaction of the decision. What is refused before or after it
(a body that is not one, an operator at a tenant's door) is noted here when the caller is known, queued like
predictions: nothing was effected, so nothing waits for the disk. Past a tenant's quota of a minute refusals are
counted, and the count is one entry. The counts of strangers (`audit.strangers`) are written in the same rounds.
"""

import logging
import threading
from collections.abc import Callable
from typing import Final

from modelkeep_platform.audit.strangers import MAX_SOURCES, StrangerCounts, entry_of
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import Caller
from modelkeep_platform.core.errors import UnavailableError
from modelkeep_platform.core.events import Event, Outcome
from modelkeep_platform.core.ids import TenantId
from modelkeep_platform.core.ports import Clock, Recorder
from modelkeep_platform.core.refusals import Quota, RefusalWindow, RefusalWindows, summary

_SWEEP_S: Final = 5.0

_log = logging.getLogger(__name__)


class RefusalNotes:
    """Notes refusals and writes the counts of minutes that are over.

    Args:
        recorder: queues the entries.
        clock: ends minutes.
        per_window: says, from memory alone, how many refusals of a tenant are entries of their own each minute.
        max_sources: how many sources of strangers are told apart each minute.
    """

    def __init__(
        self,
        *,
        recorder: Recorder,
        clock: Clock,
        per_window: Callable[[TenantId], Quota],
        max_sources: int = MAX_SOURCES,
    ) -> None:
        self._recorder = recorder
        self._strangers = StrangerCounts(clock=clock, max_sources=max_sources)
        # Each its own: whoever is refused on purpose cannot crowd out what says that stored bytes were changed.
        self._windows = {
            outcome: RefusalWindows(clock=clock, per_window=per_window) for outcome in (Outcome.DENIED, Outcome.FAILED)
        }
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="refusal-counts", daemon=True)

    def start(self) -> None:
        """Begin writing the counts of minutes that are over."""
        self._thread.start()

    def close(self) -> None:
        """Stop, and write every count there is."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        self.sweep(unfinished=True)

    def of_caller(
        self, caller: Caller, action: Action | str, *, code: str, route: str, outcome: Outcome = Outcome.DENIED
    ) -> None:
        """Note that a known caller was refused, or that what it asked for failed.

        Args:
            caller: whose log it belongs to; the owner of what was asked for learns nothing of it.
            action: what the route is guarded by.
            code: the error's stable code.
            route: the method and the path's template, which hold no input.
            outcome: denied, or failed.

        Raises:
            UnavailableError: the log takes no entries at present.
        """
        ended, recordable = self._windows[outcome].admit(caller.tenant, caller.principal)
        if ended is not None:
            self._queue_count(caller.tenant, ended, outcome)
        if not recordable:
            return
        self._recorder.record_soon(
            Event(
                tenant=caller.tenant,
                action=action,
                outcome=outcome,
                actor=caller,
                facts={"error" if outcome is Outcome.FAILED else "reason": code, "route": route},
            )
        )

    def of_stranger(self, source: str, status: int) -> None:
        """Count that someone without a token that verifies was refused; does no I/O.

        Args:
            source: the address of the connection.
            status: what was answered.
        """
        self._strangers.count(source, status)

    def sweep(self, *, unfinished: bool = False) -> None:
        """Queue the counts of minutes that are over; with `unfinished`, of all. What the log does not take, stays."""
        for outcome, windows in self._windows.items():
            for tenant, window in windows.take(unfinished=unfinished).items():
                self._queue_count(tenant, window, outcome)
        for source, minute in self._strangers.take(unfinished=unfinished).items():
            if not self._queue(entry_of(source, minute)):
                self._strangers.put_back(source, minute)

    def _queue_count(self, tenant: TenantId, window: RefusalWindow, outcome: Outcome) -> None:
        if not self._queue(summary(tenant, window, outcome)):
            self._windows[outcome].put_back(tenant, window)

    def _queue(self, event: Event) -> bool:
        try:
            self._recorder.record_soon(event)
        except UnavailableError:
            _log.warning("the audit log takes no entries; counts of refusals are kept for later")
            return False
        return True

    def _run(self) -> None:
        while not self._stop.wait(_SWEEP_S):
            self.sweep()
