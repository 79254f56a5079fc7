"""A root of trust in memory, for tests: it wraps as a device without associated data would."""

import hashlib
import hmac

from modelkeep_platform.core.errors import IntegrityError
from modelkeep_platform.core.secrets import SecretBytes


class FakeRootKey:
    """Implements `RootKey` with a pad and a tag from SHA-256; each wrapping has a nonce of its own.

    Args:
        name: of the root; two of one name are the same root.
    """

    def __init__(self, name: str = "fake-root") -> None:
        self._name = name
        self._count = 0

    @property
    def id(self) -> str:
        return self._name

    def wrap(self, key: SecretBytes, context: bytes) -> bytes:
        self._count += 1
        nonce = self._count.to_bytes(8, "big")
        body = nonce + _xor(key.reveal(), self._pad(nonce, len(key)))
        return body + self._tag(body, context)

    def unwrap(self, wrapped: bytes, context: bytes) -> SecretBytes:
        body, tag = wrapped[:-32], wrapped[-32:]
        if not hmac.compare_digest(tag, self._tag(body, context)):
            raise IntegrityError("not wrapped by this root under this context")
        return SecretBytes(_xor(body[8:], self._pad(body[:8], len(body) - 8)))

    def _pad(self, nonce: bytes, length: int) -> bytes:
        return hashlib.shake_256(b"pad" + self._name.encode() + nonce).digest(length)

    def _tag(self, body: bytes, context: bytes) -> bytes:
        return hmac.digest(self._name.encode(), len(context).to_bytes(8, "big") + context + body, "sha256")


def _xor(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other, strict=True))
