"""Whether what the installation holds is sound and belongs together: root key, database, ledger."""

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from modelkeep_platform.app.doctor.findings import Finding, Level
from modelkeep_platform.app.doctor.unfinished import RESTORE
from modelkeep_platform.app.installation import open_database
from modelkeep_platform.app.settings import Settings
from modelkeep_platform.keys.roots.file import FileRootKey
from modelkeep_platform.storage import migrate as migrations

_WAIT_S: Final = 2.0  # for a database that another process holds for itself; its server keeps no reader waiting


def ask(data: Path, question: str) -> list[tuple[Any, ...]]:
    """Ask the database without writing to it, whatever state it is in."""
    connection = sqlite3.connect(f"file:{data / 'platform.db'}?mode=ro", uri=True, timeout=_WAIT_S)
    try:
        return connection.execute(question).fetchall()
    finally:
        connection.close()


def root_key(data: Path, settings: Settings) -> Iterator[Finding]:
    """Look whether the root key opens what is there."""
    root = FileRootKey.load(Path(settings.root_key), data=data)
    ids = {row[0] for row in ask(data, "SELECT DISTINCT root_id FROM wrapped_keks")}
    if ids - {root.id}:
        yield Finding(
            level=Level.BAD,
            what="tenants' keys are wrapped under another root key than this one",
            advice="put back the root key that this installation was made with; without it nothing sealed opens",
        )
    else:
        yield Finding(level=Level.OK, what="the root key is private and is the one that keys are wrapped under")


def database(data: Path, _settings: Settings) -> Iterator[Finding]:
    """Look whether the database is sound and of this version."""
    problem = ask(data, "PRAGMA quick_check")[0][0]
    if problem != "ok":
        yield Finding(level=Level.BAD, what="the database is damaged", advice=RESTORE)
        return
    if not ask(data, "SELECT count(*) FROM sqlite_master WHERE name = 'alembic_version'")[0][0]:
        yield Finding(level=Level.BAD, what="the database holds no installation", advice=RESTORE)
        return
    opened = open_database(data)
    try:
        now = migrations.current(opened)
    finally:
        opened.close()
    if now == migrations.newest():
        yield Finding(level=Level.OK, what=f"the database is sound and at revision {now}")
    else:
        advice = "stop the server and run `modelkeep-platform migrate`"
        yield Finding(level=Level.BAD, what=f"the database is at revision {now}, not this version's", advice=advice)


def ledger(data: Path, _settings: Settings) -> Iterator[Finding]:
    """Look which epoch the ledger is in, and whether budgets wait."""
    epochs = ask(data, "SELECT number, id, began_at, reason FROM ledger_epochs ORDER BY number DESC LIMIT 1")
    if not epochs:
        yield Finding(level=Level.BAD, what="the ledger's epoch is missing", advice=RESTORE)
        return
    number, epoch_id, began_at, reason = epochs[0]
    since = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(began_at))
    yield Finding(level=Level.OK, what=f"the ledger is in epoch {number} ({epoch_id}, {reason} {since})")
    waiting = ask(data, "SELECT count(*) FROM privacy_budgets WHERE frozen = 'restored'")[0][0]
    if waiting:
        advice = "get the newest checkpoint that anyone holds and run `modelkeep-platform compare-budgets`"
        yield Finding(level=Level.WARN, what=f"{waiting} budgets wait to be compared since a restore", advice=advice)
