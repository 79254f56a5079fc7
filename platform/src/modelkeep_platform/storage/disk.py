"""The disk space kept for the log: what else would write is refused while there is still room for entries.

A log that cannot be written stops everything, deletions too, and with them the way out. So predictions and changes stop
earlier, when less than the reserve is free; what still runs by then (jobs that end, tenants that delete) is recorded in
what was kept. Jobs' checkpoints and weights stop with the rest: `ReservedBlobs` stores nothing new.
"""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from modelkeep_platform.core.ports import Clock
from modelkeep_platform.storage.blobs import FULL, BlobStore, StorageError

_LOOK_S: Final = 1.0


class Disk:
    """Knows how much is free, from a look at most a second old.

    Args:
        folder: lies on the disk that is meant.
        reserve_bytes: how much of it is kept for the log.
        clock: tells how old the last look is.
    """

    def __init__(self, folder: Path, *, reserve_bytes: int, clock: Clock) -> None:
        self._folder = folder
        self.reserve_bytes = reserve_bytes
        self._clock = clock
        self._looked_at = float("-inf")
        self._free = 0
        self._lock = threading.Lock()

    def free_bytes(self) -> int:
        """Return how much is free; 0 when the disk does not say."""
        now = self._clock.monotonic_s()
        with self._lock:
            if now - self._looked_at >= _LOOK_S:
                self._looked_at = now
                try:
                    self._free = shutil.disk_usage(self._folder).free
                except OSError:
                    self._free = 0
            return self._free

    def has_room(self) -> bool:
        """Return whether more than the reserve is free."""
        return self.free_bytes() > self.reserve_bytes


class ReservedBlobs:
    """Blobs that leave the reserve free.

    Args:
        blobs: where they lie.
        disk: knows whether there is room.
    """

    def __init__(self, blobs: BlobStore, *, disk: Disk) -> None:
        self._blobs = blobs
        self._disk = disk

    def put(self, key: str, data: bytes) -> None:
        """Store `data`; raises StorageError also when only the reserve is left."""
        self._check()
        self._blobs.put(key, data)

    def create(self, key: str, data: bytes) -> bool:
        """Store `data` unless there is a blob already; raises StorageError also when only the reserve is left."""
        self._check()
        return self._blobs.create(key, data)

    def get(self, key: str) -> bytes:
        """Return the bytes; raises IntegrityError or StorageError."""
        return self._blobs.get(key)

    def delete(self, key: str) -> None:
        """Delete one blob; raises StorageError."""
        self._blobs.delete(key)

    def delete_prefix(self, prefix: str) -> None:
        """Delete every blob below `prefix/`; raises StorageError."""
        self._blobs.delete_prefix(prefix)

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys below `prefix/`; raises StorageError."""
        return self._blobs.keys(prefix)

    def _check(self) -> None:
        if not self._disk.has_room():
            raise StorageError(FULL, code="disk_full")
