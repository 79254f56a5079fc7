"""The sealed format: chunked, committing, authenticated encryption of a byte string.

Suite 1 is C2SP chunked-encryption v1 with AEAD_AES_256_GCM, 16 KiB chunks. Suite 2 is the same construction
with its own label and 1 MiB chunks. Both::

    salt (24 random bytes)
    key (32) || base nonce (12) || commitment (32)
        = HKDF-Expand(SHA-512, prk = input key, info = label || 0x00 || salt || context)
    file = salt || commitment || chunk_0 || chunk_1 ...
    nonce of chunk k = base nonce XOR BE96(k), no associated data

Every chunk but the last holds exactly the chunk size; the last is strictly shorter, possibly empty, and is
the end mark: a file cut at a chunk border does not open. The commitment is compared first, in constant time;
the label is part of it, so the suite need not be told to `open_sealed`. Nothing is returned before all of it is
authentic; there is no reader of parts of a file (docs/adr/0030). docs/reference/sealed-format.md has
the byte layout and tests/vectors/sealed the vectors.
"""

import hmac
import os
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from modelkeep_platform.core.errors import IntegrityError
from modelkeep_platform.core.sealing import Suite

KEY_BYTES: Final = 32
SALT_BYTES: Final = 24
COMMITMENT_BYTES: Final = 32
HEADER_BYTES: Final = SALT_BYTES + COMMITMENT_BYTES
TAG_BYTES: Final = 16
_NONCE_BYTES: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parameters:
    label: bytes
    chunk_bytes: int
    max_chunks: int


_SUITES: Final = {
    Suite.SMALL: _Parameters(
        label=b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM", chunk_bytes=16 * 1024, max_chunks=2**38
    ),
    Suite.LARGE: _Parameters(
        label=b"modelkeep/sealed@v1+AEAD_AES_256_GCM+1MiB", chunk_bytes=1024 * 1024, max_chunks=2**32
    ),
}


class SealedError(IntegrityError):
    """The bytes are not what was sealed under this key and context; nothing of them was returned."""

    code = "sealed_invalid"


def seal(key: bytes, context: bytes, plaintext: bytes | memoryview, *, suite: Suite) -> bytes:
    """Seal `plaintext`, bound to `context`.

    Args:
        key: 32 random bytes.
        context: canonical bytes that say what this is and where it belongs; needed again to open.
        plaintext: any length, also empty.
        suite: which construction.

    Returns:
        ``len(plaintext) + 56 + 16 * chunks`` bytes.

    Raises:
        ValueError: the key is not one, or the plaintext is longer than the suite seals.
    """
    parameters = _SUITES[suite]
    view = memoryview(plaintext).cast("B")
    chunks = len(view) // parameters.chunk_bytes + 1
    if chunks > parameters.max_chunks:
        raise ValueError("the plaintext is too long for one sealed file")
    # Not the injected source: a salt that comes twice under one key and context breaks the format.
    salt = os.urandom(SALT_BYTES)
    derived = _derive(key, context, salt, parameters)
    out = bytearray(HEADER_BYTES + len(view) + TAG_BYTES * chunks)
    out[:SALT_BYTES] = salt
    out[SALT_BYTES:HEADER_BYTES] = derived.commitment
    target = memoryview(out)[HEADER_BYTES:]
    for index in range(chunks):
        chunk = view[index * parameters.chunk_bytes : (index + 1) * parameters.chunk_bytes]
        start = index * (parameters.chunk_bytes + TAG_BYTES)
        derived.cipher.encrypt_into(derived.nonce(index), chunk, None, target[start : start + len(chunk) + TAG_BYTES])
    return bytes(out)


def open_sealed(key: bytes, context: bytes, data: bytes | memoryview) -> bytes:
    """Return what was sealed under `key` and `context`.

    Raises:
        SealedError: another key or context, another suite than any known, or any change to the bytes.
    """
    view = memoryview(data).cast("B")
    parameters, derived = _identify(key, context, view)
    body = view[HEADER_BYTES:]
    full = parameters.chunk_bytes + TAG_BYTES
    chunks, last = divmod(len(body), full)
    # INVARIANT: the last chunk is strictly shorter than a full one and holds at least its tag.
    if last < TAG_BYTES or chunks >= parameters.max_chunks:
        raise SealedError("the sealed bytes are cut short")
    out = bytearray(chunks * parameters.chunk_bytes + last - TAG_BYTES)
    target = memoryview(out)
    for index in range(chunks + 1):
        chunk = body[index * full : (index + 1) * full]
        start = index * parameters.chunk_bytes
        try:
            derived.cipher.decrypt_into(
                derived.nonce(index), chunk, None, target[start : start + len(chunk) - TAG_BYTES]
            )
        except InvalidTag as exc:
            raise SealedError("the sealed bytes do not authenticate") from exc
    return bytes(out)


class _Derived:
    """The cipher and what else one salt and context give."""

    __slots__ = ("_base_nonce", "cipher", "commitment")

    def __init__(self, okm: bytes) -> None:
        self.cipher = AESGCM(okm[:KEY_BYTES])
        self._base_nonce = int.from_bytes(okm[KEY_BYTES : KEY_BYTES + _NONCE_BYTES], "big")
        self.commitment = okm[KEY_BYTES + _NONCE_BYTES :]

    def nonce(self, index: int) -> bytes:
        return (self._base_nonce ^ index).to_bytes(_NONCE_BYTES, "big")


def _derive(key: bytes, context: bytes, salt: bytes, parameters: _Parameters) -> _Derived:
    if len(key) != KEY_BYTES:
        raise ValueError("a sealing key has 32 bytes")
    info = parameters.label + b"\x00" + salt + context
    length = KEY_BYTES + _NONCE_BYTES + COMMITMENT_BYTES
    return _Derived(HKDFExpand(algorithm=SHA512(), length=length, info=info).derive(key))


def _identify(key: bytes, context: bytes, view: memoryview) -> tuple[_Parameters, _Derived]:
    if len(view) < HEADER_BYTES:
        raise SealedError("the sealed bytes are cut short")
    salt, commitment = bytes(view[:SALT_BYTES]), bytes(view[SALT_BYTES:HEADER_BYTES])
    for parameters in _SUITES.values():
        derived = _derive(key, context, salt, parameters)
        if hmac.compare_digest(derived.commitment, commitment):
            return parameters, derived
    raise SealedError("the sealed bytes are not of this key and context")
