"""Databases as a migration leaves them, without its cost: every table, and the rows that the platform begins with."""

from collections.abc import Sequence

import sqlalchemy as sa

from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.schema import metadata
from modelkeep_platform.storage.tables.epoch import epoch
from modelkeep_platform.storage.tables.privacy import ledger_epochs


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
