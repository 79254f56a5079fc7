"""Uploads: begun in the transaction that allocates the object, sent in parts, checked as a whole, then visible.

Parts may come in any order and again; the same bytes are accepted, other bytes for the same number are not. Only
the principal that began an upload may go on with it; to everybody else it looks as if it were not there.
"""

import hashlib
import hmac
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError as DuplicateError

from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import TenantCaller
from modelkeep_platform.core.decisions import Decision
from modelkeep_platform.core.errors import ConflictError, TooLargeError, UnavailableError, UnprocessableError
from modelkeep_platform.core.ids import ObjectId, TenantId, new_object_id
from modelkeep_platform.core.limits import (
    DEFAULT_QUOTA,
    MAX_PART_BYTES,
    MAX_PARTS,
    MAX_UPLOAD_BYTES,
    UPLOAD_EXPIRY_S,
    Quota,
)
from modelkeep_platform.core.ports import Authorizer, Clock, Entropy, Sealer, Transaction
from modelkeep_platform.core.refs import Kind, ResourceRef, missing
from modelkeep_platform.core.sealing import Purpose
from modelkeep_platform.storage.blobs import BlobStore
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.tables.uploads import upload_parts, uploads
from modelkeep_platform.storage.transactions import Row, System, TenantTransaction
from modelkeep_platform.uploads.artifacts import Artifacts, Manifest, PartDigest
from modelkeep_platform.uploads.usage import check_room

_SHA256: Final = re.compile(r"[0-9a-f]{64}\Z")
OPEN, COMPLETE, ABORTED = "open", "complete", "aborted"
_ENDING: Final = "ending"
"""Given up, but its bytes may still be there: `expire` goes on where a crash or a broken disk stopped."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """An upload and what of it arrived."""

    id: str
    owner: TenantId
    kind: Kind
    object_id: ObjectId
    version: int
    purpose: Purpose
    size_bytes: int
    sha256: str
    part_bytes: int
    parts: int
    received: tuple[int, ...]
    state: str
    expires_at: int
    principal: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PartReceipt:
    """One part is stored; `received` counts the parts there are."""

    number: int
    received: int


class UploadService:
    """Takes uploads.

    Args:
        database: where uploads and their parts are noted.
        blobs: where sealed parts lie.
        sealer: seals them.
        clock: expires uploads.
        entropy: names them.
        authorizer: decides `upload:write`.
        quota: how much one tenant may store, and how many uploads it may have open.
    """

    def __init__(
        self,
        *,
        database: Database,
        blobs: BlobStore,
        sealer: Sealer,
        clock: Clock,
        entropy: Entropy,
        authorizer: Authorizer,
        quota: Quota = DEFAULT_QUOTA,
    ) -> None:
        self._quota = quota
        self._database = database
        self._sealer = sealer
        self._clock = clock
        self._entropy = entropy
        self._authorizer = authorizer
        self.artifacts = Artifacts(blobs=blobs, sealer=sealer)

    def begin(
        self,
        tx: TenantTransaction,
        *,
        caller: TenantCaller,
        object_id: ObjectId,
        kind: Kind,
        version: int,
        purpose: Purpose,
        size_bytes: int,
        sha256: str,
        create_key: bool = True,
    ) -> Upload:
        """Begin an upload in the transaction that allocates its object.

        Args:
            tx: an open transaction of the owner.
            caller: who will send the parts.
            object_id: the object the bytes belong to.
            kind: what kind of object it is.
            version: the version the bytes are of.
            purpose: what the bytes are.
            size_bytes: the length of the whole, 1 byte to 32 GiB.
            sha256: the digest of the whole, in lower-case hex.
            create_key: whether the object is new and needs its data key.

        Raises:
            UnprocessableError: the size or digest is not one.
            TooLargeError: larger than an upload may be.
            ConflictError: the tenant has too many uploads open, or its storage is used up.
        """
        if size_bytes < 1 or not _SHA256.match(sha256):
            raise UnprocessableError(
                "an upload has at least one byte and a SHA-256 in lower-case hex", code="invalid_upload"
            )
        if size_bytes > MAX_UPLOAD_BYTES:
            raise TooLargeError(f"an upload has at most {MAX_UPLOAD_BYTES} bytes")
        open_now = tx.first(tx.select(uploads, sa.func.count().label("n")).where(uploads.c.state == OPEN))
        if open_now is not None and open_now["n"] >= self._quota.open_uploads:
            raise ConflictError(
                f"this tenant has {self._quota.open_uploads} uploads open; complete or delete some",
                code="too_many_uploads",
            )
        self.check_room(tx, size_bytes)
        if create_key:
            self._sealer.create_key(tx, tx.owner, object_id)
        now = self._clock.now_s()
        upload_id = new_object_id(self._entropy, "upl")
        tx.insert(
            uploads,
            id=upload_id,
            kind=kind,
            object_id=object_id,
            version=version,
            purpose=purpose,
            size_bytes=size_bytes,
            sha256=sha256,
            principal=caller.principal,
            state=OPEN,
            created_at=now,
            expires_at=now + UPLOAD_EXPIRY_S,
        )
        row = tx.first(tx.select(uploads).where(uploads.c.id == upload_id))
        if row is None:
            raise RuntimeError("the row just inserted is not there")
        return _upload(tx, row)

    def check_room(self, tx: TenantTransaction, wanted_bytes: int) -> None:
        """Return when the tenant may store `wanted_bytes` more; raises ConflictError (`storage_exhausted`)."""
        check_room(tx, wanted_bytes=wanted_bytes, limit_bytes=self._quota.storage_bytes)

    def status(self, caller: TenantCaller, upload_id: str) -> Upload:
        """Return the upload and which parts arrived.

        Raises:
            NotFoundError: there is none, or another principal began it.
        """
        return self._require(caller, upload_id)[0]

    def put_part(self, caller: TenantCaller, upload_id: str, number: int, data: bytes, sha256: bytes) -> PartReceipt:
        """Seal and store one part; the same part again is accepted.

        Args:
            caller: who began the upload.
            upload_id: which upload.
            number: counted from 0.
            data: `part_bytes` bytes; the last part holds the rest.
            sha256: the digest of `data`, raw.

        Raises:
            NotFoundError: there is no such upload for this caller.
            ConflictError: the upload has ended, or other bytes were sent for this number.
            UnprocessableError: the number, size or digest is wrong.
        """
        upload, decision = self._require(caller, upload_id)
        self._check_open(upload)
        if not 0 <= number < upload.parts:
            raise UnprocessableError(f"parts of this upload are numbered 0 to {upload.parts - 1}", code="invalid_part")
        expected = min(MAX_PART_BYTES, upload.size_bytes - number * MAX_PART_BYTES)
        if len(data) != expected:
            raise UnprocessableError(f"part {number} has {expected} bytes", code="invalid_part")
        digest = hashlib.sha256(data)
        if not hmac.compare_digest(digest.digest(), sha256):
            raise UnprocessableError(
                f"part {number} does not have the digest sent with it; send it again", code="digest_mismatch"
            )
        known = self._known_digest(decision, upload, number)
        if known is not None:
            if known != digest.hexdigest():
                raise _part_conflict(number)
            return PartReceipt(number=number, received=len(upload.received))
        # Rule 5: the sealed bytes are durable before the row says that the part is there.
        if not self.artifacts.add_part(upload.owner, upload.object_id, upload.version, upload.purpose, number, data):
            raise _part_conflict(number)
        return self._note_part(decision, upload, PartDigest(len(data), digest.hexdigest()), number)

    def abort(self, caller: TenantCaller, upload_id: str) -> None:
        """Give up an upload; its parts are deleted, its object never becomes visible. Once more is no error.

        Raises:
            NotFoundError: there is no such upload for this caller.
            ConflictError: it was completed.
            UnavailableError: it was given up, but not all its bytes could be deleted; `expire` tries again.
        """
        upload, decision = self._require(caller, upload_id)
        if upload.state != ABORTED:
            with self._database.tenant(upload.owner, by=decision) as tx:
                if not self._give_up(tx, upload.id):
                    raise _ended()
        self._clear(upload.owner, upload.id, upload.object_id, upload.version)

    def expire(self) -> int:
        """Give up every upload whose time is over and delete what is left of those given up; return how many."""
        over = sa.and_(uploads.c.state == OPEN, uploads.c.expires_at < self._clock.now_s())
        with self._database.platform(read_only=True) as tx:
            rows = tx.all(sa.select(uploads).where(sa.or_(over, uploads.c.state == _ENDING)))
        return sum(self._expire(row) for row in rows)

    def _expire(self, row: Row) -> bool:
        owner, upload_id = TenantId(row["tenant_id"]), row["id"]
        if row["state"] == OPEN:
            with self._database.tenant(owner, by=System(reason="expire an upload")) as tx:
                if not self._give_up(tx, upload_id):
                    return False
        try:
            self._clear(owner, upload_id, ObjectId(row["object_id"]), row["version"])
        except UnavailableError:
            _log.warning("the bytes of upload %s could not be deleted; it is tried again", upload_id)
            return False
        return True

    def check_complete(self, caller: TenantCaller, upload_id: str) -> Upload:
        """Check that every part is there and that together they have the declared digest; seal the manifest.

        Raises:
            NotFoundError: there is no such upload for this caller.
            ConflictError: parts are missing; `details["missing"]` names the first of them.
            UnprocessableError: the whole has another digest.
        """
        upload, _ = self._require(caller, upload_id)
        self._check_open(upload)
        absent = sorted(set(range(upload.parts)) - set(upload.received))
        if absent:
            raise ConflictError(
                f"{len(absent)} parts are missing; send them, then complete the upload",
                code="upload_incomplete",
                details={"missing": absent[:100]},
            )
        # The manifest names the bytes that were opened, whatever the rows say of them.
        whole, parts = hashlib.sha256(), []
        for number in range(upload.parts):
            part = self.artifacts.open_part(upload.owner, upload.object_id, upload.version, upload.purpose, number)
            whole.update(part)
            parts.append(PartDigest(len(part), hashlib.sha256(part).hexdigest()))
        if whole.hexdigest() != upload.sha256:
            raise UnprocessableError(
                "the whole does not have the digest declared; upload it again", code="digest_mismatch"
            )
        manifest = Manifest(upload.size_bytes, upload.sha256, parts)
        self.artifacts.put_manifest(upload.owner, upload.object_id, upload.version, upload.purpose, manifest)
        return upload

    def finish(self, tx: TenantTransaction, upload_id: str) -> None:
        """Mark the upload complete, in the transaction that makes its object visible.

        Raises:
            ConflictError: it ended meanwhile.
        """
        changed = tx.change(
            tx.update(uploads).where(uploads.c.id == upload_id, uploads.c.state == OPEN).values(state=COMPLETE)
        )
        if not changed:
            raise _ended()
        tx.change(tx.delete(upload_parts).where(upload_parts.c.upload_id == upload_id))

    def read(self, owner: TenantId, object_id: ObjectId, version: int, purpose: Purpose) -> Iterator[bytes]:
        """Yield an artifact's plaintext, part by part; each is authentic, and all were there when it ends."""
        return self.artifacts.read(owner, object_id, version, purpose)

    def write_artifact(
        self, owner: TenantId, object_id: ObjectId, version: int, purpose: Purpose, chunks: Iterable[bytes]
    ) -> Manifest:
        """Seal what the platform itself made (trained weights, checkpoints); the object's key must exist."""
        return self.artifacts.write(owner, object_id, version, purpose, chunks)

    def create_key(self, tx: Transaction, owner: TenantId, object_id: ObjectId) -> None:
        """Make the data key of an object whose artifacts the platform will write."""
        self._sealer.create_key(tx, owner, object_id)

    def forget(self, tx: TenantTransaction, owner: TenantId, object_id: ObjectId) -> None:
        """Destroy the object's data key in the transaction that deletes it; give up its uploads under way."""
        self._sealer.destroy_key(tx, owner, object_id)
        for row in tx.all(tx.select(uploads, uploads.c.id).where(uploads.c.object_id == object_id)):
            self._give_up(tx, row["id"])

    def delete(self, owner: TenantId, object_id: ObjectId, version: int | None = None) -> None:
        """Delete the sealed bytes, after the transaction that deleted the object, or one version of it."""
        self.artifacts.delete(owner, object_id, version)

    def _require(self, caller: TenantCaller, upload_id: str) -> tuple[Upload, Decision]:
        with self._database.tenant(caller.tenant, by=caller, read_only=True) as tx:
            row = tx.first(tx.select(uploads).where(uploads.c.id == upload_id, uploads.c.principal == caller.principal))
            upload = None if row is None else _upload(tx, row)
        ref = missing(caller.tenant, Kind.UPLOAD)
        if upload is not None:
            ref = ResourceRef(owner=caller.tenant, kind=Kind.UPLOAD, object_id=ObjectId(upload.id))
        decision = self._authorizer.require(caller, Action.UPLOAD_WRITE, ref)
        if upload is None:
            raise RuntimeError("a missing object was allowed")
        return upload, decision

    def _check_open(self, upload: Upload) -> None:
        if upload.state != OPEN or upload.expires_at < self._clock.now_s():
            raise _ended()

    def _known_digest(self, decision: Decision, upload: Upload, number: int) -> str | None:
        with self._database.tenant(upload.owner, by=decision, read_only=True) as tx:
            row = tx.first(
                tx.select(upload_parts).where(upload_parts.c.upload_id == upload.id, upload_parts.c.number == number)
            )
        return None if row is None else str(row["sha256"])

    def _note_part(self, decision: Decision, upload: Upload, part: PartDigest, number: int) -> PartReceipt:
        try:
            with self._database.tenant(upload.owner, by=decision) as tx:
                row = tx.first(tx.select(uploads, uploads.c.state).where(uploads.c.id == upload.id))
                state = None if row is None else row["state"]
                if state == OPEN:
                    tx.insert(
                        upload_parts, upload_id=upload.id, number=number, size_bytes=part.size_bytes, sha256=part.sha256
                    )
                count = tx.first(
                    tx.select(upload_parts, sa.func.count().label("n")).where(upload_parts.c.upload_id == upload.id)
                )
        except DuplicateError as exc:
            if self._known_digest(decision, upload, number) != part.sha256:
                raise _part_conflict(number) from exc
            return PartReceipt(number=number, received=len(upload.received))
        if state != OPEN:
            if state != COMPLETE:
                # Given up while the part was stored: whoever gave it up may have deleted its bytes before these came.
                self.artifacts.delete(upload.owner, upload.object_id, upload.version)
            raise _ended()
        return PartReceipt(number=number, received=0 if count is None else count["n"])

    def _give_up(self, tx: TenantTransaction, upload_id: str) -> bool:
        """Give an open upload up; return False when it was completed or given up meanwhile."""
        where = (uploads.c.id == upload_id, uploads.c.state == OPEN)
        # INVARIANT: the bytes of an upload are deleted only after this row says that it never becomes visible.
        if not tx.change(tx.update(uploads).where(*where).values(state=_ENDING)):
            return False
        tx.change(tx.delete(upload_parts).where(upload_parts.c.upload_id == upload_id))
        return True

    def _clear(self, owner: TenantId, upload_id: str, object_id: ObjectId, version: int) -> None:
        self.artifacts.delete(owner, object_id, version)
        with self._database.tenant(owner, by=System(reason="note that an upload's bytes are gone")) as tx:
            tx.change(tx.update(uploads).where(uploads.c.id == upload_id).values(state=ABORTED))


def _ended() -> ConflictError:
    return ConflictError("the upload has ended; begin a new one", code="upload_ended")


def _part_conflict(number: int) -> ConflictError:
    message = f"part {number} was sent before with other bytes; abort the upload and begin a new one"
    return ConflictError(message, code="part_conflict")


def _upload(tx: TenantTransaction, row: Row) -> Upload:
    received = tx.all(
        tx.select(upload_parts, upload_parts.c.number)
        .where(upload_parts.c.upload_id == row["id"])
        .order_by(upload_parts.c.number)
    )
    parts = -(-row["size_bytes"] // MAX_PART_BYTES)
    if parts > MAX_PARTS:
        raise RuntimeError("an upload has too many parts")
    return Upload(
        id=row["id"],
        owner=tx.owner,
        kind=Kind(row["kind"]),
        object_id=ObjectId(row["object_id"]),
        version=row["version"],
        purpose=Purpose(row["purpose"]),
        size_bytes=row["size_bytes"],
        sha256=row["sha256"],
        part_bytes=MAX_PART_BYTES,
        parts=parts,
        received=tuple(part["number"] for part in received),
        state=ABORTED if row["state"] == _ENDING else row["state"],
        expires_at=row["expires_at"],
        principal=row["principal"],
    )
