"""What a check says that could not be finished: what stood in its way, and what to do about that."""

import shlex
import sqlite3
from pathlib import Path
from typing import Final

from sqlalchemy.exc import DBAPIError

from modelkeep_platform.app.doctor.findings import Finding, Level
from modelkeep_platform.core.errors import ModelkeepError

RESTORE: Final = "restore the newest backup (docs/how-to/back-up-and-restore.md)"
_LATER: Final = "mend what else is said here first, then look again"
_PRIMARY: Final = 0xFF  # SQLite's extended codes have the code that they refine in the lowest byte


def unfinished(name: str, exc: Exception, data: Path) -> Finding:
    """Return what to say of an error that ended a check; for one cause it is the same, whichever check met it.

    Args:
        name: the check's.
        exc: what it raised.
        data: the data folder.
    """
    found = _of_database(exc, data / "platform.db")
    if found is not None:
        what, advice = found
    elif isinstance(exc, ModelkeepError):
        # Our own messages say what is wrong, and after a semicolon what to do.
        what, _, told = exc.message.partition("; ")
        what, advice = f"{name}: {what}", told or _LATER
    else:
        what, advice = f"{name}: {exc}", _LATER
    return Finding(level=Level.BAD, what=what, advice=advice)


def _of_database(exc: Exception, path: Path) -> tuple[str, str] | None:
    if isinstance(exc, ModelkeepError) and exc.error_code == "database_busy":
        return _held(path)
    raised = exc.orig if isinstance(exc, DBAPIError) else exc
    if not isinstance(raised, sqlite3.Error):
        return None
    where = shlex.quote(str(path))
    if not path.exists():
        return "the database is missing", f"put {where} back, with the files beside it, or {RESTORE}"
    if not path.is_file():
        return "platform.db is not a file", f"move {where} away, and {RESTORE}"
    match getattr(raised, "sqlite_errorcode", 0) & _PRIMARY:
        case sqlite3.SQLITE_NOTADB:
            return "platform.db is not a database", f"move {where} away, and {RESTORE}"
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return _held(path)
        case sqlite3.SQLITE_CORRUPT:
            return "the database is damaged", RESTORE
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM | sqlite3.SQLITE_READONLY:
            return "the database cannot be opened", f"run as the user who owns {where}"
        case _:
            return None


def _held(path: Path) -> tuple[str, str]:
    advice = f"`fuser -v {shlex.quote(str(path))}` names the processes that have it open: end the one that is not ours"
    return "another process holds the database for itself", f"{advice}, then look again"
