"""The database: an engine and the two ways to open a transaction.

SQLite runs in WAL mode with `synchronous=FULL`, and every transaction that may write begins with
`BEGIN IMMEDIATE`: a plain BEGIN that upgrades fails under concurrency. Only portable SQL is used.
"""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import sqlalchemy as sa

from modelkeep_platform.core.callers import OperatorCaller, TenantCaller
from modelkeep_platform.core.decisions import Decision
from modelkeep_platform.core.ids import TenantId
from modelkeep_platform.storage.blobs import FULL, StorageError
from modelkeep_platform.storage.driver import run
from modelkeep_platform.storage.tables.epoch import epoch
from modelkeep_platform.storage.transactions import PlatformTransaction, System, TenantScopeError, TenantTransaction

_BUSY: Final = "the database is busy; try again"
_BUSY_MS: Final = 30_000
_PRAGMAS: Final = (
    "journal_mode=WAL",
    "synchronous=FULL",
    "foreign_keys=ON",
    f"busy_timeout={_BUSY_MS}",
    "secure_delete=ON",
)


class Database:
    """Opens transactions; each commits when its block ends and rolls back when it raises.

    Args:
        url: an SQLAlchemy URL, for example ``sqlite:////var/lib/modelkeep/platform.db``.
    """

    def __init__(self, url: str) -> None:
        self._open = threading.local()
        self._writer = _FairLock()
        self.engine = sa.create_engine(url, pool_size=8, max_overflow=24) if ":memory:" not in url else _memory(url)
        # Of its own: whoever follows the epoch waits for no reader, however many there are.
        self._epochs = sa.create_engine(url, pool_size=1, max_overflow=7) if ":memory:" not in url else self.engine
        for engine in {self.engine, self._epochs}:
            if engine.dialect.name == "sqlite":
                sa.event.listen(engine, "connect", _prepare_sqlite)

    @contextmanager
    def tenant(
        self, owner: TenantId, *, by: TenantCaller | OperatorCaller | Decision | System, read_only: bool = False
    ) -> Iterator[TenantTransaction]:
        """Open a transaction over `owner`'s rows.

        Args:
            owner: whose rows.
            by: the right to do so: a caller of that very tenant, an allow decision about a resource of
                that owner (the only way for a foreign caller), or `System` with a reason.
            read_only: take no write lock; reads may then be nested inside a write of the same thread.

        Raises:
            TenantScopeError: `by` is no such right.
            StorageError: the disk is full, or the database busy for half a minute.
        """
        if isinstance(by, TenantCaller | OperatorCaller):
            right = by.tenant == owner
        elif isinstance(by, Decision):
            right = by.allow and by.ref.owner == owner
        else:
            right = bool(by.reason)
        if not right:
            message = "a tenant's rows were asked for without a right to them"
            raise TenantScopeError(message)
        with self.connection(read_only=read_only) as connection:
            yield TenantTransaction(connection, owner)

    @contextmanager
    def platform(self, *, read_only: bool = False) -> Iterator[PlatformTransaction]:
        """Open a transaction over everything; raises StorageError as `tenant` does."""
        with self.connection(read_only=read_only) as connection:
            yield PlatformTransaction(connection)

    def epoch(self) -> int:
        """Return the epoch's present number."""
        with self._epochs.connect() as connection:
            return int(connection.execute(sa.select(epoch.c.number)).scalar_one())

    @contextmanager
    def connection(self, *, read_only: bool = False) -> Iterator[sa.Connection]:
        """Open a transaction without any guard, for migrations; raises StorageError as `tenant` does."""
        # INVARIANT: a thread has one transaction, or one that writes and in it one that reads. A writer within a writer
        # would wait for the outer's lock for ever; threads that read and wait to read could hold every connection.
        kind = "read" if read_only else "write"
        if getattr(self._open, kind, False) or (not read_only and getattr(self._open, "read", False)):
            message = f"a {kind} transaction was opened inside another; pass the open one on"
            raise NestedTransactionError(message)
        setattr(self._open, kind, True)
        try:
            with self._turn(read_only=read_only), self.engine.connect() as connection, connection.begin():
                # Not in a listener to `begin`: with one, SQLAlchemy looks for listeners at each statement.
                if self.engine.dialect.name == "sqlite":
                    run(connection, "BEGIN" if read_only else "BEGIN IMMEDIATE")
                yield connection
        except sa.exc.OperationalError as exc:
            name = getattr(exc.orig, "sqlite_errorname", "")
            if name == "SQLITE_FULL":
                raise StorageError(FULL, code="disk_full") from exc
            if name.startswith("SQLITE_BUSY"):
                # Another process writes, for longer than `_BUSY_MS`.
                raise StorageError(_BUSY, code="database_busy") from exc
            raise
        except sa.exc.TimeoutError as exc:
            # Every connection of the pool was in use for half a minute.
            raise StorageError(_BUSY, code="database_busy") from exc
        finally:
            setattr(self._open, kind, False)

    @contextmanager
    def _turn(self, *, read_only: bool) -> Iterator[None]:
        """Wait for this process's turn to write to SQLite, which has one writer, before a connection is taken.

        Writers that waited within their transactions would hold every connection of the pool, and readers find none.

        Raises:
            StorageError: it did not come for as long as SQLite itself would be waited for.
        """
        if read_only or self.engine.dialect.name != "sqlite":
            yield
            return
        if not self._writer.acquire(timeout_s=_BUSY_MS / 1000):
            raise StorageError(_BUSY, code="database_busy")
        try:
            yield
        finally:
            self._writer.release()

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()
        self._epochs.dispose()


class _FairLock:
    """A lock that threads get in the order in which they came.

    With `threading.Lock` a thread that writes again at once, as the audit log's under load, gets it again before one
    that waits has woken, which may be the one that follows the epoch.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = False
        self._waiting: deque[threading.Lock] = deque()

    def acquire(self, *, timeout_s: float) -> bool:
        """Wait for one's turn; return whether it came."""
        with self._lock:
            if not self._taken:
                self._taken = True
                return True
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        if turn.acquire(timeout=timeout_s):
            return True
        with self._lock:
            if turn not in self._waiting:
                return True  # it came at the last moment
            self._waiting.remove(turn)
            return False

    def release(self) -> None:
        """Hand it to whoever has waited longest."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._taken = False


class NestedTransactionError(AssertionError):
    """A thread opened a transaction inside another of its own, and could wait for itself."""


def _memory(url: str) -> sa.Engine:
    return sa.create_engine(url, poolclass=sa.StaticPool, connect_args={"check_same_thread": False})


def _prepare_sqlite(connection: Any, _record: object) -> None:  # noqa: ANN401 -- the driver's own type
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in _PRAGMAS:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
