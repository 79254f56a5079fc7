"""Gathers, while the server serves, every blob that the database names at one moment, and nothing else.

Blobs are copied pass by pass, until a pass finds hardly anything that is new. Then writing is held up, for as long as
the rest takes: that is the moment. A row goes before its bytes do, so whatever the database names while nobody can
write is there, and no deletion comes between the naming and the copying. What was deleted before is not named, and is
not kept.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from modelkeep_platform.app.backup.files import copy_file
from modelkeep_platform.core.errors import IntegrityError
from modelkeep_platform.core.ids import ObjectId, TenantId
from modelkeep_platform.core.sealing import Purpose
from modelkeep_platform.uploads.artifacts import keys_of, part_key

_BUSY_MS: Final = 60_000
_PASSES: Final = 5
_FIRST: Final = 1

_VERSIONS: Final = "SELECT tenant_id, model_id, version, weights_bytes FROM model_versions WHERE state = 'ready'"
_DATASETS: Final = (
    "SELECT d.tenant_id, d.id, u.size_bytes FROM datasets d LEFT JOIN uploads u "
    "ON u.tenant_id = d.tenant_id AND u.id = d.upload_id WHERE d.state = 'ready'"
)
_RECEIVED: Final = (
    "SELECT u.tenant_id, u.object_id, u.version, u.purpose, p.number FROM uploads u JOIN upload_parts p "
    "ON p.tenant_id = u.tenant_id AND p.upload_id = u.id WHERE u.state = 'open'"
)


class Gathered:
    """Copies of blobs.

    Args:
        blobs: where they lie.
        into: where the copies go.
    """

    def __init__(self, blobs: Path, into: Path) -> None:
        self._blobs = blobs
        self._into = into
        self._copied: dict[str, tuple[int, int, int]] = {}
        self.digests: dict[str, str] = {}

    def take(self, names: Iterable[str]) -> int:
        """Copy of `names` what is there and was not copied as it is now; return how many were."""
        return sum(self._take(name) for name in names)

    def _take(self, name: str) -> bool:
        source = self._blobs / name
        try:
            # Only a part that a crash tore is ever replaced, by a file of its own, and before a row names it.
            found = source.stat()
            now = (found.st_ino, found.st_mtime_ns, found.st_size)
            if self._copied.get(name) == now:
                return False
            self.digests[name] = copy_file(source, self._into / name)
        except FileNotFoundError:  # deleted meanwhile; whether it was needed shows at the moment
            return False
        self._copied[name] = now
        return True

    def keep_only(self, names: set[str]) -> None:
        """Delete every copy that is none of `names`.

        Raises:
            IntegrityError: ``blob_missing``: one of `names` is not among the copies.
        """
        if not names <= self.digests.keys():
            raise IntegrityError("a stored object is missing; the backup is not whole", code="blob_missing")
        for name in self.digests.keys() - names:
            del self.digests[name]
            gone = self._into / name
            gone.unlink()
            for folder in gone.relative_to(self._into).parents:
                if any((self._into / folder).iterdir()):
                    break
                (self._into / folder).rmdir()


@contextmanager
def moment(database: Path, gathered: Gathered) -> Iterator[sqlite3.Connection]:
    """Gather the blobs of `database`; give a connection that sees it as it was at the moment when they were all there.

    Args:
        database: the live database.
        gathered: takes the blobs.

    Raises:
        IntegrityError: ``blob_missing``: one that the database names is not there.
    """
    gather_ahead(database, gathered)
    with closing(_connect(database)) as reader:
        with closing(_connect(database)) as holder:
            # INVARIANT: from here until all is copied nobody commits, so nobody deletes bytes of what is named.
            holder.execute("BEGIN IMMEDIATE")
            reader.execute("BEGIN")
            names = set(named(reader))
            gathered.take(names)
        gathered.keep_only(names)
        yield reader


def gather_ahead(database: Path, gathered: Gathered) -> None:
    """Copy what the database names again and again, while others write, until nothing is left to copy."""
    for _ in range(_PASSES):
        with closing(_connect(database)) as connection:
            names = list(named(connection))
        if not gathered.take(names):
            return


def named(connection: sqlite3.Connection) -> Iterator[str]:
    """Yield the blobs of everything that opens: versions, datasets, and what arrived of uploads that can go on.

    Not those of jobs: a restore ends every job, and no checkpoint is read again.
    """
    for tenant, model, version, size in connection.execute(_VERSIONS):
        yield from keys_of(TenantId(tenant), ObjectId(model), version, Purpose.WEIGHTS, size)
    for tenant, dataset, size in connection.execute(_DATASETS):
        yield from keys_of(TenantId(tenant), ObjectId(dataset), _FIRST, Purpose.DATASET, size or 0)
    for tenant, object_id, version, purpose, number in connection.execute(_RECEIVED):
        yield part_key(TenantId(tenant), ObjectId(object_id), version, Purpose(purpose), number)


def _connect(database: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
    return connection
