"""The recorder: writes entries in the transaction of the effect they speak of, predictions in groups.

When the actor is of another tenant than the owner, both tenants' logs get an entry; the owner's names the
foreign tenant but not its people. So it is for an operator, whose log is the platform's. When entries of predictions
cannot be committed, further predictions are refused until those that wait are: what must be recorded does not happen
unrecorded. Not promised: a process that is killed loses what it queued within the last window.
"""

import logging
import threading
import time
from collections.abc import Sequence
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from modelkeep_platform.audit.entries import AUDIT_KEY, SALT_BYTES, Entry, entry_body, personal_fields
from modelkeep_platform.core.errors import IntegrityError, ModelkeepError, UnavailableError
from modelkeep_platform.core.events import Event
from modelkeep_platform.core.ids import TenantId, new_object_id
from modelkeep_platform.core.ports import Clock, Entropy, Sealer, Transaction
from modelkeep_platform.core.sealing import Purpose, Suite
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.tables.audit import audit_entries
from modelkeep_platform.storage.transactions import PlatformTransaction, TenantTransaction

WINDOW_S: Final = 0.1
MAX_QUEUED: Final = 20_000
_SLICE: Final = 16
_PAUSE_S: Final = 50e-6

_log = logging.getLogger(__name__)


class AuditLog:
    """Implements the `Recorder` port.

    Args:
        database: where entries are kept.
        sealer: seals personal fields under the tenant's audit key (`AUDIT_KEY`).
        clock: stamps entries.
        entropy: gives salts and ids.
    """

    def __init__(self, *, database: Database, sealer: Sealer, clock: Clock, entropy: Entropy) -> None:
        self._database = database
        self._sealer = sealer
        self._clock = clock
        self._entropy = entropy
        self._queue: list[tuple[Event, int]] = []
        self._failing = False
        self._queued = threading.Condition()
        self._committing = threading.Lock()
        self._stopping = False
        self._thread = threading.Thread(target=self._write_groups, name="audit-groups", daemon=True)

    def start(self) -> None:
        """Start committing queued entries every 100 ms."""
        self._thread.start()

    def close(self) -> None:
        """Commit what is queued and stop."""
        with self._queued:
            self._stopping = True
            self._queued.notify()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def record(self, tx: Transaction, event: Event) -> None:
        """Insert the entry, or both tenants' entries, in `tx`."""
        if not isinstance(tx, TenantTransaction | PlatformTransaction):
            raise TypeError("the audit log needs a storage transaction")
        self._append(tx, self._entries(event, self._clock.now_s()))

    def record_soon(self, event: Event) -> None:
        """Queue the entry of a prediction; does no I/O.

        Raises:
            UnavailableError: entries cannot be committed at present, so the call must not happen.
        """
        now = self._clock.now_s()
        with self._queued:
            if not self._takes():
                raise UnavailableError("the audit log cannot take entries; try again", code="audit_unavailable")
            self._queue.append((event, now))
            if len(self._queue) == 1:
                self._queued.notify()

    @property
    def queued(self) -> int:
        """Return how many events wait to be committed."""
        return len(self._queue)

    @property
    def accepting(self) -> bool:
        """Return whether `record_soon` takes entries at present."""
        with self._queued:
            return self._takes()

    def _takes(self) -> bool:
        # INVARIANT: a writer that failed, stopped or died takes nothing more, from the next call on.
        dead = self._thread.ident is not None and not self._thread.is_alive()
        return not (self._failing or self._stopping or dead or len(self._queue) >= MAX_QUEUED)

    def flush(self) -> None:
        """Commit what is queued now; when it returns, what was queued before is committed, by whomever."""
        with self._committing:  # one group after the other: entries keep their order
            self._commit_group()

    def _commit_group(self) -> None:
        with self._queued:
            events, self._queue = self._queue, []
        if not events:
            return
        try:
            entries = self._of_group(events)
            with self._database.platform() as tx:
                self._append(tx, entries)
        except BaseException:
            with self._queued:
                self._queue = events + self._queue
                self._failing = True
            raise
        with self._queued:
            self._failing = False

    def _of_group(self, events: Sequence[tuple[Event, int]]) -> list[Entry]:
        entries: list[Entry] = []
        for number, (event, at) in enumerate(events, start=1):
            entries += self._entries(event, at, after_the_fact=True)
            if number % _SLICE == 0:
                # Sealing holds the interpreter; whoever waits for it, the event loop above all, gets it now and not
                # only when the interpreter's switch interval (5 ms) is over.
                time.sleep(_PAUSE_S)
        return entries

    def _write_groups(self) -> None:
        while True:
            with self._queued:
                while not self._queue and not self._stopping:
                    self._queued.wait()
                stopping = self._stopping
                if not stopping:
                    self._queued.wait(timeout=WINDOW_S)
            try:
                self.flush()
            except (SQLAlchemyError, ModelkeepError):
                # The entries stay queued and are tried again; until they are committed, calls are refused.
                _log.exception("audit entries could not be committed")
                if stopping:
                    return
            if stopping and not self._queue:
                return

    def _append(self, tx: TenantTransaction | PlatformTransaction, entries: Sequence[Entry]) -> None:
        rows = [
            {
                "id": entry.id,
                "tenant": entry.tenant,
                "created_at": entry.created_at,
                "request_id": entry.request_id,
                "salt": entry.salt,
                "body": entry.body,
            }
            for entry in entries
        ]
        tx.append(audit_entries, rows)

    def _entries(self, event: Event, at: int, *, after_the_fact: bool = False) -> list[Entry]:
        actor = event.actor
        if actor is None or actor.tenant == event.tenant:
            return [self._entry(event, event.tenant, at, None, after_the_fact=after_the_fact)]
        return [
            self._entry(event, event.tenant, at, b"", after_the_fact=after_the_fact),
            self._entry(event, actor.tenant, at, None, after_the_fact=after_the_fact),
        ]

    def _entry(self, event: Event, log: TenantId, at: int, sealed: bytes | None, *, after_the_fact: bool) -> Entry:
        entry_id = new_object_id(self._entropy, "log")
        if sealed is None:
            sealed = self._sealed(event, log, entry_id, after_the_fact=after_the_fact)
        return Entry(
            id=entry_id,
            tenant=log,
            created_at=at,
            request_id="" if event.actor is None else event.actor.request_id,
            salt=self._entropy.random_bytes(SALT_BYTES),
            body=entry_body(event, entry_id=entry_id, log=log, created_at=at, sealed_personal=sealed),
        )

    def _sealed(self, event: Event, log: TenantId, entry_id: str, *, after_the_fact: bool) -> bytes:
        try:
            return self._sealer.seal(
                log,
                AUDIT_KEY,
                personal_fields(event),
                purpose=Purpose.AUDIT,
                version=1,
                name=entry_id,
                suite=Suite.SMALL,
            )
        except IntegrityError:
            if not after_the_fact:
                raise
            # The key was destroyed between the call and its entry. Without names it is still an entry; waiting for a
            # key that does not come back would hold up every tenant's entries behind it.
            _log.warning("an entry has no personal fields: the key of its tenant's log is gone")
            return b""
