"""Clears sealed bytes that nobody can open any more: a deletion that a crash stopped halfway.

An object is deleted in one transaction, with its data key; its bytes go after. When the server dies between the two,
they stay, unreadable for ever. Not cleared here: bytes of one version of a model that lives on; they go with the model.
"""

from typing import Final

import sqlalchemy as sa

from modelkeep_platform.core.ids import TenantId
from modelkeep_platform.storage.blobs import BlobStore
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.tables.keys import wrapped_deks, wrapped_keks

_OBJECT_AT: Final = 1


class Orphans:
    """Finds and deletes bytes without a key.

    Args:
        database: knows which objects have a data key.
        blobs: where bytes lie, by ``tenant/object/…``.
    """

    def __init__(self, *, database: Database, blobs: BlobStore) -> None:
        self._database = database
        self._blobs = blobs

    def clear(self) -> int:
        """Delete the bytes of every object whose data key is gone; return how many objects had any.

        Raises:
            StorageError: they could not be deleted; the next call tries again.
        """
        with self._database.platform(read_only=True) as tx:
            owners = [TenantId(row["tenant_id"]) for row in tx.all(sa.select(wrapped_keks.c.tenant_id).distinct())]
        return sum(self._clear(owner) for owner in owners)

    def _clear(self, owner: TenantId) -> int:
        # INVARIANT: bytes are listed before keys are read. A key is committed before the first byte sealed under it,
        # and an object that lost its key never has one again, so what is listed and has no key is garbage.
        found = {key.split("/")[_OBJECT_AT] for key in self._blobs.keys(owner)}
        if not found:
            return 0
        with self._database.platform(read_only=True) as tx:
            query = sa.select(wrapped_deks.c.object_id).where(wrapped_deks.c.tenant_id == owner)
            kept = {row["object_id"] for row in tx.all(query)}
        for object_id in sorted(found - kept):
            self._blobs.delete_prefix(f"{owner}/{object_id}")
        return len(found - kept)
