"""What a backup's folder holds, and files that are durable when they are written."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from modelkeep_platform.storage.files import fsync

FORMAT: Final = 1
MANIFEST: Final = "backup.json"
DATABASE: Final = "platform.db"
RESTORED: Final = "restored.json"
"""In a restored data folder: the log's size and root at the time of the backup, until budgets were compared."""

_BLOCK: Final = 1 << 20


def files(folder: Path) -> Iterator[Path]:
    """Yield the files below `folder`, the manifest apart."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.name != MANIFEST:
            yield path


def copy_file(source: Path, target: Path) -> str:
    """Copy a file durably, with mode 0600 below folders of mode 0700; return its hex SHA-256.

    Raises:
        FileNotFoundError: there is no source; nothing was made.
    """
    found = hashlib.sha256()
    with source.open("rb") as file:
        # `parents=True` would make the folders between with the umask's mode.
        for folder in reversed([one for one in target.parents if not one.exists()]):
            folder.mkdir(mode=0o700)
        with target.open("wb") as copy:
            while block := file.read(_BLOCK):
                found.update(block)
                copy.write(block)
    target.chmod(0o600)
    fsync(target)
    return found.hexdigest()


def fsync_folders(folder: Path) -> None:
    """Make the names in `folder` and in every folder below it durable."""
    for path in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        fsync(path)


def write(path: Path, content: bytes) -> None:
    """Write a new file durably, with mode 0600, or none; raises OSError, also when something is there."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink()
        raise


def digest(path: Path) -> str:
    """Return the hex SHA-256 of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.hexdigest()
