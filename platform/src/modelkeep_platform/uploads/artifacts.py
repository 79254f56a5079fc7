"""Sealed artifacts: parts of at most 8 MiB and a manifest, each bound to tenant, object, version and name.

The manifest says how many parts there are, their sizes and digests, and the digest of the whole. It is sealed
like the parts: whoever can write blobs or database cannot drop, reorder, repeat or exchange a part unseen.
Plaintext exists in memory only, one part at a time.
"""

import hashlib
import hmac
import logging
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from modelkeep_platform.core.errors import IntegrityError, UnavailableError
from modelkeep_platform.core.ids import ObjectId, TenantId
from modelkeep_platform.core.limits import MAX_PART_BYTES
from modelkeep_platform.core.ports import Sealer
from modelkeep_platform.core.sealing import Purpose, Suite
from modelkeep_platform.storage.blobs import BlobStore

_MANIFEST: Final = "manifest"

_log = logging.getLogger(__name__)


class PartDigest(msgspec.Struct, frozen=True):
    """Size in bytes and SHA-256 (hex) of one part."""

    size_bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """What an artifact consists of."""

    size_bytes: int
    sha256: str
    parts: list[PartDigest]


class Artifacts:
    """Writes and reads artifacts; the object's data key must exist.

    Args:
        blobs: where sealed bytes lie.
        sealer: seals and opens them.
    """

    def __init__(self, *, blobs: BlobStore, sealer: Sealer) -> None:
        self._blobs = blobs
        self._sealer = sealer

    def put_part(
        self, owner: TenantId, object_id: ObjectId, version: int, purpose: Purpose, number: int, data: bytes
    ) -> None:
        """Seal one part and store it durably, replacing what was there."""
        sealed = self._seal_part(owner, object_id, version, purpose, number, data)
        self._blobs.put(_key(owner, object_id, version, purpose, _part(number)), sealed)

    def add_part(
        self, owner: TenantId, object_id: ObjectId, version: int, purpose: Purpose, number: int, data: bytes
    ) -> bool:
        """Seal one part and store it durably, unless the part has other bytes already.

        Returns:
            Whether the part holds `data` now. What does not authenticate (a torn write) holds nothing and is replaced.
        """
        sealed = self._seal_part(owner, object_id, version, purpose, number, data)
        key = _key(owner, object_id, version, purpose, _part(number))
        # INVARIANT: an authentic part is never replaced, however late a call arrives: a complete artifact stays whole.
        if self._blobs.create(key, sealed):
            return True
        try:
            return hmac.compare_digest(self.open_part(owner, object_id, version, purpose, number), data)
        except IntegrityError:
            self._blobs.put(key, sealed)
            return True

    def open_part(self, owner: TenantId, object_id: ObjectId, version: int, purpose: Purpose, number: int) -> bytes:
        """Return one part's plaintext; raises IntegrityError."""
        return self._sealer.open(
            owner,
            object_id,
            self._blobs.get(_key(owner, object_id, version, purpose, _part(number))),
            purpose=purpose,
            version=version,
            name=_part(number),
            suite=Suite.LARGE,
        )

    def put_manifest(
        self, owner: TenantId, object_id: ObjectId, version: int, purpose: Purpose, manifest: Manifest
    ) -> None:
        """Seal the manifest and store it durably; the artifact is readable from then on."""
        sealed = self._sealer.seal(
            owner,
            object_id,
            msgspec.json.encode(manifest),
            purpose=Purpose.MANIFEST,
            version=version,
            name=f"{purpose}/{_MANIFEST}",
            suite=Suite.SMALL,
        )
        self._blobs.put(_key(owner, object_id, version, purpose, _MANIFEST), sealed)

    def manifest(self, owner: TenantId, object_id: ObjectId, version: int, purpose: Purpose) -> Manifest:
        """Return the manifest; raises IntegrityError."""
        opened = self._sealer.open(
            owner,
            object_id,
            self._blobs.get(_key(owner, object_id, version, purpose, _MANIFEST)),
            purpose=Purpose.MANIFEST,
            version=version,
            name=f"{purpose}/{_MANIFEST}",
            suite=Suite.SMALL,
        )
        return msgspec.json.decode(opened, type=Manifest)

    def read(self, owner: TenantId, object_id: ObjectId, version: int, purpose: Purpose) -> Iterator[bytes]:
        """Yield the plaintext, part by part; each is authentic when it is yielded.

        Raises:
            IntegrityError: a part or the manifest is missing, changed or not of this place.
        """
        manifest = self.manifest(owner, object_id, version, purpose)
        for number, expected in enumerate(manifest.parts):
            part = self.open_part(owner, object_id, version, purpose, number)
            if not hmac.compare_digest(hashlib.sha256(part).hexdigest(), expected.sha256):
                raise IntegrityError("a stored part is not the one its manifest names", code="part_mismatch")
            yield part

    def write(
        self, owner: TenantId, object_id: ObjectId, version: int, purpose: Purpose, chunks: Iterable[bytes]
    ) -> Manifest:
        """Seal a stream as an artifact, in parts of 8 MiB; return its manifest."""
        parts: list[PartDigest] = []
        whole, size = hashlib.sha256(), 0
        for part in _regrouped(chunks):
            self.put_part(owner, object_id, version, purpose, len(parts), part)
            parts.append(PartDigest(len(part), hashlib.sha256(part).hexdigest()))
            whole.update(part)
            size += len(part)
        manifest = Manifest(size, whole.hexdigest(), parts)
        self.put_manifest(owner, object_id, version, purpose, manifest)
        return manifest

    def _seal_part(
        self, owner: TenantId, object_id: ObjectId, version: int, purpose: Purpose, number: int, data: bytes
    ) -> bytes:
        return self._sealer.seal(
            owner, object_id, data, purpose=purpose, version=version, name=_part(number), suite=Suite.LARGE
        )

    def delete(self, owner: TenantId, object_id: ObjectId, version: int | None = None) -> None:
        """Delete the blobs of an object, or of one version of it."""
        prefix = f"{owner}/{object_id}" if version is None else f"{owner}/{object_id}/{version}"
        self._blobs.delete_prefix(prefix)

    def discard(self, owner: TenantId, object_id: ObjectId, version: int | None = None) -> None:
        """Delete as `delete` does what no row names any more; what a broken store keeps is swept later."""
        try:
            self.delete(owner, object_id, version)
        except UnavailableError:
            _log.warning("the bytes of %s could not be deleted; it is tried again", object_id)


def part_key(owner: TenantId, object_id: ObjectId, version: int, purpose: Purpose, number: int) -> str:
    """Return where a part lies, for whoever copies blobs without opening them."""
    return _key(owner, object_id, version, purpose, _part(number))


def keys_of(owner: TenantId, object_id: ObjectId, version: int, purpose: Purpose, size_bytes: int) -> Iterator[str]:
    """Yield where the parts and the manifest lie that a whole artifact of `size_bytes` consists of."""
    for number in range(-(-size_bytes // MAX_PART_BYTES)):
        yield part_key(owner, object_id, version, purpose, number)
    yield _key(owner, object_id, version, purpose, _MANIFEST)


def _part(number: int) -> str:
    return f"part-{number}"


def _key(owner: TenantId, object_id: ObjectId, version: int, purpose: Purpose, name: str) -> str:
    return f"{owner}/{object_id}/{version}/{purpose}/{name}"


def _regrouped(chunks: Iterable[bytes]) -> Iterator[bytes]:
    pending = bytearray()
    for chunk in chunks:
        pending += chunk
        while len(pending) >= MAX_PART_BYTES:
            yield bytes(pending[:MAX_PART_BYTES])
            del pending[:MAX_PART_BYTES]
    if pending:
        yield bytes(pending)
