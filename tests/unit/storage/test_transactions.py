"""Tenant transactions reach their owner's rows and nothing else."""

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from fakes.core import ACME, GLOBEX, operator_caller, tenant_caller
from fakes.storage import fresh
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import OperatorCaller, TenantCaller
from modelkeep_platform.core.decisions import Decision
from modelkeep_platform.core.ids import PLATFORM, ObjectId, TenantId
from modelkeep_platform.core.refs import Kind, ResourceRef
from modelkeep_platform.storage import database as module
from modelkeep_platform.storage.blobs import StorageError
from modelkeep_platform.storage.database import Database, NestedTransactionError
from modelkeep_platform.storage.schema import metadata
from modelkeep_platform.storage.tables.epoch import epoch
from modelkeep_platform.storage.tables.keys import platform_secrets, wrapped_deks, wrapped_keks
from modelkeep_platform.storage.transactions import System, TenantScopeError, TenantTransaction

SYSTEM = System(reason="a test")
OTHER = wrapped_deks.alias("other")


def _decision(*, allow: bool = True, owner: TenantId = ACME) -> Decision:
    return Decision(
        allow=allow,
        action=Action.MODEL_READ,
        ref=ResourceRef(owner=owner, kind=Kind.MODEL, object_id=ObjectId("mdl_x")),
        caller_tenant=GLOBEX,
    )


def _insert(tx: TenantTransaction, object_id: str) -> None:
    tx.insert(wrapped_deks, object_id=object_id, kek_version=1, wrapped=b"sealed", created_at=1)


@pytest.fixture
def filled(database: Database) -> Database:
    """One row of each of two tenants."""
    for owner, object_id in ((ACME, "of-acme"), (GLOBEX, "of-globex")):
        with database.tenant(owner, by=SYSTEM) as tx:
            _insert(tx, object_id)
    return database


def _everything(database: Database) -> set[tuple[str, str, int]]:
    with database.platform(read_only=True) as tx:
        return {(row["tenant_id"], row["object_id"], row["kek_version"]) for row in tx.all(sa.select(wrapped_deks))}


def test_a_tenant_sees_its_own_rows_only(filled: Database) -> None:
    with filled.tenant(ACME, by=SYSTEM, read_only=True) as tx:
        assert [row["object_id"] for row in tx.all(tx.select(wrapped_deks))] == ["of-acme"]
        assert tx.first(tx.select(wrapped_deks).where(wrapped_deks.c.object_id == "of-globex")) is None


def test_counting_counts_own_rows_only(filled: Database) -> None:
    with filled.tenant(ACME, by=SYSTEM, read_only=True) as tx:
        row = tx.first(tx.select(wrapped_deks, sa.func.count().label("n")))
    assert row is not None
    assert row["n"] == 1


def test_changes_reach_own_rows_only(filled: Database) -> None:
    with filled.tenant(ACME, by=SYSTEM) as tx:
        assert tx.change(tx.update(wrapped_deks).values(kek_version=2)) == 1
    assert _everything(filled) == {(ACME, "of-acme", 2), (GLOBEX, "of-globex", 1)}
    with filled.tenant(GLOBEX, by=SYSTEM) as tx:
        assert tx.change(tx.delete(wrapped_deks).where(sa.true())) == 1
    assert _everything(filled) == {(ACME, "of-acme", 2)}


READS: dict[str, Callable[[TenantTransaction], sa.Executable]] = {
    "not started here": lambda _tx: sa.select(wrapped_deks),
    "a filter of its own": lambda _tx: sa.select(wrapped_deks).where(wrapped_deks.c.tenant_id == ACME),
    "a column of another tenant table": lambda tx: tx.select(wrapped_deks, wrapped_keks.c.version),
    "a column of a platform table": lambda tx: tx.select(wrapped_deks, platform_secrets.c.sealed),
    "a join": lambda tx: tx.select(wrapped_deks).join(wrapped_keks, sa.true()),
    "a condition on another table": lambda tx: tx.select(wrapped_deks).where(
        wrapped_deks.c.object_id == platform_secrets.c.name
    ),
    "an alias": lambda tx: tx.select(wrapped_deks, OTHER.c.object_id),
    "a condition on an alias": lambda tx: tx.select(wrapped_deks).where(wrapped_deks.c.object_id != OTHER.c.object_id),
    "a scalar subquery": lambda tx: tx.select(
        wrapped_deks, sa.select(sa.func.max(wrapped_deks.c.object_id)).correlate(None).scalar_subquery()
    ),
    "exists": lambda tx: tx.select(wrapped_deks).where(
        sa.exists(sa.select(OTHER.c.object_id).where(OTHER.c.tenant_id == GLOBEX))
    ),
    "in a subquery": lambda tx: tx.select(wrapped_deks).where(
        wrapped_deks.c.object_id.in_(sa.select(wrapped_deks.c.object_id))
    ),
    "a common table expression": lambda tx: tx.select(wrapped_deks).add_cte(sa.select(wrapped_deks).cte("all_rows")),
    "raw text": lambda tx: tx.select(wrapped_deks).where(sa.text("1=1 OR 1=1")),
    "a raw column": lambda tx: tx.select(
        wrapped_deks, sa.literal_column("(SELECT group_concat(object_id) FROM wrapped_deks)")
    ),
    "a table of no metadata": lambda tx: tx.select(
        wrapped_deks, sa.table("platform_secrets", sa.column("sealed")).c.sealed
    ),
    "a condition on a table of no metadata": lambda tx: tx.select(wrapped_deks).where(
        sa.table("wrapped_keks", sa.column("version")).c.version > 0
    ),
    "a table of the same name": lambda tx: tx.select(wrapped_deks).where(
        sa.Table(wrapped_deks.name, sa.MetaData(), sa.Column("object_id")).c.object_id == "x"
    ),
    "a function's rows": lambda tx: tx.select(wrapped_deks).select_from(sa.func.json_each("[1, 2]")),
    "an unknown function": lambda tx: tx.select(wrapped_deks, sa.func.query_to_xml("SELECT * FROM wrapped_deks")),
    "a known function of another schema": lambda tx: tx.select(wrapped_deks, sa.func.mine.count()),
    "an operator of one's own": lambda tx: tx.select(wrapped_deks).where(
        wrapped_deks.c.object_id.op("= '') OR (1 = 1 OR object_id =")("x")
    ),
    "a boolean operator of one's own": lambda tx: tx.select(wrapped_deks).where(
        wrapped_deks.c.object_id.bool_op("OR 1 = 1 OR")("x")
    ),
    "an unquoted column": lambda tx: tx.select(wrapped_deks, sa.column(sa.quoted_name("(SELECT 1)", quote=False))),
    "an unquoted label": lambda tx: tx.select(
        wrapped_deks, wrapped_deks.c.object_id.label(sa.quoted_name("x, (SELECT 1)", quote=False))
    ),
    "a hint": lambda tx: tx.select(wrapped_deks, wrapped_deks.c.object_id).with_statement_hint(
        "UNION ALL SELECT object_id FROM wrapped_deks"
    ),
    "a hint on the table": lambda tx: tx.select(wrapped_deks).with_hint(wrapped_deks, "CROSS JOIN wrapped_keks"),
    "a prefix": lambda tx: tx.select(wrapped_deks, wrapped_deks.c.object_id).prefix_with(
        "object_id FROM wrapped_deks UNION ALL SELECT"
    ),
    "a suffix": lambda tx: tx.select(wrapped_deks, wrapped_deks.c.object_id).suffix_with(
        "UNION ALL SELECT object_id FROM wrapped_deks"
    ),
    "a union": lambda tx: tx.select(wrapped_deks, wrapped_deks.c.object_id).union(sa.select(wrapped_deks.c.object_id)),
    "a union that carries the mark": lambda tx: (
        tx.select(wrapped_deks, wrapped_deks.c.object_id)
        .union(sa.select(wrapped_deks.c.object_id))
        .execution_options(modelkeep_started=(ACME, wrapped_deks))
    ),
}


@pytest.mark.parametrize("build", READS.values(), ids=READS.keys())
def test_a_read_that_could_leave_the_tenant_is_refused(
    filled: Database, build: Callable[[TenantTransaction], Any]
) -> None:
    with filled.tenant(ACME, by=SYSTEM, read_only=True) as tx:
        with pytest.raises(TenantScopeError):
            tx.all(build(tx))
        with pytest.raises(TenantScopeError):
            tx.first(build(tx))


CHANGES: dict[str, Callable[[TenantTransaction], Any]] = {
    "a delete not started here": lambda _tx: sa.delete(wrapped_deks),
    "an update not started here": lambda _tx: sa.update(wrapped_deks).values(kek_version=9),
    "an insert": lambda _tx: sa.insert(wrapped_deks).values(
        tenant_id=GLOBEX, object_id="x", kek_version=1, wrapped=b"", created_at=1
    ),
    "a new owner by name": lambda tx: tx.update(wrapped_deks).values(tenant_id=GLOBEX),
    "a new owner by column": lambda tx: tx.update(wrapped_deks).values({wrapped_deks.c.tenant_id: GLOBEX}),
    "a new owner in order": lambda tx: tx.update(wrapped_deks).ordered_values(("tenant_id", GLOBEX)),
    "a value from another table": lambda tx: tx.update(wrapped_deks).values(
        wrapped=sa.select(platform_secrets.c.sealed).scalar_subquery()
    ),
    "rows of another table given back": lambda tx: tx.delete(wrapped_deks).returning(platform_secrets.c.sealed),
    "a prefix": lambda tx: tx.update(wrapped_deks).prefix_with("OR REPLACE").values(kek_version=9),
    "a delete by subquery": lambda tx: tx.delete(wrapped_deks).where(
        wrapped_deks.c.object_id.in_(sa.select(OTHER.c.object_id))
    ),
}


@pytest.mark.parametrize("build", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_that_could_leave_the_tenant_is_refused(
    filled: Database, build: Callable[[TenantTransaction], Any]
) -> None:
    before = _everything(filled)
    with filled.tenant(ACME, by=SYSTEM) as tx, pytest.raises(TenantScopeError):
        tx.change(build(tx))
    assert _everything(filled) == before


def test_a_statement_of_one_tenant_is_refused_by_another_tenants_transaction(filled: Database) -> None:
    with filled.tenant(ACME, by=SYSTEM, read_only=True) as tx:
        statement = tx.select(wrapped_deks)
    with filled.tenant(GLOBEX, by=SYSTEM, read_only=True) as tx, pytest.raises(TenantScopeError):
        tx.all(statement)


def test_the_owner_of_an_inserted_row_is_set_by_the_transaction(database: Database) -> None:
    with database.tenant(ACME, by=SYSTEM) as tx, pytest.raises(TenantScopeError):
        tx.insert(wrapped_deks, tenant_id=GLOBEX, object_id="x", kek_version=1, wrapped=b"", created_at=1)


@pytest.mark.parametrize("start", ["select", "insert", "update", "delete"])
def test_platform_tables_are_out_of_reach(database: Database, start: str) -> None:
    with database.tenant(ACME, by=SYSTEM) as tx, pytest.raises(TenantScopeError):
        getattr(tx, start)(platform_secrets)


def test_append_takes_append_only_logs_alone(database: Database) -> None:
    with database.tenant(ACME, by=SYSTEM) as tx:
        for table in (platform_secrets, wrapped_deks):
            with pytest.raises(TenantScopeError):
                tx.append(table, [{"name": "x"}])


def test_every_tenant_table_has_the_owner_first_in_its_key() -> None:
    scopes = {name: table.info.get("scope") for name, table in metadata.tables.items()}
    assert set(scopes.values()) == {"tenant", "platform"}
    for name, table in metadata.tables.items():
        if scopes[name] == "tenant":
            assert next(iter(table.primary_key.columns)).name == "tenant_id", name


CALLERS = {
    "a member of the owner": (tenant_caller(ACME), ACME, True),
    "a member of another tenant": (tenant_caller(GLOBEX), ACME, False),
    "a member, for the platform": (tenant_caller(ACME), PLATFORM, False),
    "an operator, for the platform": (operator_caller(), PLATFORM, True),
    "an operator, for a tenant": (operator_caller(), ACME, False),
    "an allow decision about the owner's object": (_decision(), ACME, True),
    "an allow decision about another owner's object": (_decision(owner=GLOBEX), ACME, False),
    "a deny decision": (_decision(allow=False), ACME, False),
    "the platform with a reason": (SYSTEM, ACME, True),
    "the platform without a reason": (System(reason=""), ACME, False),
}


@pytest.mark.parametrize(("by", "owner", "right"), CALLERS.values(), ids=CALLERS.keys())
def test_a_transaction_opens_for_who_has_a_right_to_it(
    database: Database, by: TenantCaller | OperatorCaller | Decision | System, owner: TenantId, *, right: bool
) -> None:
    if right:
        with database.tenant(owner, by=by, read_only=True) as tx:
            assert tx.owner == owner
    else:
        with pytest.raises(TenantScopeError), database.tenant(owner, by=by, read_only=True):
            pytest.fail("the transaction opened")


def test_the_platform_narrowed_to_a_tenant_is_under_the_same_rules(filled: Database) -> None:
    with filled.platform() as tx:
        narrowed = tx.as_tenant(ACME)
        assert [row["object_id"] for row in narrowed.all(narrowed.select(wrapped_deks))] == ["of-acme"]
        with pytest.raises(TenantScopeError):
            narrowed.all(sa.select(wrapped_deks))


def test_a_block_that_raises_leaves_nothing(database: Database) -> None:
    with pytest.raises(LookupError), database.tenant(ACME, by=SYSTEM) as tx:
        _insert(tx, "x")
        tx.bump_epoch()
        raise LookupError
    assert _everything(database) == set()
    assert database.epoch() == 1


def test_a_write_inside_a_write_is_refused_and_the_thread_can_write_again(database: Database) -> None:
    with database.tenant(ACME, by=SYSTEM):
        with pytest.raises(NestedTransactionError), database.tenant(ACME, by=SYSTEM):
            pytest.fail("nested")
        with pytest.raises(NestedTransactionError), database.platform():
            pytest.fail("nested")
    with database.tenant(ACME, by=SYSTEM) as tx:
        _insert(tx, "afterwards")
    assert _everything(database) == {(ACME, "afterwards", 1)}


def test_nothing_is_opened_inside_a_read(database: Database) -> None:
    """Threads that hold a connection to read and wait for another could together hold all there are."""
    with database.tenant(ACME, by=SYSTEM, read_only=True):
        for read_only in (True, False):
            with pytest.raises(NestedTransactionError), database.tenant(GLOBEX, by=SYSTEM, read_only=read_only):
                pytest.fail("nested")
    with (
        database.platform(),
        database.platform(read_only=True),
        pytest.raises(NestedTransactionError),
        database.platform(read_only=True),
    ):
        pytest.fail("nested")
    with database.tenant(ACME, by=SYSTEM) as tx:
        _insert(tx, "afterwards")


def test_a_read_inside_a_write_sees_what_was_committed_before(filled: Database) -> None:
    with filled.tenant(ACME, by=SYSTEM) as tx:
        _insert(tx, "not yet committed")
        with filled.tenant(ACME, by=SYSTEM, read_only=True) as inner:
            assert [row["object_id"] for row in inner.all(inner.select(wrapped_deks))] == ["of-acme"]


def test_the_epoch_is_read_while_another_transaction_writes(database: Database) -> None:
    with database.tenant(ACME, by=SYSTEM) as tx:
        tx.bump_epoch()
        assert database.epoch() == 1
    assert database.epoch() == 2


def test_many_threads_write_without_losing_one(database: Database) -> None:
    def work(number: int) -> None:
        for step in range(5):
            with database.tenant(ACME, by=SYSTEM) as tx:
                row = tx.first(tx.select(wrapped_deks, sa.func.count().label("n")))
                assert row is not None
                _insert(tx, f"{number}-{step}-{row['n']}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Each saw the count of all before it: read and write are one, under BEGIN IMMEDIATE.
    assert sorted(int(row[1].rsplit("-", 1)[1]) for row in _everything(database)) == list(range(30))


def test_writers_that_wait_leave_connections_for_readers(database: Database) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def write(at: int) -> None:
        with database.tenant(ACME, by=SYSTEM) as tx:
            begun.set()
            go_on.wait()
            _insert(tx, f"dek-{at}")

    threads = [threading.Thread(target=write, args=(at,), daemon=True) for at in range(64)]
    for thread in threads:
        thread.start()
    begun.wait()
    try:
        time.sleep(0.2)  # all of them wait by now, and one holds a connection
        assert database.engine.pool.checkedout() == 1  # type: ignore[attr-defined]
        for _ in range(8):
            assert database.epoch() >= 0
    finally:
        go_on.set()
        for thread in threads:
            thread.join()
    assert len(_everything(database)) == 64


def test_writers_come_in_their_order_also_before_one_that_writes_without_pause(database: Database) -> None:
    stop, waited = threading.Event(), []

    def without_pause() -> None:
        while not stop.is_set():
            with database.platform():
                time.sleep(0.001)

    busy = threading.Thread(target=without_pause)
    busy.start()
    try:
        for _ in range(20):
            began = time.monotonic()
            with database.platform():
                waited.append(time.monotonic() - began)
    finally:
        stop.set()
        busy.join()
    assert sorted(waited)[10] < 0.5


def test_a_writer_whose_turn_does_not_come_says_so(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelkeep_platform.storage.database._BUSY_MS", 10)
    failed: list[StorageError] = []

    def write() -> None:
        try:
            with database.platform():
                pytest.fail("a second writer")
        except StorageError as error:
            failed.append(error)

    with database.platform():
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
    assert [error.error_code for error in failed] == ["database_busy"]
    with database.platform():
        pass


def test_the_file_is_in_wal_mode_with_full_synchronisation(database: Database) -> None:
    with database.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar_one() == 1
        assert connection.exec_driver_sql("PRAGMA secure_delete").scalar_one() == 1


def test_a_database_in_memory_works_within_one_connection() -> None:
    database = Database("sqlite:///:memory:")
    with database.connection() as connection:
        metadata.create_all(connection)
    with database.platform() as tx:
        tx.execute(sa.insert(epoch), [{"id": 1, "number": 7}])
    assert database.epoch() == 7
    database.close()


# --- a database that is busy ------------------------------------------------------------------------


def test_a_write_that_another_process_keeps_waiting_is_refused_as_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = tuple("busy_timeout=10" if pragma.startswith("busy") else pragma for pragma in module._PRAGMAS)
    monkeypatch.setattr(module, "_PRAGMAS", short)
    url = f"sqlite:///{tmp_path / 'platform.db'}"
    ours, theirs = fresh(url), Database(url)
    with theirs.platform(), pytest.raises(StorageError) as caught, ours.platform():
        pytest.fail("two write")
    assert caught.value.error_code == "database_busy"
    with ours.platform() as tx:
        tx.bump_epoch()
    ours.close()
    theirs.close()


def test_a_read_that_gets_no_connection_is_refused_as_busy_and_the_epoch_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = fresh(f"sqlite:///{tmp_path / 'platform.db'}")
    monkeypatch.setattr(database.engine.pool, "_timeout", 0.01)
    with ExitStack() as held:
        for _ in range(32):
            held.enter_context(database.engine.connect())
        with pytest.raises(StorageError) as caught, database.platform(read_only=True):
            pytest.fail("one more")
        assert caught.value.error_code == "database_busy"
        assert database.epoch() == 1
    with database.platform(read_only=True):
        pass
    database.close()
