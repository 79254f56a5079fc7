"""Contexts: the canonical bytes that bind a sealed value to its place."""

from modelkeep_platform.core.canonical import canonical_bytes
from modelkeep_platform.core.ids import ObjectId, TenantId
from modelkeep_platform.core.sealing import Purpose, Suite


def context(*, purpose: Purpose, tenant: TenantId, object_id: ObjectId, version: int, name: str, suite: Suite) -> bytes:
    """Return the context: purpose, tenant, object, version, file name inside the object, suite."""
    return canonical_bytes(purpose, tenant, object_id, version, name, int(suite))


def kek_context(tenant: TenantId, *, version: int, root_id: str) -> bytes:
    """Return the context of a tenant's wrapped key-encryption key, naming the root that wraps it."""
    return canonical_bytes(Purpose.WRAP_KEK, tenant, version, root_id, int(Suite.SMALL))


def dek_context(tenant: TenantId, object_id: ObjectId, *, kek_version: int) -> bytes:
    """Return the context of an object's wrapped data key, naming the key-encryption key that wraps it."""
    return canonical_bytes(Purpose.WRAP_DEK, tenant, object_id, kek_version, int(Suite.SMALL))
