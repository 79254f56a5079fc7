"""A disk that breaks under a real platform in this process: what obstore and SQLite are asked for fails.

The platform's own code is the shipped one; only what lies below it is replaced, for all platforms of the process.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, Final

import obstore
import pytest

from modelkeep_platform.storage import blobs, files
from modelkeep_platform.storage.database import Database

_MANY_PAGES: Final = 1 << 30


class DiskFault(StrEnum):
    """What goes wrong."""

    FULL = "nothing is written: there is no space"
    EIO = "nothing is written, read, listed or deleted: the device fails"
    TORN = "half is written under its name, then the device fails"
    UNSYNCED = "all is written, and cannot be made durable"
    UNREAD = "nothing is read: the device fails"
    SHORT = "half is read"


WRITES: Final = (DiskFault.FULL, DiskFault.EIO, DiskFault.TORN, DiskFault.UNSYNCED)
READS: Final = (DiskFault.UNREAD, DiskFault.SHORT)


class FaultyDisk:
    """Fails where it is told to; a context manager of `breaks` mends it.

    Args:
        monkeypatch: takes everything back when the test ends.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._fault: DiskFault | None = None
        self._part = ""
        self._no_pages = False
        self.struck = 0
        self._put, self._get, self._list, self._delete = obstore.put, obstore.get, obstore.list, obstore.delete
        self._fsync, self._connection = files.fsync, Database.connection
        for name in ("put", "get", "list", "delete"):
            monkeypatch.setattr(obstore, name, getattr(self, f"_{name}_or_fail"))
        monkeypatch.setattr(blobs, "fsync", self._fsync_or_fail)
        disk = self

        @contextmanager
        def connection(self: Database, *, read_only: bool = False) -> Iterator[Any]:
            with disk._connection(self, read_only=read_only) as found:
                # SQLite takes no limit below the present size, so 1 is: not a page more.
                found.exec_driver_sql(f"PRAGMA max_page_count={1 if disk._no_pages else _MANY_PAGES}")
                yield found

        monkeypatch.setattr(Database, "connection", connection)

    @contextmanager
    def breaks(self, fault: DiskFault, part: str = "") -> Iterator[None]:
        """Fail at blobs whose keys contain `part` until the block ends; assert that one was met."""
        self._fault, self._part, self.struck = fault, part, 0
        try:
            yield
        finally:
            self._fault = None
        assert self.struck, f"nothing met: {fault}"

    @contextmanager
    def database_is_full(self) -> Iterator[None]:
        """Let the database not grow until the block ends."""
        self._no_pages = True
        try:
            yield
        finally:
            self._no_pages = False

    def _now(self, key: str, *faults: DiskFault) -> DiskFault | None:
        if self._fault not in faults or self._part not in key:
            return None
        self.struck += 1
        return self._fault

    def _fail(self, key: str, *faults: DiskFault) -> None:
        if (fault := self._now(key, *faults)) is not None:
            number = errno.ENOSPC if fault is DiskFault.FULL else errno.EIO
            raise OSError(number, os.strerror(number))

    def _put_or_fail(self, store: Any, key: str, data: bytes, **options: Any) -> Any:
        self._fail(key, DiskFault.FULL, DiskFault.EIO)
        if self._now(key, DiskFault.TORN):
            self._put(store, key, data[: len(data) // 2], **options)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self._put(store, key, data, **options)

    def _get_or_fail(self, store: Any, key: str) -> Any:
        self._fail(key, DiskFault.EIO, DiskFault.UNREAD)
        found = self._get(store, key)
        return _Half(found.bytes()) if self._now(key, DiskFault.SHORT) else found

    def _list_or_fail(self, store: Any, prefix: str) -> Any:
        self._fail(prefix, DiskFault.EIO)
        return self._list(store, prefix=prefix)

    def _delete_or_fail(self, store: Any, key: str) -> Any:
        self._fail(key, DiskFault.EIO)
        return self._delete(store, key)

    def _fsync_or_fail(self, path: Any) -> None:
        self._fail(str(path), DiskFault.UNSYNCED)
        self._fsync(path)


class _Half:
    """An answer of which half arrived."""

    def __init__(self, whole: Any) -> None:
        self._whole = whole.to_bytes()
        self.bytes = lambda: self

    def to_bytes(self) -> bytes:
        return bytes(self._whole[: len(self._whole) // 2])
