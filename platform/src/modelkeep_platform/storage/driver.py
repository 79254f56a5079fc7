"""Statements that go to the database's driver themselves, as text that SQLAlchemy compiled once.

SQLAlchemy writes the text, names the parameters in their order and knows how values are converted; this remembers it.
What SQLAlchemy does each time besides (keys, contexts, results with their metadata) is three quarters of what a short
statement takes (docs/adr/0113). A statement whose text depends on its values has no such text and is refused.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias, TypeVar, final

import sqlalchemy as sa
from sqlalchemy.sql.dml import Delete, Insert, Update

Row: TypeAlias = Mapping[Any, Any]
"""A row of a statement's answer, by the names of its columns."""

_Conversion: TypeAlias = Callable[[Any], Any]
_Statement: TypeAlias = sa.Select[Any] | Insert | Update | Delete


@final
class DriverStatement:
    """A statement, compiled once for each kind of database it runs on.

    Args:
        statement: what runs; each value that differs from run to run is a `sa.bindparam`, or a column that is set.
        columns: the names of the columns that an INSERT or UPDATE sets.

    Raises:
        ValueError: when it runs first: its text would depend on its values, some of them are made by Python, a column
            that is set does not exist, or one that is read has no name of its own.
    """

    __slots__ = ("_columns", "_statement", "_texts")

    def __init__(self, statement: _Statement, columns: Sequence[str] | None = None) -> None:
        self._statement = statement
        self._columns = columns
        self._texts: dict[tuple[str, str], _Text] = {}

    def all(self, connection: sa.Connection, parameters: Mapping[str, object]) -> list[Row]:
        """Run it and return every row."""
        text = self._text(connection.dialect)
        found: list[Any] = run(connection, text.sql, text.values(parameters), then="fetchall")
        return [text.row(one) for one in found]

    def first(self, connection: sa.Connection, parameters: Mapping[str, object]) -> Row | None:
        """Run it and return the first row, or None."""
        text = self._text(connection.dialect)
        found = run(connection, text.sql, text.values(parameters), then="fetchone")
        return None if found is None else text.row(found)

    def change(self, connection: sa.Connection, parameters: Mapping[str, object]) -> int:
        """Run it and return how many rows it changed."""
        text = self._text(connection.dialect)
        return int(run(connection, text.sql, text.values(parameters)))

    def many(self, connection: sa.Connection, rows: Sequence[Mapping[str, object]]) -> None:
        """Run it once for each row of parameters."""
        text = self._text(connection.dialect)
        run(connection, text.sql, [text.values(row) for row in rows], how="executemany")

    def _text(self, dialect: sa.Dialect) -> "_Text":
        # Two threads may compile the same text; either serves.
        kind = dialect.driver, dialect.paramstyle
        known = self._texts.get(kind)
        if known is None:
            known = self._texts[kind] = _Text(self._statement, dialect, self._columns)
        return known


class _Text:
    """The text for one kind of database, its parameters' order, and the conversions of what goes in and comes out."""

    __slots__ = ("_fixed", "_in", "_names", "_order", "_out", "sql")

    def __init__(self, statement: _Statement, dialect: sa.Dialect, columns: Sequence[str] | None) -> None:
        if isinstance(statement, Insert | Update) and not set(columns or ()) <= set(statement.table.columns.keys()):
            message = "a column that is set is none of the table's"
            raise ValueError(message)
        compiled = statement.compile(dialect=dialect, column_keys=None if columns is None else list(columns))
        if (
            compiled.post_compile_params
            or compiled.literal_execute_params
            or compiled.escaped_bind_names
            or compiled.insert_prefetch
            or compiled.update_prefetch
        ):
            message = "the text of this statement depends on its values; let a transaction start it instead"
            raise ValueError(message)
        self.sql: Final = str(compiled)
        self._order: Final = None if compiled.positiontup is None else tuple(compiled.positiontup)
        # Values that the statement itself holds: constants it compares with, its limit.
        self._fixed: Final = {
            name: bind.effective_value for bind, name in compiled.bind_names.items() if not bind.required
        }
        # By name: a parameter that is used twice is converted once.
        self._in: Final = _present(
            {name: _to_driver(bind.type, dialect) for bind, name in compiled.bind_names.items()}.items()
        )
        read = tuple(statement.selected_columns) if isinstance(statement, sa.Select) else ()
        self._names: Final = tuple(column.key for column in read)
        named = {column.key for column in read if column.key and column.key == getattr(column, "name", None)}
        if len(named) != len(read):
            message = "a column that is read has no name of its own; give it a label"
            raise ValueError(message)
        self._out: Final = _present((place, _from_driver(column.type, dialect)) for place, column in enumerate(read))

    def values(self, parameters: Mapping[str, object]) -> Any:  # noqa: ANN401 -- as the driver takes them
        values = {**self._fixed, **parameters}
        for name, convert in self._in:
            values[name] = convert(values[name])
        return values if self._order is None else tuple([values[name] for name in self._order])

    def row(self, found: Sequence[Any]) -> Row:
        if not self._out:
            return dict(zip(self._names, found, strict=True))
        values = list(found)
        for place, convert in self._out:
            values[place] = convert(values[place])
        return dict(zip(self._names, values, strict=True))


def run(
    connection: sa.Connection,
    sql: str,
    values: Any = (),  # noqa: ANN401 -- as the driver takes them
    *,
    how: Literal["execute", "executemany"] = "execute",
    then: Literal["fetchall", "fetchone"] | None = None,
) -> Any:  # noqa: ANN401 -- rows as the driver gives them, or how many were changed
    """Run text on the connection's own driver; what goes wrong is SQLAlchemy's error, so that nobody need know how.

    Raises:
        sqlalchemy.exc.DBAPIError: of the class that SQLAlchemy has for it, without the values.
    """
    driver = connection.dialect.loaded_dbapi
    cursor: Any = connection.connection.cursor()
    try:
        getattr(cursor, how)(sql, values)
        return cursor.rowcount if then is None else getattr(cursor, then)()
    except driver.Error as exc:
        raise sa.exc.DBAPIError.instance(sql, None, exc, driver.Error, hide_parameters=True) from exc
    finally:
        cursor.close()


_Place = TypeVar("_Place", int, str)


def _present(found: Iterable[tuple[_Place, _Conversion | None]]) -> tuple[tuple[_Place, _Conversion], ...]:
    return tuple((place, convert) for place, convert in found if convert is not None)


def _to_driver(kind: sa.types.TypeEngine[Any], dialect: sa.Dialect) -> _Conversion | None:
    return kind.dialect_impl(dialect).bind_processor(dialect)


def _from_driver(kind: sa.types.TypeEngine[Any], dialect: sa.Dialect) -> _Conversion | None:
    return kind.dialect_impl(dialect).result_processor(dialect, None)
