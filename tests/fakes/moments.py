"""Moments of an operation at which a test lets something happen: the process dies, or another caller comes between.

Moments are counted in what the operation does with the database and with blobs. *Between* two of its transactions, and
around each blob, anything may happen; *within* a write transaction, just before its commit, only a death can: on
SQLite nobody else writes then.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fakes.core import FakeSealer
from modelkeep_platform.storage.blobs import BlobStore
from modelkeep_platform.storage.database import Database


class Moments:
    """Watches a database and the blobs of `over`.

    Args:
        database: whose transactions are counted, from now on.
        sealer: its keys are in memory: a transaction that is rolled back takes back what it did to them.
    """

    def __init__(self, database: Database, sealer: FakeSealer | None = None) -> None:
        self._sealer = sealer
        self._left = 0
        self._what: Callable[[], None] | None = None
        self._within = False
        self._depth = 0
        for name in ("tenant", "platform"):
            setattr(database, name, self._counted(getattr(database, name)))

    def over(self, blobs: BlobStore) -> "MomentousBlobs":
        """Return `blobs`, each use of which is a moment before and one after."""
        return MomentousBlobs(blobs, self)

    def at(self, number: int, what: Callable[[], None], *, within: bool) -> None:
        """Let `what` happen at the moment `number` from now, counted from 1; `within` transactions, too."""
        self._left, self._what, self._within = number, what, within

    def happened(self) -> bool:
        """Return whether it did, and let it happen no more."""
        did = self._what is None
        self._what = None
        return did

    def reach(self, *, within: bool = False) -> None:
        """Count a moment."""
        if self._what is None or (within and not self._within) or (self._depth and not within):
            return
        self._left -= 1
        if self._left == 0:
            what, self._what = self._what, None
            what()

    def _counted(self, begin: Callable[..., Any]) -> Callable[..., Any]:
        @contextmanager
        def transaction(*args: Any, read_only: bool = False, **options: Any) -> Iterator[Any]:
            self.reach()
            keys = None if self._sealer is None or read_only else set(self._sealer.keys)
            self._depth += 1
            try:
                with begin(*args, read_only=read_only, **options) as tx:
                    yield tx
                    if not read_only:
                        self.reach(within=True)
            except BaseException:
                if self._sealer is not None and keys is not None:
                    self._sealer.keys = keys
                raise
            finally:
                self._depth -= 1
            self.reach()

        return transaction


class MomentousBlobs:
    """Implements `BlobStore` over another.

    Args:
        inner: what it stores in.
        moments: counts.
    """

    def __init__(self, inner: BlobStore, moments: Moments) -> None:
        self.inner = inner
        self._moments = moments

    def put(self, key: str, data: bytes) -> None:
        self._moments.reach()
        self.inner.put(key, data)
        self._moments.reach()

    def create(self, key: str, data: bytes) -> bool:
        self._moments.reach()
        made = self.inner.create(key, data)
        self._moments.reach()
        return made

    def get(self, key: str) -> bytes:
        self._moments.reach()
        return self.inner.get(key)

    def delete(self, key: str) -> None:
        self._moments.reach()
        self.inner.delete(key)
        self._moments.reach()

    def delete_prefix(self, prefix: str) -> None:
        for key in list(self.keys(prefix)):
            self.delete(key)

    def keys(self, prefix: str) -> Iterator[str]:
        return self.inner.keys(prefix)
