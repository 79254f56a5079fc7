"""Uploads: begun in the transaction that allocates the object, sent in parts, checked as a whole, then visible.

Parts may come in any order and again; the same bytes are accepted, other bytes for the same number are not. Only
the principal that began an upload may go on with it; to everybody else it looks as if it were not there.
"""

import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import Final

from sqlalchemy.exc import IntegrityError as DuplicateError

from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import TenantCaller
from modelkeep_platform.core.decisions import Decision
from modelkeep_platform.core.errors import ConflictError, TooLargeError, UnprocessableError
from modelkeep_platform.core.events import Facts, Outcome
from modelkeep_platform.core.ids import ObjectId, new_object_id
from modelkeep_platform.core.limits import MAX_UPLOAD_BYTES, UPLOAD_EXPIRY_S
from modelkeep_platform.core.ports import Authorizer, Clock, Entropy, LimitSource, Recorder, Sealer
from modelkeep_platform.core.refs import Kind, ResourceRef, missing
from modelkeep_platform.core.sealing import Purpose
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.tables.uploads import upload_parts, uploads
from modelkeep_platform.storage.transactions import TenantTransaction
from modelkeep_platform.uploads.artifacts import Artifacts, Manifest, PartDigest
from modelkeep_platform.uploads.endings import UploadEndings, ended
from modelkeep_platform.uploads.events import upload_event
from modelkeep_platform.uploads.rows import ABORTED, COMPLETE, OPEN, Upload, load
from modelkeep_platform.uploads.usage import check_room

_SHA256: Final = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class PartReceipt:
    """One part is stored; `received` counts the parts there are."""

    number: int
    received: int


class UploadService:
    """Takes uploads.

    Args:
        database: where uploads and their parts are noted.
        artifacts: where sealed parts lie.
        endings: ends uploads.
        sealer: makes the keys of new objects.
        recorder: writes that an upload began.
        clock: expires uploads.
        entropy: names them.
        authorizer: decides `upload:write`.
        limits: says how much a tenant may store, and how many uploads it may have open.
    """

    def __init__(
        self,
        *,
        database: Database,
        artifacts: Artifacts,
        endings: UploadEndings,
        sealer: Sealer,
        recorder: Recorder,
        clock: Clock,
        entropy: Entropy,
        authorizer: Authorizer,
        limits: LimitSource,
    ) -> None:
        self._limits = limits
        self._database = database
        self._artifacts = artifacts
        self._endings = endings
        self._sealer = sealer
        self._recorder = recorder
        self._clock = clock
        self._entropy = entropy
        self._authorizer = authorizer

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
        facts: Facts | None = None,
    ) -> Upload:
        """Begin an upload, and say so in the log, in the transaction that allocates its object.

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
            facts: what the log is to say of the object.

        Raises:
            UnprocessableError: the size or digest is not one.
            TooLargeError: larger than an upload may be.
            ConflictError: the tenant or the caller has too many uploads open, or the tenant's storage is used up.
        """
        if size_bytes < 1 or not _SHA256.match(sha256):
            raise UnprocessableError(
                "an upload has at least one byte and a SHA-256 in lower-case hex", code="invalid_upload"
            )
        if size_bytes > MAX_UPLOAD_BYTES:
            raise TooLargeError(f"an upload has at most {MAX_UPLOAD_BYTES} bytes")
        limits = self._limits.of(tx.owner)
        own = tx.count(uploads, (uploads.c.state == OPEN) & (uploads.c.principal == caller.principal))
        for who, open_now, most in (
            ("this account", own, limits.principal_open_uploads),
            ("this tenant", self.open_uploads(tx), limits.open_uploads),
        ):
            if open_now >= most:
                raise ConflictError(
                    f"{who} may have {most} uploads open; complete or delete some, or ask the platform's "
                    "operator for more",
                    code="too_many_uploads",
                )
        self.check_room(tx, size_bytes, principal=caller.principal)
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
        upload = load(tx, row)
        self._recorder.record(tx, upload_event(upload, Outcome.INTENT, by=caller, facts=facts))
        return upload

    def check_room(self, tx: TenantTransaction, wanted_bytes: int, *, principal: str) -> None:
        """Return when both may store `wanted_bytes` more; raises ConflictError (`storage_exhausted`)."""
        check_room(tx, wanted_bytes=wanted_bytes, limits=self._limits.of(tx.owner), principal=principal)

    def open_uploads(self, tx: TenantTransaction) -> int:
        """Return how many uploads the tenant has begun and not ended."""
        return tx.count(uploads, uploads.c.state == OPEN)

    def status(self, caller: TenantCaller, upload_id: str) -> Upload:
        """Return the upload and which parts arrived.

        Raises:
            NotFoundError: there is none, or another principal began it.
        """
        return self._require(caller, upload_id)[0]

    def require_open(self, caller: TenantCaller, upload_id: str) -> Upload:
        """Return an upload that may go on; raises as `status` does, and ConflictError (`upload_ended`)."""
        upload, _ = self._require(caller, upload_id)
        self._check_open(upload)
        return upload

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
        expected = min(upload.part_bytes, upload.size_bytes - number * upload.part_bytes)
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
        if not self._artifacts.add_part(upload.owner, upload.object_id, upload.version, upload.purpose, number, data):
            raise _part_conflict(number)
        return self._note_part(decision, upload, PartDigest(len(data), digest.hexdigest()), number)

    def abort(self, caller: TenantCaller, upload_id: str) -> None:
        """Give up an upload; its parts are deleted, its object never becomes visible. Once more is no error.

        Raises:
            NotFoundError: there is no such upload for this caller.
            ConflictError: it was completed.
            UnavailableError: it was given up, but not all its bytes could be deleted; they are later.
        """
        upload, decision = self._require(caller, upload_id)
        if upload.state != ABORTED:
            with self._database.tenant(upload.owner, by=decision) as tx:
                self._endings.abandon(tx, upload, by=caller)
        self._endings.delete_bytes(upload)

    def check_complete(self, caller: TenantCaller, upload_id: str) -> Upload:
        """Check that every part is there and that together they have the declared digest; seal the manifest.

        Raises:
            NotFoundError: there is no such upload for this caller.
            ConflictError: parts are missing; `details["missing"]` names the first of them.
            UnprocessableError: the whole has another digest.
        """
        upload = self.require_open(caller, upload_id)
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
            part = self._artifacts.open_part(upload.owner, upload.object_id, upload.version, upload.purpose, number)
            whole.update(part)
            parts.append(PartDigest(len(part), hashlib.sha256(part).hexdigest()))
        if whole.hexdigest() != upload.sha256:
            raise UnprocessableError(
                "the whole does not have the digest declared; upload it again", code="digest_mismatch"
            )
        manifest = Manifest(upload.size_bytes, upload.sha256, parts)
        self._artifacts.put_manifest(upload.owner, upload.object_id, upload.version, upload.purpose, manifest)
        return upload

    def _require(self, caller: TenantCaller, upload_id: str) -> tuple[Upload, Decision]:
        with self._database.tenant(caller.tenant, by=caller, read_only=True) as tx:
            row = tx.first(tx.select(uploads).where(uploads.c.id == upload_id, uploads.c.principal == caller.principal))
            upload = None if row is None else load(tx, row)
        ref = missing(caller.tenant, Kind.UPLOAD)
        if upload is not None:
            ref = ResourceRef(owner=caller.tenant, kind=Kind.UPLOAD, object_id=ObjectId(upload.id))
        decision = self._authorizer.require(caller, Action.UPLOAD_WRITE, ref)
        if upload is None:
            raise RuntimeError("a missing object was allowed")
        return upload, decision

    def _check_open(self, upload: Upload) -> None:
        if upload.state != OPEN or upload.expires_at < self._clock.now_s():
            raise ended()

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
                received = tx.count(upload_parts, upload_parts.c.upload_id == upload.id)
        except DuplicateError as exc:
            if self._known_digest(decision, upload, number) != part.sha256:
                raise _part_conflict(number) from exc
            return PartReceipt(number=number, received=len(upload.received))
        if state != OPEN:
            if state != COMPLETE:
                # Given up while the part was stored: whoever gave it up may have deleted its bytes before these came.
                self._artifacts.discard(upload.owner, upload.object_id, upload.version)
            raise ended()
        return PartReceipt(number=number, received=received)


def _part_conflict(number: int) -> ConflictError:
    message = f"part {number} was sent before with other bytes; abort the upload and begin a new one"
    return ConflictError(message, code="part_conflict")
