"""A backup is made beside its place, under a hidden name, and gets both of its names last: its keys', then its own.

Whatever stops it before leaves nothing that looks like a backup. What a killed one leaves is cleared by the next that
is made in the same folder; while one lives, it holds a lock on what it makes.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from modelkeep_platform.app.backup.files import fsync_folders, write
from modelkeep_platform.core.errors import ConflictError
from modelkeep_platform.storage.files import fsync

_PREFIX: Final = ".modelkeep-backup-"


@contextmanager
def half_made(out: Path) -> Iterator[Path]:
    """Give a folder beside `out` to make a backup in; it is gone after the block unless it was published."""
    out.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    half = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=out.parent))
    lock = _open(half)
    try:
        _lock(lock)
        yield half
    finally:
        shutil.rmtree(half, ignore_errors=True)
        os.close(lock)


def publish(half: Path, out: Path, *, keys: Path, content: bytes) -> None:
    """Give a whole backup its names.

    Args:
        half: what was made.
        out: its name.
        keys: the file for its wrapped keys.
        content: what that file is to hold.

    Raises:
        ConflictError: another was made meanwhile under one of the names.
    """
    fsync_folders(half)
    keys.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_free(out, keys=keys)
    try:
        # INVARIANT: the keys first: a folder under its own name is a backup that can be restored.
        write(keys, content)
    except FileExistsError as exc:
        raise _exists() from exc
    try:
        fsync(keys.parent)
        half.rename(out)
    except BaseException:
        keys.unlink(missing_ok=True)
        raise
    fsync(out.parent)


def check_free(out: Path, *, keys: Path) -> None:
    """Return when there is neither a backup nor its keys.

    Raises:
        ConflictError: ``backup_exists``: there is one of them.
    """
    if out.exists():
        raise _exists()
    if keys.exists():
        # Nobody's keys are deleted on a guess.
        raise ConflictError(
            "the file for the keys is there already; choose another, or delete it if no backup belongs to it: one that "
            "was killed as it ended may have left it",
            code="backup_exists",
        )


def clear_leftovers(out: Path) -> None:
    """Delete what backups left in the folder of `out` that were killed; those that are under way are let be."""
    for half in out.parent.glob(f"{_PREFIX}*"):
        if half.is_symlink() or not half.is_dir():
            continue
        lock = _open(half)
        try:
            if _lock(lock):
                shutil.rmtree(half)
        finally:
            os.close(lock)


def _exists() -> ConflictError:
    return ConflictError("a backup is written to a new folder and a new file; choose others", code="backup_exists")


def _open(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)


def _lock(descriptor: int) -> bool:
    """Lock until the descriptor is closed, or its process dies; return False when another has, or no lock is had."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
