"""Rows of the registry, read and changed within an open transaction. Only a version that is ready is visible.

A version has a row from the transaction that takes its number until the one that deletes it: bytes of a number without
a row are nobody's, and never will be anybody's (`uploads.orphans`).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from modelkeep_platform.core.errors import ConflictError
from modelkeep_platform.core.ids import ObjectId, check_name, new_object_id
from modelkeep_platform.core.ports import Clock, Entropy, Sealer
from modelkeep_platform.storage.tables.models import model_versions, models
from modelkeep_platform.storage.transactions import Row, TenantTransaction

PENDING: Final = "pending"
READY: Final = "ready"
FIRST: Final = 1
MAX_VERSION: Final = 999_999_999


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocated:
    """A number that no other version has, and whether its model is new: then it has no key yet."""

    model_id: ObjectId
    version: int
    is_new_model: bool


def allocate(tx: TenantTransaction, name: str, description: str, *, clock: Clock, entropy: Entropy) -> Allocated:
    """Take the next number of the model `name`; a new name makes a new model.

    Raises:
        UnprocessableError: the name is not one.
    """
    row = tx.first(tx.select(models).where(models.c.name == name))
    is_new = row is None
    model_id = new_object_id(entropy, "mdl") if row is None else ObjectId(row["id"])
    if is_new:
        tx.insert(
            models,
            id=model_id,
            name=check_name(name, what="model"),
            description=description[:2000],
            next_version=FIRST,
            created_at=clock.now_s(),
        )
    where = models.c.id == model_id
    tx.change(tx.update(models).where(where).values(next_version=models.c.next_version + 1))
    row = tx.first(tx.select(models).where(where))
    if row is None:
        raise RuntimeError("a model vanished within a transaction")
    return Allocated(model_id=model_id, version=int(row["next_version"]) - 1, is_new_model=is_new)


def version_number(text: str) -> int | None:
    """Return the number that `text` writes, or None; what no column holds is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= len(str(MAX_VERSION)) else None


def newest(tx: TenantTransaction, model_id: str) -> int | None:
    """Return the newest visible version of a model, or None."""
    newest = tx.first(
        tx.select(model_versions, sa.func.max(model_versions.c.version).label("version")).where(
            model_versions.c.model_id == model_id, model_versions.c.state == READY
        )
    )
    return None if newest is None else newest["version"]


def add_pending(
    tx: TenantTransaction,
    new: Allocated,
    *,
    created_at: int,
    created_by: str,
    provenance: Mapping[str, Any],
    upload_id: str | None = None,
    job_id: str | None = None,
) -> None:
    """Add the row of a version that is under way, in the transaction that took its number.

    Args:
        tx: an open transaction of the owner.
        new: the version.
        created_at: seconds since the epoch.
        created_by: who has it made.
        provenance: where it comes from, without data.
        upload_id: the upload that brings its weights; one of this and `job_id`.
        job_id: the job that trains it.
    """
    tx.insert(
        model_versions,
        model_id=new.model_id,
        version=new.version,
        state=PENDING,
        # Its key must be committed before anything is sealed under it.
        graph_sealed=b"",
        graph_sha256="",
        weights_sha256="",
        weights_bytes=0,
        upload_id=upload_id,
        job_id=job_id,
        provenance=json.dumps(dict(provenance)),
        created_at=created_at,
        created_by=created_by,
    )


def change_pending(tx: TenantTransaction, model_id: ObjectId, version: int, **columns: str | bytes | int) -> None:
    """Set columns of a version that is under way; with ``state=READY`` it becomes visible.

    Raises:
        ConflictError: ``deleted``: its model was deleted meanwhile.
    """
    where = (
        model_versions.c.model_id == model_id,
        model_versions.c.version == version,
        model_versions.c.state == PENDING,
    )
    if not tx.change(tx.update(model_versions).where(*where).values(**columns)):
        raise ConflictError("the model was deleted meanwhile", code="deleted")


def drop_pending(tx: TenantTransaction, sealer: Sealer, model_id: ObjectId, version: int) -> None:
    """Delete a version that never became visible, and its model with its key if it had no other number."""
    of_model = model_versions.c.model_id == model_id
    tx.change(
        tx.delete(model_versions).where(
            of_model, model_versions.c.version == version, model_versions.c.state == PENDING
        )
    )
    if tx.first(tx.select(model_versions, model_versions.c.version).where(of_model)) is not None:
        return
    if tx.change(tx.delete(models).where(models.c.id == model_id, models.c.next_version == FIRST + 1)):
        sealer.destroy_key(tx, tx.owner, model_id)


def ready(tx: TenantTransaction, model_id: ObjectId, version: int) -> Row | None:
    """Return the row of a visible version, or None."""
    return tx.first(
        tx.select(model_versions).where(
            model_versions.c.model_id == model_id,
            model_versions.c.version == version,
            model_versions.c.state == READY,
        )
    )
