"""Blobs: immutable sealed bytes by key, in a local folder or an object store, through obstore.

A local put is durable when it returns: obstore renames but does not fsync, so the file and its
folder are fsynced here. Keys are made by the platform alone, never from a tenant's input.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.exceptions import NotFoundError as ObstoreNotFoundError
from obstore.store import LocalStore

from modelkeep_platform.core.errors import IntegrityError, UnavailableError
from modelkeep_platform.storage.files import fsync

_KEY: Final = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9._-]*/)*[A-Za-z0-9_-][A-Za-z0-9._-]*\Z")
_HALF_WRITTEN: Final = re.compile(r"#[0-9]+\Z")
"""How obstore names a file until it is whole."""

FULL: Final = "the platform's disk is full; try again later, deleting still works"


class StorageError(UnavailableError):
    """The store did not read or write: a broken disk, a full one, an unreachable service."""

    code = "storage_failed"


class BlobStore(Protocol):
    """Where sealed bytes lie. Every method raises `StorageError` when the store itself fails."""

    def put(self, key: str, data: bytes) -> None:
        """Store `data` durably, replacing what was there."""

    def create(self, key: str, data: bytes) -> bool:
        """Store `data` durably unless there is a blob already; return whether it was stored.

        Of two that create one key at once, one stores. What was there is durable when this returns, too.
        """

    def get(self, key: str) -> bytes:
        """Return the bytes.

        Raises:
            IntegrityError: there is no such blob (the database says there should be).
        """

    def delete(self, key: str) -> None:
        """Delete one blob; none is no error."""

    def delete_prefix(self, prefix: str) -> None:
        """Delete every blob below `prefix/`; none is no error."""

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys below `prefix/`."""


class LocalBlobs:
    """Blobs in a folder.

    Args:
        folder: made, with mode 0700, when it is not there.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._store = LocalStore(str(folder), automatic_cleanup=True)

    def put(self, key: str, data: bytes) -> None:
        """Store `data` durably, replacing what was there; raises StorageError."""
        with _translated():
            obstore.put(self._store, _checked(key), data, use_multipart=False)
            self._sync(key)

    def create(self, key: str, data: bytes) -> bool:
        """Store `data` durably unless there is a blob already; return whether it was stored; raises StorageError."""
        with _translated():
            try:
                obstore.put(self._store, _checked(key), data, use_multipart=False, mode="create")
                stored = True
            except AlreadyExistsError:
                stored = False
            # Also what was there: who made it may have died before syncing it.
            self._sync(key)
        return stored

    def get(self, key: str) -> bytes:
        """Return the bytes; raises IntegrityError when there are none, StorageError when they cannot be read."""
        with _translated():
            try:
                return obstore.get(self._store, _checked(key)).bytes().to_bytes()
            except (ObstoreNotFoundError, FileNotFoundError) as exc:
                message = "a stored object is missing; the operator should restore it from a backup"
                raise IntegrityError(message, code="blob_missing") from exc

    def delete(self, key: str) -> None:
        """Delete one blob; none is no error; raises StorageError."""
        with _translated(), contextlib.suppress(ObstoreNotFoundError, FileNotFoundError):
            obstore.delete(self._store, _checked(key))

    def delete_prefix(self, prefix: str) -> None:
        """Delete every blob below `prefix/`; none is no error; raises StorageError."""
        for key in list(self.keys(prefix)):
            self.delete(key)

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys below `prefix/`; raises StorageError."""
        with _translated():
            for page in obstore.list(self._store, prefix=_checked(prefix)):
                for item in page:
                    yield item["path"]

    def clear_half_written(self, *, before_s: int) -> int:
        """Delete what writes left that a crash stopped; it lies beside its blob under a name that is no key.

        Args:
            before_s: only what was last written before, in seconds since the epoch: younger ones may be under way.

        Returns:
            How many there were.

        Raises:
            StorageError: they could not be deleted.
        """
        found = 0
        with _translated():
            for path in self._folder.rglob("*#*"):
                with contextlib.suppress(FileNotFoundError):  # another process was first
                    if _HALF_WRITTEN.search(path.name) and path.stat().st_mtime < before_s:
                        path.unlink()
                        found += 1
        return found

    def _sync(self, key: str) -> None:
        path = self._folder / key
        fsync(path)
        for folder in path.parents:
            fsync(folder)
            if folder == self._folder:
                break


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (OSError, BaseError) as exc:
        raise StorageError("stored bytes could not be read or written; try again, and tell the operator") from exc


def _checked(key: str) -> str:
    if not _KEY.match(key):
        message = "not a blob key"
        raise ValueError(message)
    return key
