"""Rows of uploads, read and changed within an open transaction. An open upload ends once, by one conditional UPDATE."""

from dataclasses import dataclass
from typing import Final

from modelkeep_platform.core.ids import ObjectId, TenantId
from modelkeep_platform.core.limits import MAX_PART_BYTES, MAX_PARTS
from modelkeep_platform.core.refs import Kind
from modelkeep_platform.core.sealing import Purpose
from modelkeep_platform.storage.tables.uploads import upload_parts, uploads
from modelkeep_platform.storage.transactions import Row, TenantTransaction

OPEN, COMPLETE, ABORTED = "open", "complete", "aborted"
ENDING: Final = "ending"
"""Over without its object, but its bytes may still be there; shown as `aborted`."""


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


def load(tx: TenantTransaction, row: Row) -> Upload:
    """Return the upload of `row` with the numbers of its parts that arrived."""
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
        state=ABORTED if row["state"] == ENDING else row["state"],
        expires_at=row["expires_at"],
        principal=row["principal"],
    )


def end(tx: TenantTransaction, upload_id: str, state: str) -> bool:
    """End an open upload; return False when it has ended already, however it did."""
    if not tx.change(tx.update(uploads).where(uploads.c.id == upload_id, uploads.c.state == OPEN).values(state=state)):
        return False
    tx.change(tx.delete(upload_parts).where(upload_parts.c.upload_id == upload_id))
    return True
