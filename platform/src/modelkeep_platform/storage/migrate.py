"""Brings a database to the newest schema, and says whether it is there."""

from pathlib import Path
from typing import Final

import alembic.command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

import modelkeep_platform.storage.tables  # noqa: F401 -- declares every table on the metadata
from modelkeep_platform.core.errors import ConflictError
from modelkeep_platform.storage.database import Database

_FOLDER: Final = Path(__file__).with_name("migrations")


def upgrade(database: Database) -> None:
    """Run every migration that has not run."""
    with database.connection() as connection:
        config = _config()
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, "head")


def current(database: Database) -> str | None:
    """Return the database's revision; None when it has never been migrated."""
    with database.engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def newest() -> str:
    """Return the newest revision there is.

    Raises:
        RuntimeError: the installation has no migrations.
    """
    head = ScriptDirectory.from_config(_config()).get_current_head()
    if head is None:
        raise RuntimeError("the installation has no migrations")
    return head


def check(database: Database) -> None:
    """Raise unless the database is at the newest revision.

    Raises:
        ConflictError: it is not; the message says what to run.
    """
    if current(database) != newest():
        raise ConflictError("the database is not at this version's schema; run `modelkeep-platform migrate`")


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    return config
