"""Records refusals, up to a quota for each tenant, principal and minute; what is beyond it is counted, and so recorded.

The count goes into the tenant's log with the first refusal after the minute, or with `flush`, which the server calls
every ten minutes and when it stops. A process that is killed loses the counts since then, no more.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Final

from modelkeep_platform.core.callers import Caller
from modelkeep_platform.core.decisions import Decision
from modelkeep_platform.core.events import Event, Outcome
from modelkeep_platform.core.ids import TenantId
from modelkeep_platform.core.ports import Clock, Recorder
from modelkeep_platform.core.refusals import Quota, RefusalWindow, RefusalWindows, summary
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.transactions import System

_SYSTEM: Final = System(reason="record a refusal")


class RefusalLog:
    """Writes refusals into the log of the caller's tenant.

    Args:
        database: where the log is.
        recorder: writes it.
        clock: ends a tenant's minute.
        per_window: says how many refusals of a tenant are recorded singly each minute.
    """

    def __init__(
        self, *, database: Database, recorder: Recorder, clock: Clock, per_window: Callable[[TenantId], Quota]
    ) -> None:
        self._database = database
        self._recorder = recorder
        self._windows = RefusalWindows(clock=clock, per_window=per_window)

    def record(self, caller: Caller, decision: Decision) -> None:
        """Record that `caller` was refused, or count it; commits before it returns."""
        ended, recordable = self._windows.admit(caller.tenant, caller.principal)
        self._write(caller.tenant, ended, [_refusal(caller, decision)] if recordable else [])

    def flush(self, *, unfinished: bool = True) -> None:
        """Record the counts of minutes that are over, with `unfinished` every count there is.

        Raises:
            StorageError: some could not be recorded; they are kept for the next time.
        """
        with ExitStack() as each:
            for tenant, window in self._windows.take(unfinished=unfinished).items():
                each.callback(self._write, tenant, window, [])

    def _write(self, tenant: TenantId, ended: RefusalWindow | None, events: list[Event]) -> None:
        """Record an ended minute's count and `events`; a count that could not be recorded is kept."""
        if ended is not None:
            events = [summary(tenant, ended), *events]
        if not events:
            return
        try:
            with self._database.tenant(tenant, by=_SYSTEM) as tx:
                for event in events:
                    self._recorder.record(tx, event)
        except BaseException:
            if ended is not None:
                self._windows.put_back(tenant, ended)
            raise


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
