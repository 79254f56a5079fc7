"""Migrations give the declared schema, also from every earlier revision with rows in place."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from modelkeep_platform.core.errors import ConflictError
from modelkeep_platform.storage import migrate
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.schema import SCOPE, metadata
from services.revisions import EARLIER, REVISIONS, after, upgrade


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'fresh.db'}")
    yield database
    database.close()


FORGOTTEN = {"0004": {"request_windows"}}
"""Tables that a revision drops on purpose: what they held was over within a minute."""

MADE_BY_MIGRATIONS = {"alembic_version", "epoch", "ledger_epochs"}
"""Tables whose rows the migrations themselves write."""


def test_a_fresh_database_has_the_declared_schema(empty: Database) -> None:
    migrate.upgrade(empty)
    with empty.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    assert empty.epoch() == 0
    migrate.check(empty)


def test_an_old_or_empty_database_is_refused(empty: Database) -> None:
    with pytest.raises(ConflictError, match="modelkeep-platform migrate"):
        migrate.check(empty)
    upgrade(empty, "0001")
    with pytest.raises(ConflictError):
        migrate.check(empty)


@pytest.mark.parametrize("revision", EARLIER)
def test_the_upgrade_from_an_earlier_revision_keeps_every_row(empty: Database, revision: str) -> None:
    upgrade(empty, revision)
    with empty.connection() as connection:
        reflected = sa.MetaData()
        reflected.reflect(connection)
        for table in reflected.sorted_tables:
            if table.name in MADE_BY_MIGRATIONS:
                continue
            connection.execute(sa.insert(table).values(**{column.name: sample(column) for column in table.columns}))
        before = {
            table.name: connection.execute(sa.select(table)).mappings().all() for table in reflected.sorted_tables
        }
    assert {name for name, rows in before.items() if not rows} <= MADE_BY_MIGRATIONS
    migrate.upgrade(empty)
    migrate.check(empty)
    gone = {name for one in after(revision) for name in FORGOTTEN.get(one, ())}
    with empty.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        now = sa.MetaData()
        now.reflect(connection)
        assert before.keys() - now.tables.keys() == before.keys() & gone
        for name, rows in before.items():
            if name == "alembic_version" or name in gone:
                continue
            kept = connection.execute(sa.select(now.tables[name])).mappings().all()
            assert [{key: row[key] for key in rows[0]} for row in kept] == [dict(row) for row in rows], name


def test_what_is_forgotten_was_there_before() -> None:
    assert FORGOTTEN.keys() <= set(REVISIONS)


def sample(column: sa.Column[object]) -> object:
    if isinstance(column.type, sa.LargeBinary):
        return b"\x00\x01"
    if isinstance(column.type, sa.Integer | sa.BigInteger):
        return 7
    if isinstance(column.type, sa.Boolean):
        return True
    if isinstance(column.type, sa.Float):
        return 0.5
    return f"a {column.name}"[:12]


def test_every_table_says_whose_it_is() -> None:
    for table in metadata.sorted_tables:
        assert table.info.get(SCOPE) in {"tenant", "platform"}, table.name
        if table.info[SCOPE] == "tenant":
            assert next(iter(table.primary_key.columns)).name == "tenant_id"
