"""The SDK's own files: pinned issuers, cached tokens, kept checkpoints.

Files are made with mode 0600 in a folder of mode 0700, replaced as a whole, and refused when others may read or
write them or when they belong to somebody else. Names are digests: nothing a server says becomes a path.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from modelkeep._core.flows import Flow, sleep
from modelkeep.errors import StateError

if sys.platform != "win32":
    import fcntl

_MAX_BYTES: Final = 256 * 1024
_LOCK_WAIT_S: Final = 0.05
_LOCK_TRIES: Final = 1200
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_NO_FOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)
_POSIX: Final = os.name == "posix"


def default_folder() -> Path:
    """Return the folder used when none is given: `MODELKEEP_STATE_DIR`, else the user's state folder."""
    named = os.environ.get("MODELKEEP_STATE_DIR")
    if named:
        return Path(named)
    import platformdirs

    return platformdirs.user_state_path("modelkeep", appauthor=False)


class State:
    """Small JSON records, each named by what it is and what it is about.

    Args:
        folder: made when something is first written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, kind: str, *about: str) -> dict[str, Any] | None:
        """Return a record, or None.

        Raises:
            StateError: others may read or write it, it belongs to somebody else, or it is broken.
        """
        path = self._path(kind, about)
        try:
            handle = os.open(path, os.O_RDONLY | _NO_FOLLOW)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise StateError(f"`{path}` cannot be read: {exc.strerror}") from exc
        with os.fdopen(handle, "rb") as file:
            _check_private(os.fstat(file.fileno()), path)
            data = file.read(_MAX_BYTES + 1)
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as exc:
            raise StateError(f"`{path}` is broken; remove it and log in again") from exc
        if not isinstance(value, dict) or len(data) > _MAX_BYTES:
            raise StateError(f"`{path}` is broken; remove it and log in again")
        return value

    def write(self, kind: str, *about: str, value: Mapping[str, Any]) -> None:
        """Replace a record as a whole; it is on disk when this returns.

        Raises:
            StateError: the folder or file cannot be written, or others may write the folder.
        """
        path = self._path(kind, about)
        self._make_folder()
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(json.dumps(value).encode())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as exc:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise StateError(f"`{path}` cannot be written: {exc.strerror}") from exc

    def remove(self, kind: str, *about: str) -> None:
        """Remove a record, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._path(kind, about).unlink()

    def lock(self, kind: str, *about: str) -> Flow[FileLock]:
        """Wait until no other thread or process holds this lock, and take it.

        Raises:
            StateError: somebody held it for a minute.
        """
        self._make_folder()
        path = self._path(kind, about).with_suffix(".lock")
        for _ in range(_LOCK_TRIES):
            lock = FileLock.take(path)
            if lock is not None:
                return lock
            yield from sleep(_LOCK_WAIT_S)
        raise StateError(f"another process has held `{path}` for a minute; end it, or use another `state_dir`")

    def _path(self, kind: str, about: tuple[str, ...]) -> Path:
        if not about:
            return self.folder / f"{kind}.json"
        digest = hashlib.sha256("\n".join(about).encode()).hexdigest()[:32]
        return self.folder / f"{kind}-{digest}.json"

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self.folder.stat()
        except OSError as exc:
            raise StateError(f"`{self.folder}` cannot be made: {exc.strerror}; pass another `state_dir`") from exc
        if _POSIX and found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise StateError(f"others may write `{self.folder}`; run `chmod 700 {self.folder}`")


class FileLock:
    """A lock that the system releases when its holder ends; take it through `State.lock`."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    @classmethod
    def take(cls, path: Path) -> FileLock | None:
        """Take the lock if it is free; do not wait."""
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | _NO_FOLLOW, 0o600)
        except OSError as exc:
            raise StateError(f"`{path}` cannot be opened: {exc.strerror}") from exc
        if sys.platform != "win32":
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(handle)
                return None
        return cls(handle)

    def release(self) -> None:
        """Give the lock back; a second time does nothing."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)


def _check_private(found: os.stat_result, path: Path) -> None:
    if not _POSIX:
        return
    if not stat.S_ISREG(found.st_mode):
        raise StateError(f"`{path}` is not a regular file; remove it")
    if found.st_uid not in (os.geteuid(), 0):
        raise StateError(f"`{path}` belongs to another user; remove it and log in again")
    if found.st_mode & _OTHERS:
        raise StateError(
            f"others may read `{path}`, which may hold a token; remove it and log in again, "
            "or run `chmod 600` on it if nobody did"
        )
