"""How an upload ends: completed, refused, given up or expired; once, and in the log by the transaction that ends it.

When it ends without its object, what the registry keeps of that object goes in the same transaction. The bytes go after
it, and are swept until they are gone.
"""

import logging
from collections.abc import Callable, Mapping
from typing import TypeAlias

import sqlalchemy as sa

from modelkeep_platform.core.callers import TenantCaller
from modelkeep_platform.core.errors import ConflictError, ModelkeepError, UnavailableError
from modelkeep_platform.core.events import Facts, Outcome
from modelkeep_platform.core.ids import ObjectId, TenantId
from modelkeep_platform.core.ports import Clock, Recorder, Sealer
from modelkeep_platform.core.refs import Kind
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.tables.uploads import uploads
from modelkeep_platform.storage.transactions import Row, System, TenantTransaction
from modelkeep_platform.uploads.artifacts import Artifacts
from modelkeep_platform.uploads.events import upload_event
from modelkeep_platform.uploads.rows import ABORTED, COMPLETE, ENDING, OPEN, Upload, end, load

Drop: TypeAlias = Callable[[TenantTransaction, Upload], None]
"""Drops what a registry keeps of the object that an upload was to become; that there is nothing is no error."""

_log = logging.getLogger(__name__)


class UploadEndings:
    """Ends uploads; it decides nothing, whoever calls it has.

    Args:
        database: where uploads are noted.
        artifacts: the sealed bytes of those that end without their object are deleted.
        drops: what each registry does when an upload of its kind ends without its object.
        sealer: destroys the keys of deleted objects.
        recorder: writes the second entry of each upload.
        clock: tells whose time is over.
    """

    def __init__(
        self,
        *,
        database: Database,
        artifacts: Artifacts,
        drops: Mapping[Kind, Drop],
        sealer: Sealer,
        recorder: Recorder,
        clock: Clock,
    ) -> None:
        self._database = database
        self._artifacts = artifacts
        self._drops = drops
        self._sealer = sealer
        self._recorder = recorder
        self._clock = clock

    def complete(self, tx: TenantTransaction, upload: Upload, *, by: TenantCaller, facts: Facts | None = None) -> None:
        """Mark the upload complete, in the transaction that makes its object visible.

        Raises:
            ConflictError: it ended meanwhile.
        """
        if not self._end(tx, upload, Outcome.DONE, by=by, facts=facts):
            raise ended()

    def refuse(self, tx: TenantTransaction, upload: Upload, *, by: TenantCaller, code: str) -> None:
        """End an upload whose bytes cannot become its object.

        Args:
            tx: an open transaction of the owner.
            upload: the upload; that it ended meanwhile is no error.
            by: who asked for its completion.
            code: the refusal's code: the log outlives the bytes, and holds nothing of them.
        """
        self._end(tx, upload, Outcome.FAILED, by=by, facts={"code": code})

    def abandon(self, tx: TenantTransaction, upload: Upload, *, by: TenantCaller) -> None:
        """Give the upload up; that another gave it up meanwhile is no error.

        Raises:
            ConflictError: it was completed meanwhile.
        """
        if not self._end(tx, upload, Outcome.ABANDONED, by=by, facts={"reason": "given_up"}) and _complete(tx, upload):
            raise ended()

    def forget(self, tx: TenantTransaction, object_id: ObjectId, *, by: TenantCaller) -> None:
        """Destroy an object's data key in the transaction that deletes it; give up its uploads under way."""
        self._sealer.destroy_key(tx, tx.owner, object_id)
        for row in tx.all(tx.select(uploads).where(uploads.c.object_id == object_id, uploads.c.state == OPEN)):
            self._end(tx, load(tx, row), Outcome.ABANDONED, by=by, facts={"reason": "deleted"})

    def expire(self) -> int:
        """End every upload whose time is over and delete what is left of those that ended; return how many."""
        over = sa.and_(uploads.c.state == OPEN, uploads.c.expires_at < self._clock.now_s())
        with self._database.platform(read_only=True) as tx:
            rows = tx.all(sa.select(uploads).where(sa.or_(over, uploads.c.state == ENDING)))
        return sum(self._expire(row) for row in rows)

    def _expire(self, row: Row) -> bool:
        # INVARIANT: one upload that cannot be ended does not keep the others.
        try:
            with self._database.tenant(TenantId(row["tenant_id"]), by=System(reason="expire an upload")) as tx:
                upload = load(tx, row)
                if row["state"] == OPEN and not self._end(tx, upload, Outcome.EXPIRED, by=None):
                    return False
            self.delete_bytes(upload)
        except ModelkeepError as exc:
            _log.warning("upload %s could not be cleared away (%s); it is tried again", row["id"], exc.error_code)
            return False
        return True

    def delete_bytes(self, upload: Upload) -> None:
        """Delete the bytes of an upload that ended without its object, and note that they are gone.

        Raises:
            UnavailableError: some could not be deleted; `expire` tries again.
        """
        self._artifacts.delete(upload.owner, upload.object_id, upload.version)
        with self._database.tenant(upload.owner, by=System(reason="note that an upload's bytes are gone")) as tx:
            where = (uploads.c.id == upload.id, uploads.c.state == ENDING)
            tx.change(tx.update(uploads).where(*where).values(state=ABORTED))

    def delete_bytes_later(self, upload: Upload) -> None:
        """Delete the bytes as `delete_bytes` does, now or, when that fails, with the next `expire`."""
        try:
            self.delete_bytes(upload)
        except UnavailableError:
            _log.warning("the bytes of upload %s could not be deleted; it is tried again", upload.id)

    def _end(
        self,
        tx: TenantTransaction,
        upload: Upload,
        outcome: Outcome,
        *,
        by: TenantCaller | None,
        facts: Facts | None = None,
    ) -> bool:
        # INVARIANT: bytes are deleted only after the row says that they never become visible; and whoever changed the
        # row, and nobody else, writes the second entry.
        if not end(tx, upload.id, COMPLETE if outcome is Outcome.DONE else ENDING):
            return False
        if outcome is not Outcome.DONE:
            self._drops[upload.kind](tx, upload)
        self._recorder.record(tx, upload_event(upload, outcome, by=by, facts=facts))
        return True


def _complete(tx: TenantTransaction, upload: Upload) -> bool:
    return tx.count(uploads, uploads.c.id == upload.id, uploads.c.state == COMPLETE) > 0


def ended() -> ConflictError:
    """Return the error of an upload that has ended."""
    return ConflictError("the upload has ended; begin a new one", code="upload_ended")
