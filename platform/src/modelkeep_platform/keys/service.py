"""The key tree: root key → tenant's key-encryption key, versioned → data key of one object.

Implements the `Sealer` port. Opened data keys are cached in memory, bounded and by tenant; nothing else of them
leaves this room. A destroyed key is forgotten here at once, and in other processes when they see the epoch that its
deletion moved: what was opened in an earlier epoch is forgotten.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from modelkeep_platform.core.errors import IntegrityError
from modelkeep_platform.core.ids import ObjectId, TenantId
from modelkeep_platform.core.ports import Clock, Entropy, Transaction
from modelkeep_platform.core.sealing import Purpose, Suite
from modelkeep_platform.core.secrets import SecretBytes
from modelkeep_platform.keys.context import context, dek_context, kek_context
from modelkeep_platform.keys.roots.port import RootKey
from modelkeep_platform.keys.sealed import KEY_BYTES, open_sealed, seal
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.tables.keys import wrapped_deks, wrapped_keks
from modelkeep_platform.storage.transactions import PlatformTransaction, Row, System, TenantTransaction

_CACHED_KEYS: Final = 4096
_DESTROYED_KEYS: Final = 65_536
_SYSTEM: Final = System(reason="open a tenant's key")


class KeyService:
    """Makes, opens and destroys keys.

    Args:
        database: where wrapped keys are.
        root: the root of trust.
        clock: stamps keys.
        entropy: makes keys.
        epoch: the number that every deletion moves; opened keys are kept for one.
    """

    def __init__(
        self,
        *,
        database: Database,
        root: RootKey,
        clock: Clock,
        entropy: Entropy,
        epoch: Callable[[], int] = lambda: 0,
    ) -> None:
        self._database = database
        self._root = root
        self._clock = clock
        self._entropy = entropy
        self._epoch = epoch
        self._opened_in = 0
        self._cache: OrderedDict[tuple[TenantId, ObjectId], SecretBytes] = OrderedDict()
        self._destroyed: OrderedDict[tuple[TenantId, ObjectId], None] = OrderedDict()
        self._lock = threading.Lock()

    def create_tenant_key(self, tx: Transaction, tenant: TenantId) -> None:
        """Make the tenant's first key-encryption key, wrapped by the root.

        Raises:
            ValueError: `tx` is not a storage transaction of this tenant or of the platform.
        """
        version = 1
        kek = SecretBytes(self._entropy.random_bytes(KEY_BYTES))
        wrapped = self._root.wrap(kek, kek_context(tenant, version=version, root_id=self._root.id))
        values = {
            "version": version,
            "root_id": self._root.id,
            "wrapped": wrapped,
            "created_at": self._clock.now_s(),
        }
        _owned(tx, tenant).insert(wrapped_keks, **values)

    def has_tenant_key(self, tx: TenantTransaction) -> bool:
        """Return whether the owner of `tx` has a key-encryption key."""
        return tx.first(tx.select(wrapped_keks)) is not None

    def check_root(self, tenant: TenantId) -> None:
        """Unwrap the tenant's newest key and forget it; raises when the root key cannot be used.

        Raises:
            IntegrityError: there is no key, or the root does not open it.
        """
        with self._database.tenant(tenant, by=_SYSTEM, read_only=True) as tx:
            self._newest_kek(tx, tenant)

    def create_key(self, tx: Transaction, owner: TenantId, object_id: ObjectId) -> None:
        """Make one object's data key, wrapped under the owner's newest key-encryption key.

        Raises:
            IntegrityError: the owner has no key-encryption key.
        """
        owned = _owned(tx, owner)
        version, kek = self._newest_kek(owned, owner)
        dek = SecretBytes(self._entropy.random_bytes(KEY_BYTES))
        wrapped = seal(
            kek.reveal(), dek_context(owner, object_id, kek_version=version), dek.reveal(), suite=Suite.SMALL
        )
        owned.insert(
            wrapped_deks, object_id=object_id, kek_version=version, wrapped=wrapped, created_at=self._clock.now_s()
        )

    def destroy_key(self, tx: Transaction, owner: TenantId, object_id: ObjectId) -> None:
        """Delete the object's wrapped data key and forget the opened one."""
        owned = _owned(tx, owner)
        owned.change(owned.delete(wrapped_deks).where(wrapped_deks.c.object_id == object_id))
        with self._lock:
            self._cache.pop((owner, object_id), None)
            # Until `tx` commits a reader still finds the row; what it opens must not stay in the cache for ever.
            self._destroyed[owner, object_id] = None
            while len(self._destroyed) > _DESTROYED_KEYS:
                self._destroyed.popitem(last=False)

    def seal(
        self,
        owner: TenantId,
        object_id: ObjectId,
        plaintext: bytes | memoryview,
        *,
        purpose: Purpose,
        version: int,
        name: str,
        suite: Suite,
    ) -> bytes:
        """Seal `plaintext` under the object's data key, bound to all of its context."""
        bound = context(purpose=purpose, tenant=owner, object_id=object_id, version=version, name=name, suite=suite)
        return seal(self._data_key(owner, object_id).reveal(), bound, plaintext, suite=suite)

    def open(
        self,
        owner: TenantId,
        object_id: ObjectId,
        sealed: bytes | memoryview,
        *,
        purpose: Purpose,
        version: int,
        name: str,
        suite: Suite,
    ) -> bytes:
        """Return the plaintext; raises IntegrityError when it is not sealed under this context or was changed."""
        bound = context(purpose=purpose, tenant=owner, object_id=object_id, version=version, name=name, suite=suite)
        return open_sealed(self._data_key(owner, object_id).reveal(), bound, sealed)

    def _data_key(self, owner: TenantId, object_id: ObjectId) -> SecretBytes:
        place = (owner, object_id)
        with self._lock:
            # INVARIANT: read before the row is: a key that is destroyed meanwhile is forgotten with the next epoch.
            epoch = self._epoch()
            if epoch != self._opened_in:
                self._cache.clear()
                self._opened_in = epoch
            known = self._cache.get(place)
            if known is not None:
                self._cache.move_to_end(place)
                return known
        with self._database.tenant(owner, by=_SYSTEM, read_only=True) as tx:
            row = tx.first(tx.select(wrapped_deks).where(wrapped_deks.c.object_id == object_id))
            if row is None:
                raise IntegrityError(
                    "the object's key is gone; what was sealed under it cannot be opened", code="key_missing"
                )
            kek = self._kek(tx, owner, row["kek_version"])
        bound = dek_context(owner, object_id, kek_version=row["kek_version"])
        key = SecretBytes(open_sealed(kek.reveal(), bound, row["wrapped"]))
        with self._lock:
            if place in self._destroyed or epoch != self._opened_in:
                return key
            self._cache[place] = key
            while len(self._cache) > _CACHED_KEYS:
                self._cache.popitem(last=False)
        return key

    def _newest_kek(self, tx: TenantTransaction, owner: TenantId) -> tuple[int, SecretBytes]:
        row = tx.first(tx.select(wrapped_keks).order_by(wrapped_keks.c.version.desc()).limit(1))
        if row is None:
            raise IntegrityError("the tenant has no key", code="key_missing")
        return row["version"], self._unwrap(owner, row)

    def _kek(self, tx: TenantTransaction, owner: TenantId, version: int) -> SecretBytes:
        row = tx.first(tx.select(wrapped_keks).where(wrapped_keks.c.version == version))
        if row is None:
            raise IntegrityError("the tenant has no key of that version", code="key_missing")
        return self._unwrap(owner, row)

    def _unwrap(self, owner: TenantId, row: Row) -> SecretBytes:
        if row["root_id"] != self._root.id:
            raise IntegrityError(
                "the tenant's key was wrapped by another root key; start the server with that one",
                code="root_key_other",
            )
        return self._root.unwrap(row["wrapped"], kek_context(owner, version=row["version"], root_id=row["root_id"]))


def _owned(tx: Transaction, owner: TenantId) -> TenantTransaction:
    if isinstance(tx, PlatformTransaction):
        return tx.as_tenant(owner)
    if not isinstance(tx, TenantTransaction) or tx.owner != owner:
        raise ValueError("a key is made in a transaction of its owner")
    return tx
