"""Identifiers: small typed strings, random and never reused.

A tenant id is a UUID (Keycloak's organization id in production). Object ids carry the prefix of
their kind, for people who read logs; nothing parses the prefix to decide anything.
"""

import base64
import re
import uuid
from typing import Final, NewType

from modelkeep_platform.core.errors import UnprocessableError
from modelkeep_platform.core.machine import Entropy

TenantId = NewType("TenantId", str)
ObjectId = NewType("ObjectId", str)
PrincipalId = NewType("PrincipalId", str)
RequestId = NewType("RequestId", str)

PLATFORM: Final = TenantId("platform")
"""The owner of what belongs to no tenant: audit entries of operators, platform settings."""

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z")
_SLUG: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?\Z")


def new_tenant_id(entropy: Entropy) -> TenantId:
    """Make a random (version 4) UUID in its canonical text form."""
    return TenantId(str(uuid.UUID(bytes=entropy.random_bytes(16), version=4)))


def new_object_id(entropy: Entropy, prefix: str) -> ObjectId:
    """Make `prefix_` followed by 128 random bits in lower-case base32 (26 characters)."""
    text = base64.b32encode(entropy.random_bytes(16)).decode("ascii").rstrip("=").lower()
    return ObjectId(f"{prefix}_{text}")


def check_name(name: str, *, what: str) -> str:
    """Return `name` if it is a legal name of a model, dataset, alias or account.

    Raises:
        UnprocessableError: it does not match ``[a-z0-9][a-z0-9._-]{0,63}``.
    """
    if not _NAME.match(name):
        message = (
            f"`{name[:80]}` is not a legal {what} name; use 1 to 64 of a-z, 0-9, `.`, `_`, `-`, "
            "beginning with a letter or digit"
        )
        raise UnprocessableError(message, code="invalid_name")
    return name


def check_slug(slug: str) -> str:
    """Return `slug` if it can name a tenant: 1 to 40 of a-z, 0-9 and inner hyphens.

    Raises:
        UnprocessableError: it cannot, or it is reserved.
    """
    if not _SLUG.match(slug) or slug == PLATFORM:
        message = f"`{slug[:80]}` is not a legal tenant slug; use 1 to 40 of a-z, 0-9 and inner hyphens"
        raise UnprocessableError(message, code="invalid_name")
    return slug
