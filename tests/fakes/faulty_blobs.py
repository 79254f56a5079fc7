"""A blob store in memory, and one that fails as disks and processes do: when a test orders it."""

from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import TypeVar

from modelkeep_platform.core.errors import IntegrityError
from modelkeep_platform.storage.blobs import BlobStore, StorageError

T = TypeVar("T")


class MemoryBlobs:
    """Implements `BlobStore` with a dictionary."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}

    def put(self, key: str, data: bytes) -> None:
        self.data[key] = bytes(data)

    def create(self, key: str, data: bytes) -> bool:
        if key in self.data:
            return False
        self.data[key] = bytes(data)
        return True

    def get(self, key: str) -> bytes:
        if key not in self.data:
            raise IntegrityError("a stored object is missing", code="blob_missing")
        return self.data[key]

    def delete(self, key: str) -> None:
        self.data.pop(key, None)

    def delete_prefix(self, prefix: str) -> None:
        for key in list(self.keys(prefix)):
            self.delete(key)

    def keys(self, prefix: str) -> Iterator[str]:
        yield from [key for key in self.data if key.startswith(f"{prefix}/")]


class Crash(BaseException):
    """The process dies here; what it would have done next is never done."""


class Fault(StrEnum):
    """What goes wrong."""

    EIO = "the device fails and nothing is done"
    FULL = "there is no space and nothing is done"
    TORN = "half is written, then the process dies"
    UNSYNCED = "all is written, then the device fails"
    BEFORE = "the process dies before anything is done"
    AFTER = "the process dies after all is done"
    SHORT = "half is read"


class FaultyBlobs:
    """Implements `BlobStore` over another; an ordered fault strikes once.

    Args:
        inner: what it stores in.
    """

    def __init__(self, inner: BlobStore) -> None:
        self.inner = inner
        self._ordered: dict[str, tuple[int, Fault]] = {}

    def order(self, call: str, fault: Fault, *, after: int = 0) -> None:
        """Let a call fail after `after` good ones; `call` is ``write``, ``get`` or ``delete``."""
        self._ordered[call] = (after, fault)

    def mend(self) -> None:
        """Take back what was ordered and has not struck."""
        self._ordered.clear()

    def put(self, key: str, data: bytes) -> None:
        self._write(key, data, lambda: self.inner.put(key, data))

    def create(self, key: str, data: bytes) -> bool:
        return self._write(key, data, lambda: self.inner.create(key, data))

    def get(self, key: str) -> bytes:
        fault = self._next("get")
        self._refuse(fault)
        data = self.inner.get(key)
        return data[: len(data) // 2] if fault is Fault.SHORT else data

    def delete(self, key: str) -> None:
        fault = self._next("delete")
        self._refuse(fault)
        self.inner.delete(key)
        if fault is Fault.AFTER:
            raise Crash

    def delete_prefix(self, prefix: str) -> None:
        for key in list(self.keys(prefix)):
            self.delete(key)

    def keys(self, prefix: str) -> Iterator[str]:
        return self.inner.keys(prefix)

    def _write(self, key: str, data: bytes, write: Callable[[], T]) -> T:
        fault = self._next("write")
        self._refuse(fault)
        if fault is Fault.TORN:
            self.inner.put(key, data[: len(data) // 2])
            raise Crash
        done = write()
        if fault is Fault.UNSYNCED:
            raise StorageError("stored bytes could not be read or written")
        if fault is Fault.AFTER:
            raise Crash
        return done

    def _next(self, call: str) -> Fault | None:
        after, fault = self._ordered.pop(call, (-1, None))
        if after > 0 and fault is not None:
            self._ordered[call] = (after - 1, fault)
        return fault if after == 0 else None

    def _refuse(self, fault: Fault | None) -> None:
        if fault in (Fault.EIO, Fault.FULL):
            raise StorageError("stored bytes could not be read or written")
        if fault is Fault.BEFORE:
            raise Crash
