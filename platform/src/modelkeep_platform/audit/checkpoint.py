"""Checkpoints: C2SP tlog-checkpoint bodies signed as C2SP signed notes with Ed25519.

The body is three lines (origin, decimal size, base64 root); the note adds a blank line and one
signature line ``— name base64(key hash[:4] || signature)``. The key hash binds name and key, so that a
signature cannot be moved to another log. Extension lines are not taken, and signatures under other keys are passed
over: witnesses may add theirs.
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from modelkeep_platform.audit.merkle import HASH_BYTES
from modelkeep_platform.core.errors import IntegrityError
from modelkeep_platform.core.ports import Signer

_ED25519: Final = b"\x01"
_SIGNATURE_BYTES: Final = 64
_BODY_LINES: Final = 3
_MAX_SIZE: Final = (1 << 63) - 1
_MAX_NOTE_CHARS: Final = 64 * 1024


class CheckpointError(IntegrityError):
    """A checkpoint is malformed or its signature does not verify."""

    code = "checkpoint_invalid"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What a signed checkpoint commits to.

    Raises:
        CheckpointError: the origin is not one word, the size is out of range, or the root is no hash.
    """

    origin: str
    size: int
    root: bytes

    def __post_init__(self) -> None:
        # INVARIANT: an origin is one word, so that body and signature lines parse in one way only.
        if not self.origin.isprintable() or not self.origin or " " in self.origin or "+" in self.origin:
            raise CheckpointError("a log's origin is one word without `+`")
        if not 0 <= self.size <= _MAX_SIZE or len(self.root) != HASH_BYTES:
            raise CheckpointError("a checkpoint has a size of 63 bits and a root of 32 bytes")

    def body(self) -> bytes:
        """Return the text that is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n".encode()


def key_hash(name: str, public_key: bytes) -> bytes:
    """Return the first four bytes of SHA-256(name || newline || 0x01 || public key)."""
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + public_key).digest()[:4]


def sign(checkpoint: Checkpoint, signer: Signer) -> str:
    """Return the signed note; the key's name is the log's origin."""
    body = checkpoint.body()
    blob = base64.b64encode(key_hash(checkpoint.origin, signer.public_key()) + signer.sign(body)).decode()
    return f"{body.decode()}\n— {checkpoint.origin} {blob}\n"


def verify(note: str, *, origin: str, public_key: bytes) -> Checkpoint:
    """Return what `note` commits to, after its signature verified.

    Args:
        note: the signed note.
        origin: the log it must speak of; also the key's name.
        public_key: 32 raw bytes.

    Raises:
        CheckpointError: malformed, of another log, or not signed by this key.
    """
    if len(note) > _MAX_NOTE_CHARS:
        raise CheckpointError("the checkpoint is too long to be one")
    body, separator, signatures = note.partition("\n\n")
    lines = body.split("\n")
    if not separator or len(lines) != _BODY_LINES or lines[0] != origin:
        raise CheckpointError("the checkpoint is not one of this log")
    prefix = f"— {origin} "
    wanted = key_hash(origin, public_key)
    for line in signatures.split("\n"):
        if not line.startswith(prefix):
            continue
        raw = _decode(line.removeprefix(prefix))
        if raw[:4] != wanted or len(raw) != 4 + _SIGNATURE_BYTES:
            continue
        try:
            Ed25519PublicKey.from_public_bytes(public_key).verify(raw[4:], (body + "\n").encode())
        except (InvalidSignature, UnicodeEncodeError) as exc:
            raise CheckpointError("the checkpoint's signature does not verify") from exc
        return Checkpoint(origin=origin, size=_size(lines[1]), root=_root(lines[2]))
    raise CheckpointError("the checkpoint is not signed by this log's key")


def _size(text: str) -> int:
    decimal = text.isascii() and text.isdigit() and len(text) <= len(str(_MAX_SIZE))
    if not decimal or (text != "0" and text.startswith("0")):
        raise CheckpointError("the checkpoint's size is not a decimal number")
    return int(text)


def _root(text: str) -> bytes:
    root = _decode(text)
    if len(root) != HASH_BYTES:
        raise CheckpointError("the checkpoint's root has 32 bytes")
    return root


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise CheckpointError("the checkpoint holds broken base64") from exc
