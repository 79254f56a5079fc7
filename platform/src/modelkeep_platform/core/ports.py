"""The ports through which rooms on one floor know one another; `app` injects the implementations.

`Transaction` is opaque here: `storage` defines it, and rooms pass it through.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from modelkeep_platform.core.machine import Clock, Entropy

if TYPE_CHECKING:
    from modelkeep_platform.core.actions import Action
    from modelkeep_platform.core.callers import Caller
    from modelkeep_platform.core.decisions import Attributes, Decision
    from modelkeep_platform.core.events import Event
    from modelkeep_platform.core.ids import ObjectId, TenantId
    from modelkeep_platform.core.limits import TenantLimits
    from modelkeep_platform.core.refs import ResourceRef
    from modelkeep_platform.core.sealing import Purpose, Suite


class Transaction(Protocol):
    """An open storage transaction; see `storage.transactions`."""

    def bump_epoch(self) -> None:
        """Move the epoch within this transaction, so that caches of every process let go."""


class Authorizer(Protocol):
    """Decides every call."""

    def require(
        self, caller: Caller, action: Action, ref: ResourceRef, attributes: Attributes | None = None
    ) -> Decision:
        """Return an allow decision or raise; a refusal is recorded before it is raised.

        Raises:
            NotFoundError: `ref` is missing, or foreign and not granted: the same error, to the byte.
            ForbiddenError: visible, but denied; `details["reasons"]` says why; policies are named of the caller's
                tenant only.
        """

    def allows(self, caller: Caller, action: Action, ref: ResourceRef, attributes: Attributes | None = None) -> bool:
        """Return whether `require` would pass; records nothing (used to filter lists)."""


class Recorder(Protocol):
    """Writes the audit log."""

    def record(self, tx: Transaction, event: Event) -> None:
        """Insert the entry in the same transaction as the effect it speaks of."""

    def record_soon(self, event: Event) -> None:
        """Queue the entry of a prediction; it is committed in a group within 100 ms. Does no I/O."""


class Sealer(Protocol):
    """Seals and opens artifacts under the tenant's keys; knows nothing of what they are."""

    def create_tenant_key(self, tx: Transaction, tenant: TenantId) -> None:
        """Make the tenant's first key-encryption key."""

    def create_key(self, tx: Transaction, owner: TenantId, object_id: ObjectId) -> None:
        """Make one object's data key, wrapped under the owner's current key-encryption key.

        `tx` must be a transaction of `owner`. A later `seal` or `open` of that object uses it.
        """

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
        """Seal `plaintext`, bound to all of its context."""

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
        """Return the plaintext.

        Raises:
            IntegrityError: not sealed under this context, or changed since.
        """

    def destroy_key(self, tx: Transaction, owner: TenantId, object_id: ObjectId) -> None:
        """Delete the object's wrapped data key, after which its sealed bytes cannot be opened."""


class EpochSource(Protocol):
    """The number caches live by."""

    def current(self) -> int:
        """Return it from memory.

        Raises:
            UnavailableError: it could not be read for a second; nothing cached may be used.
        """

    def last_known(self) -> int:
        """Return it as it was last read, however long ago; for caches whose entries are only ever dropped."""

    def refresh(self) -> None:
        """Read it now and wait for the other server processes; call after committing what bumped it."""


class LimitSource(Protocol):
    """Knows what each tenant may do and have."""

    def of(self, tenant: TenantId) -> TenantLimits:
        """Return the tenant's limits; may read the database, once an epoch."""

    def cached(self, tenant: TenantId) -> TenantLimits | None:
        """Return them from memory alone; None when they were not read in this epoch."""

    def last_known(self, tenant: TenantId) -> TenantLimits:
        """Return them from memory alone, as they were last read; the settings' for a tenant never looked at."""


class Signer(Protocol):
    """Signs as the platform, under a named purpose."""

    def public_key(self) -> bytes:
        """Return the 32 raw bytes of the Ed25519 public key."""

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte Ed25519 signature of `message`."""


__all__ = [
    "Authorizer",
    "Clock",
    "Entropy",
    "EpochSource",
    "LimitSource",
    "Recorder",
    "Sealer",
    "Signer",
    "Transaction",
]
