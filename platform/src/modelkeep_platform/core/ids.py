"""Identifiers: small typed strings, random and never reused.

A tenant id is a UUID (Keycloak's organization id in production). Object ids carry the prefix of
their kind, for people who read logs; nothing parses the prefix to decide anything.
"""

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

_ID_BYTES: Final = 16
_IDS_DRAWN: Final = 256
_DIGITS: Final = "abcdefghijklmnopqrstuvwxyz234567"
_PAIRS: Final = tuple(high + low for high in _DIGITS for low in _DIGITS)
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z")
_SLUG: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?\Z")


def new_tenant_id(entropy: Entropy) -> TenantId:
    """Make a random (version 4) UUID in its canonical text form."""
    return TenantId(str(uuid.UUID(bytes=entropy.random_bytes(16), version=4)))


def new_object_id(entropy: Entropy, prefix: str) -> ObjectId:
    """Make `prefix_` followed by 128 random bits in lower-case base32 (26 characters)."""
    return ObjectId(f"{prefix}_{_base32(entropy.random_bytes(_ID_BYTES))}")


class RequestIds:
    """Makes the ids of requests, for one thread.

    Random bytes are drawn for many ids at once: each draw is a system call, during which another thread may take the
    interpreter away from the event loop.

    Args:
        entropy: gives random bytes.
    """

    def __init__(self, entropy: Entropy) -> None:
        self._entropy = entropy
        self._drawn = b""
        self._at = 0

    def new(self) -> RequestId:
        """Make `req_` followed by 128 random bits, as `new_object_id` does."""
        if self._at == len(self._drawn):
            self._drawn, self._at = self._entropy.random_bytes(_ID_BYTES * _IDS_DRAWN), 0
        self._at += _ID_BYTES
        return RequestId(f"req_{_base32(self._drawn[self._at - _ID_BYTES : self._at])}")


def _base32(data: bytes) -> str:
    """Write 128 bits in RFC 4648's base32, lower case and without padding, ten bits at a time."""
    bits = int.from_bytes(data, "big") << 2
    return "".join([_PAIRS[(bits >> shift) & 1023] for shift in range(120, -1, -10)])


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
