"""Databases as a migration leaves them, without its cost: every table, and the rows that the platform begins with."""

import sqlite3
import threading
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
def statements(database: Database) -> Iterator[list[tuple[str, str]]]:
    """Collect what SQLite runs in transactions that begin meanwhile: the thread's name, and the text with its values.

    Complete when the block has ended; what follows the epoch has connections of its own, and is not seen.
    """
    ran: list[tuple[str, str]] = []

    def note(statement: str) -> None:
        ran.append((threading.current_thread().name, statement))

    def watch(connection: sqlite3.Connection, *_: object) -> None:
        connection.set_trace_callback(note)

    def leave(connection: sqlite3.Connection, *_: object) -> None:
        connection.set_trace_callback(None)

    sa.event.listen(database.engine, "checkout", watch)
    sa.event.listen(database.engine, "checkin", leave)
    try:
        yield ran
    finally:
        sa.event.remove(database.engine, "checkout", watch)
        sa.event.remove(database.engine, "checkin", leave)


@contextmanager
def writing(database: Database) -> Iterator[list[str]]:
    """Collect every transaction that begins in order to write; complete when the block has ended."""
    begun: list[str] = []
    with statements(database) as ran:
        try:
            yield begun
        finally:
            begun.extend(text for _, text in ran if text == "BEGIN IMMEDIATE")


def elsewhere(work: Callable[[], Result]) -> Result:
    """Do `work` in a thread of its own, as another caller or process would, while this one stands where it is."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()
