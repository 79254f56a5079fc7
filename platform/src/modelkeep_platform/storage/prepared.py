"""Statements over one tenant's rows that are written once, at module level, and run many times.

A statement that a transaction starts anew is built, checked and looked up each time it runs: ten times what it costs
to run. A prepared one is checked once, when it is made, by the same rules, and carries the owner as a parameter that
only a `TenantTransaction` sets; its text goes to the driver itself (`storage.driver`). Whoever runs it passes exactly
the parameters it names: one more or one less is a mistake that must not go unseen.
"""

from collections.abc import Mapping
from typing import Any, Final, Never, final

import sqlalchemy as sa
from sqlalchemy.sql import visitors

from modelkeep_platform.core.ids import TenantId
from modelkeep_platform.storage.driver import DriverStatement
from modelkeep_platform.storage.scope import TenantScopeError, TenantStatement, check_reach, check_table

_OWNER: Final = "modelkeep_owner"


class _Prepared:
    """A checked statement and the names of its parameters."""

    __slots__ = ("_names", "statement")
    _names: frozenset[str]
    statement: DriverStatement

    def __init__(self, table: sa.Table, statement: TenantStatement, set_columns: tuple[str, ...] = ()) -> None:
        check_table(table)
        check_reach(statement, table)
        names = _named_parameters(statement)
        if _OWNER in names or "tenant_id" in set_columns:
            message = "the owner is set by the transaction"
            raise TenantScopeError(message)
        if set_columns and names & set(table.columns.keys()):
            message = "a condition's parameter is named like a column, which would set it; name it otherwise"
            raise ValueError(message)
        of_owner = statement.where(table.c.tenant_id == sa.bindparam(_OWNER))
        object.__setattr__(self, "statement", DriverStatement(of_owner, set_columns or None))
        object.__setattr__(self, "_names", names.union(set_columns))

    def __setattr__(self, name: str, value: object) -> Never:
        raise AttributeError("a prepared statement does not change")

    def bind(self, owner: TenantId, parameters: Mapping[str, object]) -> dict[str, object]:
        """Return the parameters to run the statement with, the owner among them.

        Raises:
            TenantScopeError: they are not exactly those that the statement names.
        """
        if parameters.keys() != self._names:
            message = f"a prepared statement takes exactly the parameters {sorted(self._names)}"
            raise TenantScopeError(message)
        return {**parameters, _OWNER: owner}


@final
class PreparedSelect(_Prepared):
    """Rows of one tenant; run it with `all` or `first`.

    Args:
        table: a tenant table.
        columns: what is read; all of the table's columns when none is given.
        where: conditions that all hold, with a `sa.bindparam` for each value that the caller gives.
        order_by: in which order.
        limit: how many at most; all when None.

    Raises:
        TenantScopeError: it would reach beyond the owner's rows of `table`.
    """

    __slots__ = ()

    def __init__(
        self,
        table: sa.Table,
        *columns: sa.ColumnElement[Any],
        where: tuple[sa.ColumnElement[bool], ...],
        order_by: tuple[sa.ColumnElement[Any], ...] = (),
        limit: int | None = None,
    ) -> None:
        statement = sa.select(*(columns or (table,))).select_from(table).where(*where).order_by(*order_by).limit(limit)
        super().__init__(table, statement)


@final
class PreparedUpdate(_Prepared):
    """A change of one tenant's rows; run it with `change`.

    Args:
        table: a tenant table.
        columns: the names of the columns it sets; they are the parameters of the new values.
        where: conditions that all hold, with a `sa.bindparam` for each value that the caller gives, not named like a
            column of the table.

    Raises:
        TenantScopeError: it would reach beyond the owner's rows of `table`, or set their owner.
        ValueError: it sets nothing, or a parameter's name is ambiguous.
    """

    __slots__ = ()

    def __init__(self, table: sa.Table, *columns: str, where: tuple[sa.ColumnElement[bool], ...]) -> None:
        if not columns or not set(columns) <= set(table.columns.keys()):
            message = "a prepared update sets columns of its table, at least one"
            raise ValueError(message)
        super().__init__(table, sa.update(table).where(*where), columns)


def _named_parameters(statement: TenantStatement) -> frozenset[str]:
    return frozenset(
        element.key
        for element in visitors.iterate(statement)
        if isinstance(element, sa.BindParameter) and not element.unique
    )
