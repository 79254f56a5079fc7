"""Databases as a migration leaves them, without its cost: every table, and the rows that the platform begins with."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import sqlalchemy as sa

from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.schema import metadata
from modelkeep_platform.storage.tables.epoch import epoch
from modelkeep_platform.storage.tables.privacy import ledger_epochs

Result = TypeVar("Result")


def fresh(url: str, *, durable: bool = True, tables: Sequence[sa.Table] | None = None) -> Database:
    """Open a database and make its tables.

    Args:
        url: of a database that is not there yet.
        durable: whether a commit waits for the disk.
        tables: which; all of them when None.
    """
    database = Database(url)
    if not durable:
        sa.event.listen(database.engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF"))
    with database.connection() as connection:
        metadata.create_all(connection, tables=None if tables is None else [epoch, ledger_epochs, *tables])
        connection.execute(sa.insert(epoch).values(id=1, number=1))
        connection.execute(sa.insert(ledger_epochs).values(number=1, id="led_first", began_at=0, reason="installed"))
    return database


@contextmanager
def writing(database: Database) -> Iterator[list[str]]:
    """Collect every transaction that begins in order to write."""
    begun: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        begun.extend([statement] if statement == "BEGIN IMMEDIATE" else [])

    sa.event.listen(database.engine, "before_cursor_execute", note)
    try:
        yield begun
    finally:
        sa.event.remove(database.engine, "before_cursor_execute", note)


def elsewhere(work: Callable[[], Result]) -> Result:
    """Do `work` in a thread of its own, as another caller or process would, while this one stands where it is."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()
