"""Who else may read or write what the installation is made of."""

import os
import shlex
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from modelkeep_platform.app import settings as settings_file
from modelkeep_platform.app.doctor.contents import ask
from modelkeep_platform.app.doctor.findings import Finding, Level
from modelkeep_platform.app.doctor.unfinished import RESTORE
from modelkeep_platform.app.settings import Settings

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_WRITING: Final = stat.S_IWGRP | stat.S_IWOTH
# The database's beside files have the mode that it had when they were made. The issuer's keys are in it, sealed.
_FILES: Final = (settings_file.FILE, "platform.db", "platform.db-wal", "platform.db-shm")


def permissions(data: Path, settings: Settings) -> Iterator[Finding]:
    """Look at the data folder, each file that counts in it, and the root key."""
    root = Path(settings.root_key)
    for path in (data, *(data / name for name in _FILES)):
        if path.exists():
            yield _one(path, path.name)
    if root.exists():
        yield _one(root, "the root key", secret=True)
    for folder in sorted({data.parent, root.parent}):
        yield from _above(folder)
    if os.geteuid() == 0:
        yield Finding(
            level=Level.WARN,
            what="this runs as root: a worker that was taken over could read the memory of every process",
            advice="give the server a user of its own (docs/how-to/install.md)",
        )


def blobs(data: Path, _settings: Settings) -> Iterator[Finding]:
    """Look at the folder of sealed bytes and everything in it."""
    folder = data / "blobs"
    if not folder.is_dir():
        # Both have bytes from the moment their upload is complete.
        kept = ask(data, "SELECT count(*) FROM model_versions")[0][0] + ask(data, "SELECT count(*) FROM datasets")[0][0]
        if kept:
            what = f"the folder blobs is missing, and {kept} versions and datasets have their bytes in it"
            yield Finding(level=Level.BAD, what=what, advice=f"put {folder} back, or {RESTORE}")
        else:
            yield Finding(level=Level.OK, what="the folder blobs is not there; the server makes it when it starts")
        return
    yield _one(folder, "blobs")
    where, open_to_others, foreign = shlex.quote(str(folder)), Counter[Level](), 0
    for path in folder.rglob("*"):
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue  # a server deletes beside us
        if stat.S_ISLNK(status.st_mode):
            continue
        foreign += status.st_uid != os.geteuid()
        if status.st_mode & _OTHERS:
            open_to_others[Level.BAD if status.st_mode & _WRITING else Level.WARN] += 1
    for level, many in open_to_others.items():
        what = f"others may {'write' if level is Level.BAD else 'read'} {many} files and folders in blobs"
        yield Finding(level=level, what=what, advice=f"chmod -R go= {where}")
    if foreign:
        what = f"{foreign} files and folders in blobs belong to another user"
        yield Finding(level=Level.BAD, what=what, advice=f"run as the owner, or chown -R {os.geteuid()} {where}")


def _one(path: Path, name: str, *, secret: bool = False) -> Finding:
    status, where = path.stat(), shlex.quote(str(path))
    mend = f"chmod {'700' if path.is_dir() else '600'} {where}"
    if status.st_uid != os.geteuid():
        advice = f"run as the owner, or chown {'-R ' if path.is_dir() else ''}{os.geteuid()} {where}"
        return Finding(level=Level.BAD, what=f"{name} belongs to another user", advice=advice)
    if status.st_mode & _WRITING:
        return Finding(level=Level.BAD, what=f"others may write {name}", advice=mend)
    if status.st_mode & _OTHERS:
        what = f"others may {'enter' if path.is_dir() else 'read'} {name}"
        return Finding(level=Level.BAD if secret else Level.WARN, what=what, advice=mend)
    return Finding(level=Level.OK, what=f"{name} is the server's own")


def _above(folder: Path) -> Iterator[Finding]:
    # Who may write a folder may put something else in the place of what is in it, whatever that one's mode is.
    mode = folder.stat().st_mode if folder.is_dir() else 0
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        what = f"everybody may replace what is in {folder.name or folder}"
        yield Finding(level=Level.BAD, what=what, advice=f"chmod o-w {shlex.quote(str(folder))}")
