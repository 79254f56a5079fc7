"""Looks an installation over: what is wrong with it, and how to mend that. Changes nothing."""

import sqlite3
from pathlib import Path
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from modelkeep_platform.app import settings as settings_file
from modelkeep_platform.app.doctor.answering import address
from modelkeep_platform.app.doctor.contents import database, ledger, root_key
from modelkeep_platform.app.doctor.findings import Check, Finding, Level
from modelkeep_platform.app.doctor.owners import blobs, permissions
from modelkeep_platform.app.doctor.surroundings import clock, disk, kernel, machine
from modelkeep_platform.app.doctor.unfinished import unfinished
from modelkeep_platform.core.errors import ModelkeepError

_CHECKS: Final[tuple[Check, ...]] = (
    *(permissions, blobs, root_key, database, ledger),
    *(disk, clock, machine, kernel, address),
)


def examine(data: Path) -> list[Finding]:
    """Look at everything; a check that fails does not stop the others."""
    data = data.resolve()
    try:
        settings = settings_file.load(data)
    except ModelkeepError as exc:
        return [Finding(level=Level.BAD, what=f"settings: {exc.message}", advice="see docs/reference/settings.md")]
    found = [Finding(level=Level.OK, what="settings are complete and known")]
    for check in _CHECKS:
        try:
            found += check(data, settings)
        except (OSError, ModelkeepError, sqlite3.Error, SQLAlchemyError) as exc:
            name = getattr(check, "__name__", "check").replace("_", " ")
            said = unfinished(name, exc, data)
            if said not in found:
                found.append(said)
    return found


__all__ = ["Finding", "Level", "examine"]
