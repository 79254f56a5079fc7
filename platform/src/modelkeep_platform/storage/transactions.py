"""Transactions that cannot reach another tenant's rows.

A `TenantTransaction` runs two kinds of statements. Those that it started itself, for its owner: `select`, `update` and
`delete` carry the owner's filter, and what was added to them is checked each time they run. And prepared ones
(`storage.prepared`): checked once, when they are made, with the owner as a parameter that the transaction sets.
`insert` sets the owner, too. A `PlatformTransaction` reaches every table; it is for the platform's own tables and for
work that spans tenants (log integration, expiry, the job queue).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, cast

import sqlalchemy as sa
from sqlalchemy.sql.dml import Delete, Update

from modelkeep_platform.core.errors import IntegrityError
from modelkeep_platform.core.ids import TenantId
from modelkeep_platform.storage.driver import DriverStatement, Row
from modelkeep_platform.storage.prepared import PreparedSelect, PreparedUpdate
from modelkeep_platform.storage.scope import TenantScopeError, TenantStatement, check_reach, check_table
from modelkeep_platform.storage.tables.epoch import epoch
from modelkeep_platform.storage.tables.privacy import ledger_epochs

_LEDGER_EPOCH: Final = sa.select(sa.func.max(ledger_epochs.c.number))
_INSERTS: Final = 256
_STARTED: Final = "modelkeep_started"


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """Work of the platform itself that needs a tenant's rows, with the reason it states."""

    reason: str


class _Transaction:
    """What both kinds share."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def bump_epoch(self) -> None:
        """Move the epoch within this transaction, so that caches of every process let go."""
        self._connection.execute(sa.update(epoch).values(number=epoch.c.number + 1))

    def ledger_epoch(self) -> int:
        """Return the number of the ledger's epoch, which every restore from a backup moves.

        Raises:
            IntegrityError: code ``ledger_epoch_missing``: the database names none.
        """
        number = self._connection.execute(_LEDGER_EPOCH).scalar_one()
        if number is None:
            raise IntegrityError("the ledger's epoch is missing; restore a backup", code="ledger_epoch_missing")
        return int(number)

    def append(self, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
        """Insert rows, all of the same columns and in their order, into a table declared with `append_only_log`.

        Raises:
            TenantScopeError: the table was not declared so.
        """
        if not table.info.get("append"):
            message = f"{table.name} is not an append-only log"
            raise TenantScopeError(message)
        if rows:
            _insert_into(table, tuple(rows[0])).many(self._connection, rows)


class PlatformTransaction(_Transaction):
    """Reaches every table."""

    def execute(
        self, statement: sa.Executable, parameters: Sequence[Mapping[str, Any]] | None = None
    ) -> sa.CursorResult[Any]:
        """Run any statement; with `parameters`, once for each."""
        return cast("sa.CursorResult[Any]", self._connection.execute(statement, parameters))

    def as_tenant(self, owner: TenantId) -> "TenantTransaction":
        """Return the same transaction, narrowed to one tenant's rows."""
        return TenantTransaction(self._connection, owner)

    def all(self, statement: sa.Select[Any], **parameters: object) -> Sequence[Row]:
        """Return every row; `parameters` are those that the statement names."""
        return self._connection.execute(statement, parameters).mappings().all()

    def first(self, statement: sa.Select[Any], **parameters: object) -> Row | None:
        """Return the first row, or None; `parameters` are those that the statement names."""
        return self._connection.execute(statement, parameters).mappings().first()


class TenantTransaction(_Transaction):
    """Reaches the rows of `owner` in tenant tables, and nothing else."""

    def __init__(self, connection: sa.Connection, owner: TenantId) -> None:
        super().__init__(connection)
        self.owner = owner

    def select(self, table: sa.Table, *columns: sa.ColumnElement[Any]) -> sa.Select[Any]:
        """Start a SELECT of `columns` (default: all) from the owner's rows of `table`."""
        check_table(table)
        statement = sa.select(*(columns or (table,))).select_from(table).where(table.c.tenant_id == self.owner)
        return statement.execution_options(**{_STARTED: (self.owner, table)})

    def insert(self, table: sa.Table, **values: Any) -> None:  # noqa: ANN401 -- column values are of any type
        """Insert one row of the owner."""
        check_table(table)
        if "tenant_id" in values:
            message = "the owner is set by the transaction"
            raise TenantScopeError(message)
        row = {"tenant_id": self.owner, **values}
        _insert_into(table, tuple(row)).change(self._connection, row)

    def update(self, table: sa.Table) -> Update:
        """Start an UPDATE of the owner's rows; run it with `change`."""
        check_table(table)
        statement = sa.update(table).where(table.c.tenant_id == self.owner)
        return statement.execution_options(**{_STARTED: (self.owner, table)})

    def delete(self, table: sa.Table) -> Delete:
        """Start a DELETE of the owner's rows; run it with `change`."""
        check_table(table)
        statement = sa.delete(table).where(table.c.tenant_id == self.owner)
        return statement.execution_options(**{_STARTED: (self.owner, table)})

    def all(self, statement: sa.Select[Any] | PreparedSelect, **parameters: object) -> Sequence[Row]:
        """Return every row of a statement that `select` started, or of a prepared one with its parameters.

        Raises:
            TenantScopeError: the statement reaches beyond the owner's rows, or the parameters are not its own.
        """
        # The exact type: a subclass could leave out what it does.
        if type(statement) is PreparedSelect:
            return statement.statement.all(self._connection, statement.bind(self.owner, parameters))
        return self._run(statement, parameters).mappings().all()

    def count(self, table: sa.Table, *where: sa.ColumnElement[bool]) -> int:
        """Return how many of the owner's rows of `table` there are, for which `where` holds."""
        row = self.first(self.select(table, sa.func.count(table.c.tenant_id).label("n")).where(*where))
        return 0 if row is None else int(row["n"])

    def first(self, statement: sa.Select[Any] | PreparedSelect, **parameters: object) -> Row | None:
        """Return the first row of a statement that `select` started, or of a prepared one, or None.

        Raises:
            TenantScopeError: the statement reaches beyond the owner's rows, or the parameters are not its own.
        """
        if type(statement) is PreparedSelect:
            return statement.statement.first(self._connection, statement.bind(self.owner, parameters))
        return self._run(statement, parameters).mappings().first()

    def change(self, statement: Update | Delete | PreparedUpdate, **parameters: object) -> int:
        """Run a statement that `update` or `delete` started, or a prepared one; return how many rows it changed.

        Raises:
            TenantScopeError: the statement reaches beyond the owner's rows, or the parameters are not its own.
        """
        if type(statement) is PreparedUpdate:
            return statement.statement.change(self._connection, statement.bind(self.owner, parameters))
        return self._run(statement, parameters).rowcount

    def _run(
        self, statement: TenantStatement | PreparedSelect | PreparedUpdate, parameters: Mapping[str, object]
    ) -> sa.CursorResult[Any]:
        if not isinstance(statement, sa.Select | Update | Delete):
            message = f"{type(statement).__name__} is no statement to run this way"
            raise TenantScopeError(message)
        started = statement.get_execution_options().get(_STARTED)
        if started is None or started[0] != self.owner or parameters:
            message = "this statement was neither started by this transaction nor prepared"
            raise TenantScopeError(message)
        # INVARIANT: every table a tenant's statement names is the one it was started for.
        check_reach(statement, started[1])
        return cast("sa.CursorResult[Any]", self._connection.execute(statement))


@lru_cache(maxsize=_INSERTS)
def _insert_into(table: sa.Table, columns: tuple[str, ...]) -> DriverStatement:
    return DriverStatement(sa.insert(table), columns)


__all__ = ["PlatformTransaction", "Row", "System", "TenantScopeError", "TenantTransaction"]
