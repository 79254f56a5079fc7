"""Transactions that cannot reach another tenant's rows.

A `TenantTransaction` runs only statements that it built itself, for its owner: `select`, `update` and
`delete` carry the owner's filter, `insert` sets the owner, and each statement is checked again when it
is executed. A `PlatformTransaction` reaches every table; it is for the platform's own tables and
for work that spans tenants (log integration, expiry, the job queue).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, cast

import sqlalchemy as sa
from sqlalchemy.sql import visitors
from sqlalchemy.sql.dml import Delete, Update
from sqlalchemy.sql.selectable import AliasedReturnsRows, Exists, ScalarSelect, SelectBase

from modelkeep_platform.core.ids import TenantId
from modelkeep_platform.storage.schema import PLATFORM, SCOPE, TENANT
from modelkeep_platform.storage.tables.epoch import epoch

Row: TypeAlias = sa.RowMapping
_OWNER: Final = "modelkeep_owner"


class TenantScopeError(AssertionError):
    """Code tried to reach beyond its tenant; a bug in the platform, never the caller's doing."""


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

    def append(self, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
        """Insert rows, all of the same columns and in their order, into a table declared with `append_only_log`.

        Raises:
            TenantScopeError: the table was not declared so.
        """
        if not table.info.get("append"):
            message = f"{table.name} is not an append-only log"
            raise TenantScopeError(message)
        if rows:
            # Values as parameters: the statement is compiled once, however many rows there are.
            self._connection.execute(sa.insert(table), rows)


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

    def all(self, statement: sa.Select[Any]) -> Sequence[Row]:
        """Return every row."""
        return self._connection.execute(statement).mappings().all()

    def first(self, statement: sa.Select[Any]) -> Row | None:
        """Return the first row, or None."""
        return self._connection.execute(statement).mappings().first()


class TenantTransaction(_Transaction):
    """Reaches the rows of `owner` in tenant tables, and nothing else."""

    def __init__(self, connection: sa.Connection, owner: TenantId) -> None:
        super().__init__(connection)
        self.owner = owner

    def select(self, table: sa.Table, *columns: sa.ColumnElement[Any]) -> sa.Select[Any]:
        """Start a SELECT of `columns` (default: all) from the owner's rows of `table`."""
        self._check(table)
        statement = sa.select(*(columns or (table,))).select_from(table).where(table.c.tenant_id == self.owner)
        return statement.execution_options(**{_OWNER: (self.owner, table.name)})

    def insert(self, table: sa.Table, **values: Any) -> None:  # noqa: ANN401 -- column values are of any type
        """Insert one row of the owner."""
        self._check(table)
        if "tenant_id" in values:
            message = "the owner is set by the transaction"
            raise TenantScopeError(message)
        self._connection.execute(sa.insert(table), {"tenant_id": self.owner, **values})

    def update(self, table: sa.Table) -> Update:
        """Start an UPDATE of the owner's rows; run it with `change`."""
        self._check(table)
        statement = sa.update(table).where(table.c.tenant_id == self.owner)
        return statement.execution_options(**{_OWNER: (self.owner, table.name)})

    def delete(self, table: sa.Table) -> Delete:
        """Start a DELETE of the owner's rows; run it with `change`."""
        self._check(table)
        statement = sa.delete(table).where(table.c.tenant_id == self.owner)
        return statement.execution_options(**{_OWNER: (self.owner, table.name)})

    def all(self, statement: sa.Select[Any]) -> Sequence[Row]:
        """Return every row of a statement that `select` started."""
        self._check_statement(statement)
        return self._connection.execute(statement).mappings().all()

    def first(self, statement: sa.Select[Any]) -> Row | None:
        """Return the first row of a statement that `select` started, or None."""
        self._check_statement(statement)
        return self._connection.execute(statement).mappings().first()

    def change(self, statement: Update | Delete) -> int:
        """Run a statement that `update` or `delete` started; return how many rows it changed."""
        self._check_statement(statement)
        if "tenant_id" in _set_columns(statement):
            message = "a row never changes its owner"
            raise TenantScopeError(message)
        return cast("sa.CursorResult[Any]", self._connection.execute(statement)).rowcount

    def _check(self, table: sa.Table) -> None:
        if table.info.get(SCOPE) != TENANT:
            message = f"{table.name} is not a tenant table"
            raise TenantScopeError(message)

    def _check_statement(self, statement: sa.Executable) -> None:
        # INVARIANT: every table a tenant's statement names is the one it was started for.
        mark = statement.get_execution_options().get(_OWNER)
        if mark is None or mark[0] != self.owner or not isinstance(statement, sa.Select | Update | Delete):
            message = "this statement was not started by this transaction"
            raise TenantScopeError(message)
        for element in visitors.iterate(cast("visitors.ExternallyTraversible", statement)):
            if isinstance(element, sa.Table) and element.name != mark[1]:
                message = f"{element.name} is joined into a statement started for {mark[1]}; query it by itself"
                raise TenantScopeError(message)
            if element is not statement and _escapes(element):
                message = f"a statement started for {mark[1]} names rows without their owner; query them by themselves"
                raise TenantScopeError(message)


def _escapes(element: object) -> bool:
    # The owner's filter stands on the outermost table alone: a second naming of the same table (an alias, a subquery)
    # and raw SQL are not under it.
    return isinstance(
        element, AliasedReturnsRows | SelectBase | ScalarSelect | Exists | sa.TextClause | sa.TextualSelect
    ) or (isinstance(element, sa.ColumnClause) and element.is_literal and element.name != "*")  # the star of count(*)


def _set_columns(statement: Update | Delete) -> set[Any]:
    values = getattr(statement, "_values", None) or {}
    return {getattr(column, "name", column) for column in values}


__all__ = ["PLATFORM", "PlatformTransaction", "Row", "System", "TenantScopeError", "TenantTransaction"]
