"""What a statement over one tenant's rows may be made of.

The owner's filter stands on the statement's one table alone. So a statement may name that table, its columns, values,
comparisons and a few functions, and nothing else: what is not on the list below is refused, whether it would reach
other rows (another table, an alias, a subquery) or is text that nobody can look into (raw SQL, operators, hints).
"""

from typing import Any, Final, TypeAlias, cast

import sqlalchemy as sa
from sqlalchemy.sql import elements, visitors
from sqlalchemy.sql.dml import Delete, Update
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.operators import custom_op
from sqlalchemy.sql.selectable import _OffsetLimitParam

from modelkeep_platform.storage.schema import SCOPE, TENANT

TenantStatement: TypeAlias = sa.Select[Any] | Update | Delete

_KINDS: Final = (sa.Select, Update, Delete)
_FUNCTIONS: Final = frozenset({"coalesce", "count", "length", "max", "min", "sum"})
_VALUES: Final = frozenset(
    {
        _OffsetLimitParam,
        elements.AsBoolean,
        elements.BindParameter,
        elements.BooleanClauseList,
        elements.Case,
        elements.ClauseList,
        elements.ExpressionClauseList,
        elements.False_,
        elements.Grouping,
        elements.Null,
        elements.True_,
    }
)
_OPERATIONS: Final = frozenset({elements.BinaryExpression, elements.UnaryExpression})
_TEXTS: Final = ("_prefixes", "_suffixes", "_hints", "_statement_hints")


class TenantScopeError(AssertionError):
    """Code tried to reach beyond its tenant; a bug in the platform, never the caller's doing."""


def check_table(table: sa.Table) -> None:
    """Raise TenantScopeError unless the table's every row belongs to one tenant."""
    if table.info.get(SCOPE) != TENANT:
        message = f"{table.name} is not a tenant table"
        raise TenantScopeError(message)


def check_reach(statement: TenantStatement, table: sa.Table) -> None:
    """Raise unless all that the statement names is `table`, under the filter it carries.

    Args:
        statement: a SELECT, UPDATE or DELETE; not the values of an INSERT.
        table: the table whose owner's filter the statement carries.

    Raises:
        TenantScopeError: it names something else, contains text, or sets a row's owner.
    """
    if type(statement) not in _KINDS or any(getattr(statement, name, None) for name in _TEXTS):
        raise _beyond(table)
    for element in visitors.iterate(cast("visitors.ExternallyTraversible", statement)):
        if element is not statement and not _is_within(element, table):
            raise _beyond(table)
    if "tenant_id" in _set_columns(statement):
        message = "a row never changes its owner"
        raise TenantScopeError(message)


def _is_within(element: Any, table: sa.Table) -> bool:  # noqa: ANN401 -- whatever a statement is made of
    kind = type(element)
    if kind in _VALUES or element is table:
        return True
    if kind is sa.Column:
        return element.table is table
    if kind in _OPERATIONS:
        return not isinstance(element.operator, custom_op)
    if kind is elements.Label:  # one that is told not to be quoted is written as it is
        return getattr(element.name, "quote", None) is not False
    if kind is elements.ColumnClause:  # the star of count(*)
        return bool(element.is_literal and element.name == "*")
    return (
        isinstance(element, FunctionElement)
        and getattr(element, "name", None) in _FUNCTIONS
        and not getattr(element, "packagenames", ())
    )


def _set_columns(statement: TenantStatement) -> set[Any]:
    values = getattr(statement, "_values", None) or {}
    return {getattr(column, "name", column) for column in values}


def _beyond(table: sa.Table) -> TenantScopeError:
    return TenantScopeError(
        f"a statement started for {table.name} names more than that table's columns, values and known functions; "
        "query other tables, and other rows, by themselves"
    )
