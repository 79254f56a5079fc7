"""Checkpoints: C2SP tlog-checkpoint bodies in C2SP signed notes, verified with Ed25519.

Pure: text and a key in, verified values or an error out.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import Final

from modelkeep._core.merkle import HASH_BYTES
from modelkeep.errors import CheckpointError

_ED25519: Final = b"\x01"
_KEY_BYTES: Final = 32
_SIGNATURE_BYTES: Final = 64
_BODY_LINES: Final = 3
_MAX_NOTE: Final = 16 * 1024
_MAX_DIGITS: Final = 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What a signed checkpoint commits to."""

    origin: str
    size: int
    root: bytes


def verify(note: str, *, origin: str, public_key: bytes) -> Checkpoint:
    """Return what `note` commits to, after its signature verified.

    Args:
        note: the signed note.
        origin: the log it must speak of; also the key's name.
        public_key: 32 raw bytes of Ed25519.

    Raises:
        CheckpointError: malformed, of another log, or not signed by this key.
    """
    if len(note) > _MAX_NOTE:
        raise CheckpointError("the checkpoint is too long")
    try:
        note.encode()
    except UnicodeEncodeError as exc:  # from JSON, which can spell half a character
        raise CheckpointError("the checkpoint is not text") from exc
    if len(public_key) != _KEY_BYTES:
        raise CheckpointError("the log's key is not one of Ed25519")
    # 1. The body is origin, size and root, each in a line; a blank line ends it.
    body, separator, signatures = note.partition("\n\n")
    lines = body.split("\n")
    if not separator or len(lines) != _BODY_LINES or lines[0] != origin:
        raise CheckpointError("the checkpoint is not one of this log")
    # 2. One signature line is by this name and key; lines of others are ignored, as the format asks.
    prefix = f"— {origin} "
    wanted = hashlib.sha256(origin.encode() + b"\n" + _ED25519 + public_key).digest()[:4]
    for line in signatures.split("\n"):
        if not line.startswith(prefix):
            continue
        raw = unbase64(line.removeprefix(prefix))
        if len(raw) == len(wanted) + _SIGNATURE_BYTES and raw.startswith(wanted):
            _verify_signature(public_key, raw[len(wanted) :], (body + "\n").encode())
            return Checkpoint(origin=origin, size=_size(lines[1]), root=_root(lines[2]))
    raise CheckpointError("the checkpoint is not signed by this log's key")


def unbase64(text: str) -> bytes:
    """Return the bytes of strict base64.

    Raises:
        CheckpointError: it is not.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise CheckpointError("the log's answer holds broken base64") from exc


def _verify_signature(public_key: bytes, signature: bytes, message: bytes) -> None:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError) as exc:
        raise CheckpointError("the checkpoint's signature does not verify") from exc


def _size(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > _MAX_DIGITS or (text != "0" and text.startswith("0")):
        raise CheckpointError("the checkpoint's size is not a decimal number")
    return int(text)


def _root(text: str) -> bytes:
    root = unbase64(text)
    if len(root) != HASH_BYTES:
        raise CheckpointError("the checkpoint's root has 32 bytes")
    return root
