"""Prepared statements reach their owner's rows and nothing else, whatever they are made of and run with."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from fakes.core import ACME, GLOBEX
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.prepared import PreparedSelect, PreparedUpdate
from modelkeep_platform.storage.tables.keys import platform_secrets, wrapped_deks, wrapped_keks
from modelkeep_platform.storage.transactions import System, TenantScopeError, TenantTransaction

SYSTEM = System(reason="a test")
C = wrapped_deks.c
OTHER = wrapped_deks.alias("other")

ALL = PreparedSelect(wrapped_deks, where=(), order_by=(C.object_id,))
ONE = PreparedSelect(wrapped_deks, where=(C.object_id == sa.bindparam("object_id"),))
COUNT = PreparedSelect(wrapped_deks, sa.func.count().label("n"), where=())
EITHER = PreparedSelect(wrapped_deks, where=(sa.or_(C.object_id == sa.bindparam("object_id"), C.object_id != ""),))
RENEW = PreparedUpdate(wrapped_deks, "kek_version", where=(C.object_id == sa.bindparam("which"),))
RENEW_ALL = PreparedUpdate(wrapped_deks, "kek_version", where=())


@pytest.fixture
def filled(database: Database) -> Database:
    """Two rows of each of two tenants."""
    for owner, name in ((ACME, "acme"), (GLOBEX, "globex")):
        with database.tenant(owner, by=SYSTEM) as tx:
            for object_id in (f"of-{name}", "shared-name"):
                tx.insert(wrapped_deks, object_id=object_id, kek_version=1, wrapped=name.encode(), created_at=1)
    return database


@pytest.fixture
def tx(filled: Database) -> Iterator[TenantTransaction]:
    """A transaction of Acme's."""
    with filled.tenant(ACME, by=SYSTEM) as tx:
        yield tx


def everything(database: Database) -> set[tuple[str, str, int]]:
    with database.platform(read_only=True) as tx:
        return {(row["tenant_id"], row["object_id"], row["kek_version"]) for row in tx.all(sa.select(wrapped_deks))}


def test_one_statement_serves_every_tenant_its_own_rows(filled: Database) -> None:
    for owner, name in ((ACME, "acme"), (GLOBEX, "globex"), (ACME, "acme")):
        with filled.tenant(owner, by=SYSTEM, read_only=True) as tx:
            assert [row["object_id"] for row in tx.all(ALL)] == [f"of-{name}", "shared-name"]
            found = tx.first(ONE, object_id="shared-name")
            assert found is not None
            assert found["wrapped"] == name.encode()
            counted = tx.first(COUNT)
            assert counted is not None
            assert counted["n"] == 2


def test_another_tenants_row_is_not_there(tx: TenantTransaction) -> None:
    assert tx.first(ONE, object_id="of-globex") is None
    assert tx.all(ONE, object_id="of-globex") == []


def test_a_condition_that_always_holds_stays_under_the_owners_filter(tx: TenantTransaction) -> None:
    assert {row["tenant_id"] for row in tx.all(EITHER, object_id="of-globex")} == {ACME}


@pytest.mark.parametrize("value", ["' OR 1=1 --", "x' OR tenant_id != '", "%"])
def test_a_value_is_never_text_of_the_statement(tx: TenantTransaction, value: str) -> None:
    assert tx.all(ONE, object_id=value) == []


def test_changes_reach_own_rows_only(filled: Database) -> None:
    with filled.tenant(ACME, by=SYSTEM) as tx:
        assert tx.change(RENEW, which="shared-name", kek_version=2) == 1
        assert tx.change(RENEW, which="of-globex", kek_version=2) == 0
    with filled.tenant(GLOBEX, by=SYSTEM) as tx:
        assert tx.change(RENEW_ALL, kek_version=7) == 2
    assert everything(filled) == {
        (ACME, "of-acme", 1),
        (ACME, "shared-name", 2),
        (GLOBEX, "of-globex", 7),
        (GLOBEX, "shared-name", 7),
    }


READS: dict[str, Callable[[], PreparedSelect]] = {
    "a platform table": lambda: PreparedSelect(platform_secrets, where=()),
    "a column of another tenant table": lambda: PreparedSelect(wrapped_deks, wrapped_keks.c.version, where=()),
    "a column of a platform table": lambda: PreparedSelect(wrapped_deks, platform_secrets.c.sealed, where=()),
    "a condition on another table": lambda: PreparedSelect(
        wrapped_deks, where=(C.object_id == platform_secrets.c.name,)
    ),
    "an order by another table": lambda: PreparedSelect(wrapped_deks, where=(), order_by=(wrapped_keks.c.version,)),
    "an alias": lambda: PreparedSelect(wrapped_deks, OTHER.c.object_id, where=()),
    "an alias in the table's place": lambda: PreparedSelect(OTHER, where=()),  # type: ignore[arg-type]
    "a condition on an alias": lambda: PreparedSelect(wrapped_deks, where=(C.object_id != OTHER.c.object_id,)),
    "a scalar subquery": lambda: PreparedSelect(
        wrapped_deks, sa.select(sa.func.max(C.object_id)).correlate(None).scalar_subquery(), where=()
    ),
    "exists": lambda: PreparedSelect(wrapped_deks, where=(sa.exists(sa.select(OTHER.c.object_id)),)),
    "in a subquery": lambda: PreparedSelect(wrapped_deks, where=(C.object_id.in_(sa.select(C.object_id)),)),
    "raw text": lambda: PreparedSelect(
        wrapped_deks,
        where=(sa.text("1=1 OR 1=1"),),  # type: ignore[arg-type]
    ),
    "raw text as order": lambda: PreparedSelect(
        wrapped_deks,
        where=(),
        order_by=(sa.text("1 LIMIT 1"),),  # type: ignore[arg-type]
    ),
    "a raw column": lambda: PreparedSelect(wrapped_deks, sa.literal_column("(SELECT 1)"), where=()),
    "an operator of one's own": lambda: PreparedSelect(
        wrapped_deks, where=(C.object_id.op("= '') OR (1 = 1 OR object_id =")("x"),)
    ),
    "an unknown function": lambda: PreparedSelect(wrapped_deks, sa.func.load_extension("x"), where=()),
    "a parameter named as the owner's": lambda: PreparedSelect(
        wrapped_deks, where=(C.object_id == sa.bindparam("modelkeep_owner"),)
    ),
    "the owner's parameter with a value": lambda: PreparedSelect(
        wrapped_deks, where=(C.tenant_id == sa.bindparam("modelkeep_owner", GLOBEX),)
    ),
}


@pytest.mark.parametrize("make", READS.values(), ids=READS.keys())
def test_a_read_that_could_leave_the_tenant_cannot_be_prepared(make: Callable[[], PreparedSelect]) -> None:
    with pytest.raises((TenantScopeError, AttributeError)) as raised:
        make()
    # A table that is none has no declaration to look at, and that is an error, too.
    assert raised.type is TenantScopeError or make is READS["an alias in the table's place"]


CHANGES: dict[str, Callable[[], PreparedUpdate]] = {
    "a platform table": lambda: PreparedUpdate(platform_secrets, "sealed", where=()),
    "a new owner": lambda: PreparedUpdate(wrapped_deks, "tenant_id", where=()),
    "a new owner among others": lambda: PreparedUpdate(wrapped_deks, "kek_version", "tenant_id", where=()),
    "a condition on another table": lambda: PreparedUpdate(
        wrapped_deks, "kek_version", where=(C.object_id == wrapped_keks.c.tenant_id,)
    ),
    "a subquery": lambda: PreparedUpdate(
        wrapped_deks, "kek_version", where=(C.object_id.in_(sa.select(OTHER.c.object_id)),)
    ),
    "a parameter named as the owner's": lambda: PreparedUpdate(
        wrapped_deks, "kek_version", where=(C.object_id == sa.bindparam("modelkeep_owner"),)
    ),
}


@pytest.mark.parametrize("make", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_that_could_leave_the_tenant_cannot_be_prepared(make: Callable[[], PreparedUpdate]) -> None:
    with pytest.raises(TenantScopeError):
        make()


@pytest.mark.parametrize(
    ("columns", "name"),
    [((), "which"), (("no_such_column",), "which"), (("kek_version",), "object_id"), (("kek_version",), "tenant_id")],
    ids=["sets nothing", "sets no column of the table", "a condition named like a column", "named like the owner's"],
)
def test_an_ambiguous_update_cannot_be_prepared(columns: tuple[str, ...], name: str) -> None:
    with pytest.raises(ValueError, match=r"prepared update|named like a column"):
        PreparedUpdate(wrapped_deks, *columns, where=(C.object_id == sa.bindparam(name),))


PARAMETERS: dict[str, Callable[[TenantTransaction], object]] = {
    "the owner": lambda tx: tx.all(ALL, modelkeep_owner=GLOBEX),
    "the owner's column": lambda tx: tx.all(ALL, tenant_id=GLOBEX),
    "the owner with the rest": lambda tx: tx.first(ONE, object_id="of-globex", modelkeep_owner=GLOBEX),
    "one more": lambda tx: tx.first(ONE, object_id="of-acme", kek_version=1),
    "one less": lambda tx: tx.first(ONE),
    "another": lambda tx: tx.first(ONE, which="of-acme"),
    "one more column to set": lambda tx: tx.change(RENEW, which="of-acme", kek_version=2, wrapped=b""),
    "a new owner": lambda tx: tx.change(RENEW, which="of-acme", kek_version=2, tenant_id=GLOBEX),
    "the owner of a change": lambda tx: tx.change(RENEW_ALL, kek_version=2, modelkeep_owner=GLOBEX),
    "for a statement that was started": lambda tx: tx.all(
        tx.select(wrapped_deks).where(C.object_id == sa.bindparam("x")), x="of-globex"
    ),
}


@pytest.mark.parametrize("run", PARAMETERS.values(), ids=PARAMETERS.keys())
def test_only_the_statements_own_parameters_are_taken(
    filled: Database, run: Callable[[TenantTransaction], object]
) -> None:
    before = everything(filled)
    with filled.tenant(ACME, by=SYSTEM) as tx, pytest.raises(TenantScopeError):
        run(tx)
    assert everything(filled) == before


@pytest.mark.parametrize(
    "expression", [sa.text("1"), sa.select(C.object_id), C.tenant_id, sa.func.max(C.object_id)], ids=str
)
def test_an_expression_is_not_taken_as_a_value(tx: TenantTransaction, expression: object) -> None:
    with pytest.raises(sa.exc.StatementError):
        tx.change(RENEW, which="of-acme", kek_version=expression)
    with pytest.raises(sa.exc.StatementError):
        tx.first(ONE, object_id=expression)


class Loose:
    """Looks like a prepared statement and is none."""

    statement = sa.select(wrapped_deks)

    def bind(self, owner: str, parameters: dict[str, object]) -> dict[str, object]:
        return {}


OTHERWISE: dict[str, Callable[[TenantTransaction], object]] = {
    "its statement by itself": lambda tx: tx.all(ONE.statement),  # type: ignore[arg-type]
    "its statement with an owner": lambda tx: tx.all(ONE.statement, object_id="x", modelkeep_owner=GLOBEX),  # type: ignore[arg-type]
    "its update by itself": lambda tx: tx.change(RENEW_ALL.statement),  # type: ignore[arg-type]
    "something that looks like one": lambda tx: tx.all(Loose()),  # type: ignore[arg-type]
    "a subclass": lambda tx: tx.all(type("Sub", (PreparedSelect,), {"bind": Loose.bind})(wrapped_deks, where=())),
    "as a started statement's subquery": lambda tx: tx.all(
        tx.select(wrapped_deks).where(C.object_id.in_(ONE.statement))  # type: ignore[arg-type]
    ),
}


@pytest.mark.parametrize("run", OTHERWISE.values(), ids=OTHERWISE.keys())
def test_it_runs_in_no_other_way(filled: Database, run: Callable[[TenantTransaction], Any]) -> None:
    with (
        filled.tenant(ACME, by=SYSTEM) as tx,
        pytest.raises((TenantScopeError, AttributeError, sa.exc.SQLAlchemyError)),
    ):
        run(tx)


@pytest.mark.parametrize("name", ["statement", "_names", "anything"])
def test_it_does_not_change(name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(ONE, name, sa.select(wrapped_deks))


def test_it_is_compiled_once_however_many_tenants_run_it(filled: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []
    compile_it = sa.Select.compile

    def counting(self: sa.Select[Any], *args: Any, **options: Any) -> Any:
        compiled.append(self)
        return compile_it(self, *args, **options)

    monkeypatch.setattr(sa.Select, "compile", counting)
    once = PreparedSelect(wrapped_deks, where=(C.object_id == sa.bindparam("object_id"),))
    for number in range(5):
        with filled.tenant(ACME if number % 2 else GLOBEX, by=SYSTEM, read_only=True) as tx:
            tx.first(once, object_id=f"name-{number}")
    assert len(compiled) == 1
