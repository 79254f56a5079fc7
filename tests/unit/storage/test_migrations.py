"""Migrations give the declared schema, also from the previous revision with rows in place."""

from collections.abc import Iterator
from pathlib import Path

import alembic.command
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from modelkeep_platform.core.errors import ConflictError
from modelkeep_platform.storage import migrate
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.schema import SCOPE, metadata


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'fresh.db'}")
    yield database
    database.close()


def config() -> Config:
    found: Config = migrate._config()
    return found


def upgrade(database: Database, revision: str) -> None:
    with database.engine.begin() as connection:
        to = config()
        to.attributes["connection"] = connection
        alembic.command.upgrade(to, revision)


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


def test_the_upgrade_from_the_previous_revision_keeps_every_row(empty: Database) -> None:
    head = migrate.newest()
    script = ScriptDirectory.from_config(config()).get_revision(head)
    previous = script.down_revision
    assert isinstance(previous, str)
    upgrade(empty, previous)
    with empty.engine.begin() as connection:
        reflected = sa.MetaData()
        reflected.reflect(connection)
        for table in reflected.sorted_tables:
            if table.name in {"alembic_version", "epoch"}:
                continue
            connection.execute(sa.insert(table).values(**{column.name: sample(column) for column in table.columns}))
        before = {
            table.name: connection.execute(sa.select(table)).mappings().all() for table in reflected.sorted_tables
        }
    migrate.upgrade(empty)
    with empty.engine.connect() as connection:
        now = sa.MetaData()
        now.reflect(connection)
        for name, rows in before.items():
            if name == "alembic_version":
                continue
            after = connection.execute(sa.select(now.tables[name])).mappings().all()
            assert [{key: row[key] for key in rows[0]} for row in after] == [dict(row) for row in rows], name


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
