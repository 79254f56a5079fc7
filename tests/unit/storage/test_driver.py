"""Statements that go to the driver mean what SQLAlchemy would have made of them."""

import sqlite3
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
import sqlalchemy as sa

from modelkeep_platform.storage.driver import DriverStatement

TABLE = sa.Table(
    "things",
    sa.MetaData(),
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("bytes", sa.LargeBinary),
    sa.Column("yes", sa.Boolean, nullable=False),
    sa.Column("when", sa.DateTime),
    sa.Column("any", sa.PickleType),
    sa.Column("large", sa.BigInteger, nullable=False, server_default="7"),
)
COLUMNS = ("id", "bytes", "yes", "any")
ROWS: list[dict[str, Any]] = [
    {"id": "a", "bytes": b"\0\xff", "yes": True, "any": {"x": [1]}},
    {"id": "b' --", "bytes": None, "yes": False, "any": None},
]


@pytest.fixture(params=["qmark", "named"])
def connection(request: pytest.FixtureRequest) -> Iterator[sa.Connection]:
    """An empty table, by parameters that have places, and by parameters that have names."""
    engine = sa.create_engine("sqlite://", paramstyle=request.param)
    with engine.connect() as connection:
        TABLE.create(connection)
        yield connection
    engine.dispose()


@pytest.fixture
def filled(connection: sa.Connection) -> sa.Connection:
    """The two rows."""
    # Made anew: what is compiled is kept by the driver's name, which both kinds of parameters share.
    insert = DriverStatement(sa.insert(TABLE), COLUMNS)
    assert [insert.change(connection, row) for row in ROWS] == [1, 1]
    return connection


READS: dict[str, tuple[sa.Select[Any], dict[str, object]]] = {
    "every column": (sa.select(TABLE).order_by(TABLE.c.id), {}),
    "a value of the statement's own": (sa.select(TABLE).where(TABLE.c.yes == sa.true()), {}),
    "a constant and a parameter": (
        sa.select(TABLE.c.id, TABLE.c.large).where(TABLE.c.large == 7, TABLE.c.id == sa.bindparam("which")),
        {"which": "b' --"},
    ),
    "a limit": (sa.select(TABLE.c.id).order_by(TABLE.c.id).limit(1), {}),
    "a label": (sa.select(sa.func.count(TABLE.c.id).label("n")), {}),
    "nothing": (sa.select(TABLE).where(TABLE.c.id == sa.bindparam("which")), {"which": "none"}),
    "a converted parameter": (
        sa.select(TABLE.c.id).where(TABLE.c.yes == sa.bindparam("which", type_=sa.Boolean())),
        {"which": False},
    ),
    "bytes": (sa.select(TABLE.c.id).where(TABLE.c.bytes == sa.bindparam("which")), {"which": b"\0\xff"}),
}


@pytest.mark.parametrize(("statement", "parameters"), READS.values(), ids=READS.keys())
def test_it_reads_what_sqlalchemy_reads(
    filled: sa.Connection, statement: sa.Select[Any], parameters: dict[str, object]
) -> None:
    expected = [dict(row) for row in filled.execute(statement, parameters).mappings()]
    asked = DriverStatement(statement)
    assert [list(row.items()) for row in asked.all(filled, parameters)] == [list(row.items()) for row in expected]
    assert asked.first(filled, parameters) == (expected[0] if expected else None)


def test_what_was_written_is_what_sqlalchemy_reads(filled: sa.Connection) -> None:
    found = filled.execute(sa.select(TABLE).order_by(TABLE.c.id)).mappings().all()
    assert [dict(row) for row in found] == [{**row, "when": None, "large": 7} for row in ROWS]
    assert isinstance(found[0]["any"], dict)


def test_changes_are_counted(filled: sa.Connection) -> None:
    change = DriverStatement(sa.update(TABLE).where(TABLE.c.id == sa.bindparam("which")), ("yes", "any"))
    assert change.change(filled, {"which": "a", "yes": False, "any": 3}) == 1
    assert change.change(filled, {"which": "c", "yes": False, "any": 3}) == 0
    assert filled.execute(sa.select(TABLE.c.any).where(TABLE.c.id == "a")).scalar_one() == 3


def test_many_rows_are_as_many_runs(filled: sa.Connection) -> None:
    insert = DriverStatement(sa.insert(TABLE), ("id", "bytes", "yes"))
    rows: list[dict[str, object]] = [{"id": f"c{n}", "bytes": bytes([n]), "yes": n == 1} for n in range(3)]
    insert.many(filled, rows)
    found = filled.execute(sa.select(TABLE.c.id, TABLE.c.bytes, TABLE.c.yes).where(TABLE.c.id.like("c%"))).mappings()
    assert [dict(row) for row in found] == rows
    with pytest.raises(sa.exc.IntegrityError) as raised:
        insert.many(filled, rows)
    assert "c0" not in str(raised.value)


def test_an_error_is_sqlalchemys_and_tells_no_value(filled: sa.Connection) -> None:
    insert = DriverStatement(sa.insert(TABLE), ("id", "yes"))
    insert.change(filled, {"id": "very-secret", "yes": True})
    with pytest.raises(sa.exc.IntegrityError) as raised:
        insert.change(filled, {"id": "very-secret", "yes": True})
    assert "very-secret" not in str(raised.value)
    with pytest.raises(sa.exc.OperationalError, match="no such table"):
        DriverStatement(sa.select(sa.Table("gone", sa.MetaData(), sa.Column("x", sa.Integer)))).all(filled, {})


def test_a_missing_value_is_an_error_and_changes_nothing(filled: sa.Connection) -> None:
    change = DriverStatement(sa.update(TABLE).where(TABLE.c.id == sa.bindparam("which")), ("large",))
    with pytest.raises((KeyError, sa.exc.DBAPIError)):
        change.change(filled, {"large": 8})
    assert filled.execute(sa.select(sa.func.max(TABLE.c.large))).scalar_one() == 7


WITHOUT_A_TEXT: dict[str, tuple[Any, tuple[str, ...] | None]] = {
    "one parameter for each value": (sa.select(TABLE).where(TABLE.c.id.in_(sa.bindparam("ids", expanding=True))), None),
    "constants in a list": (sa.select(TABLE).where(TABLE.c.id.in_(["a", "b"])), None),
    "a value made by Python": (
        sa.insert(sa.Table("other", sa.MetaData(), sa.Column("x", sa.Integer), sa.Column("y", sa.Integer, default=3))),
        ("x",),
    ),
    "a change made by Python": (
        sa.update(sa.Table("other", sa.MetaData(), sa.Column("x", sa.Integer), sa.Column("y", sa.Integer, onupdate=3))),
        ("x",),
    ),
}


@pytest.mark.parametrize(("statement", "columns"), WITHOUT_A_TEXT.values(), ids=WITHOUT_A_TEXT.keys())
def test_what_has_no_one_text_is_refused(
    connection: sa.Connection, statement: Any, columns: tuple[str, ...] | None
) -> None:
    with pytest.raises(ValueError, match="depends on its values"):
        DriverStatement(statement, columns).change(connection, {"x": 1})


OTHER = sa.Table("other", sa.MetaData(), sa.Column("in_the_database", sa.Integer, key="in_python"))


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param(sa.select(sa.func.max(TABLE.c.id)), id="none"),
        pytest.param(sa.select(TABLE.c.id.label("x"), TABLE.c.large.label("x")), id="one for two"),
        pytest.param(sa.select(OTHER), id="two for one"),
    ],
)
def test_a_column_without_a_name_of_its_own_is_refused(connection: sa.Connection, statement: sa.Select[Any]) -> None:
    with pytest.raises(ValueError, match="give it a label"):
        DriverStatement(statement).first(connection, {})


@pytest.mark.parametrize("statement", [sa.insert(TABLE), sa.update(TABLE)], ids=["insert", "update"])
def test_a_column_that_is_not_there_cannot_be_set(connection: sa.Connection, statement: Any) -> None:
    with pytest.raises(ValueError, match="none of the table's"):
        DriverStatement(statement, ("id", "nope")).change(connection, {"id": "a", "nope": 1})


def test_a_parameter_that_is_used_twice_is_converted_once(filled: sa.Connection) -> None:
    at = datetime(2026, 11, 29, 12)  # noqa: DTZ001 -- SQLite keeps no zone
    filled.execute(sa.update(TABLE).values(when=at).where(TABLE.c.id == "a"))
    when = sa.bindparam("at", type_=sa.DateTime())
    twice = DriverStatement(sa.select(TABLE.c.id).where(sa.or_(TABLE.c.when == when, TABLE.c.when > when)))
    assert twice.all(filled, {"at": at}) == [{"id": "a"}]


def test_what_fails_while_rows_are_read_is_sqlalchemys_error_too(filled: sa.Connection) -> None:
    filled.execute(sa.update(TABLE).values(large=-(2**63)).where(TABLE.c.id == "b' --"))
    absolute = sa.select(sa.func.abs(TABLE.c.large).label("n")).order_by(TABLE.c.id)
    with pytest.raises(sa.exc.OperationalError, match="integer overflow"):
        DriverStatement(absolute).all(filled, {})


def test_no_cursor_stays_open(filled: sa.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    lend = type(filled.connection).cursor

    def lending(self: Any, *args: Any) -> Any:
        opened.append(lend(self, *args))
        return opened[-1]

    monkeypatch.setattr(type(filled.connection), "cursor", lending)
    DriverStatement(sa.select(TABLE)).first(filled, {})
    with pytest.raises(OverflowError):
        DriverStatement(sa.select(TABLE.c.id).where(TABLE.c.large == sa.bindparam("n"))).all(filled, {"n": 2**70})
    with pytest.raises(sa.exc.IntegrityError):
        DriverStatement(sa.insert(TABLE), ("id", "yes")).change(filled, {"id": "a", "yes": True})
    assert len(opened) == 3
    for cursor in opened:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            cursor.fetchone()
