"""The database's revisions, and how to bring one to another than the newest."""

from typing import Final

import alembic.command
from alembic.config import Config
from alembic.script import ScriptDirectory

from modelkeep_platform.storage import migrate
from modelkeep_platform.storage.database import Database


def _config() -> Config:
    found: Config = migrate._config()
    return found


REVISIONS: Final = [script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()][::-1]
"""Every revision, the oldest first."""

EARLIER: Final = REVISIONS[:-1]
"""Every revision but the newest."""


def after(revision: str) -> list[str]:
    """Return the revisions that an upgrade from `revision` runs."""
    return REVISIONS[REVISIONS.index(revision) + 1 :]


def upgrade(database: Database, revision: str) -> None:
    """Run the migrations up to `revision`."""
    _run(alembic.command.upgrade, database, revision)


def downgrade(database: Database, revision: str) -> None:
    """Take the migrations back that came after `revision`."""
    _run(alembic.command.downgrade, database, revision)


def _run(command: object, database: Database, revision: str) -> None:
    assert callable(command)
    with database.connection() as connection:
        config = _config()
        config.attributes["connection"] = connection
        command(config, revision)
