"""Clears sealed bytes that are nobody's: what a deletion or a registration left that a crash stopped halfway.

- Of an object without a data key. It is deleted in one transaction, with its key; its bytes go after.
- Of a version of a model without a row. A number is taken in the transaction that makes its row, and deleted with it;
  bytes are written after the one and deleted after the other.

Nothing that is under way is taken for garbage, by whichever server process: its key and its row were committed before
its first byte was written, and keys and numbers that are gone never come back.
"""

from typing import Any, Final

import sqlalchemy as sa

from modelkeep_platform.core.ids import TenantId
from modelkeep_platform.storage.blobs import BlobStore
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.tables.keys import wrapped_deks, wrapped_keks
from modelkeep_platform.storage.tables.models import model_versions, models

_OBJECT_AT: Final = 1
_VERSION_AT: Final = 2


class Orphans:
    """Finds and deletes them.

    Args:
        database: knows keys and versions.
        blobs: where bytes lie, by ``tenant/object/version/…``.
    """

    def __init__(self, *, database: Database, blobs: BlobStore) -> None:
        self._database = database
        self._blobs = blobs

    def clear(self) -> int:
        """Delete the bytes that are nobody's; return of how many versions there were any.

        Raises:
            StorageError: they could not be deleted; the next call tries again.
        """
        with self._database.platform(read_only=True) as tx:
            owners = [TenantId(row["tenant_id"]) for row in tx.all(sa.select(wrapped_keks.c.tenant_id).distinct())]
        return sum(self._clear(owner) for owner in owners)

    def _clear(self, owner: TenantId) -> int:
        # INVARIANT: bytes are listed before rows are read. A row that is committed after that is of bytes not listed.
        garbage = self._garbage(owner, self._places(owner))
        for object_id, version in sorted(garbage):
            self._blobs.delete_prefix(f"{owner}/{object_id}/{version}")
        return len(garbage)

    def _places(self, owner: TenantId) -> set[tuple[str, str]]:
        """Return objects and versions that have bytes."""
        keys = (key.split("/") for key in self._blobs.keys(owner))
        return {(parts[_OBJECT_AT], parts[_VERSION_AT]) for parts in keys}

    def _garbage(self, owner: TenantId, places: set[tuple[str, str]]) -> set[tuple[str, str]]:
        if not places:
            return set()
        with self._database.platform(read_only=True) as tx:
            keys = {row["object_id"] for row in tx.all(_of(owner, wrapped_deks, wrapped_deks.c.object_id))}
            of_models = {row["id"] for row in tx.all(_of(owner, models, models.c.id))}
            columns = (model_versions.c.model_id, model_versions.c.version)
            versions = {(row["model_id"], str(row["version"])) for row in tx.all(_of(owner, model_versions, *columns))}
        return {place for place in places if place[0] not in keys or (place[0] in of_models and place not in versions)}


def _of(owner: TenantId, table: sa.Table, *columns: sa.Column[Any]) -> sa.Select[Any]:
    return sa.select(*columns).where(table.c.tenant_id == owner)
