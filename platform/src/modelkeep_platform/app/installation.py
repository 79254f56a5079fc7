"""Makes and migrates installations."""

import secrets
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from modelkeep_platform.app import settings as settings_file
from modelkeep_platform.app.platform import Platform
from modelkeep_platform.app.settings import Settings
from modelkeep_platform.core.errors import ConflictError
from modelkeep_platform.keys.roots.file import FileRootKey
from modelkeep_platform.storage import migrate as migrations
from modelkeep_platform.storage.database import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """The operator's credential, shown once."""

    client_id: str
    client_secret: str


def init(*, data: Path, root_key: Path, base_url: str, host: str, port: int | None) -> Made:
    """Make an installation in a fresh folder.

    Args:
        data: the data folder; made with mode 0700, must not hold an installation.
        root_key: where the root key file goes, outside `data`.
        base_url: the address clients use.
        host: the address to listen on.
        port: the port to listen on; None takes that of `base_url`.

    Raises:
        ConflictError: there is an installation already.
        UnprocessableError: a setting is not usable.
    """
    data = data.resolve()
    parts = urlsplit(base_url)
    settings = Settings(
        base_url=base_url.rstrip("/"),
        root_key=str(root_key.resolve()),
        log_origin=f"modelkeep/{secrets.token_hex(8)}",
        host=host,
        port=port or parts.port or (443 if parts.scheme == "https" else 80),
    )
    if (data / settings_file.FILE).exists():
        raise ConflictError(
            "there is an installation in this folder already; choose another", code="already_initialised"
        )
    FileRootKey.create(root_key.resolve(), data=data)
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    database = open_database(data)
    migrations.upgrade(database)
    database.close()
    settings_file.write(data, settings)
    platform = Platform(data=data, settings=settings)
    try:
        client_id, client_secret = platform.create_operator()
    finally:
        platform.close()
    return Made(client_id=client_id, client_secret=client_secret)


def migrate(data: Path) -> str:
    """Run the migrations that have not run; return the revision."""
    settings_file.load(data)
    database = open_database(data)
    try:
        migrations.upgrade(database)
    finally:
        database.close()
    return migrations.newest()


def open_database(data: Path) -> Database:
    """Open the installation's database."""
    return Database(f"sqlite:///{data / 'platform.db'}")
