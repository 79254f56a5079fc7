"""Rows of the registry, found and dropped within an open transaction. Only a version that is ready is visible."""

from typing import Final

import sqlalchemy as sa

from modelkeep_platform.core.errors import ConflictError
from modelkeep_platform.core.ids import ObjectId
from modelkeep_platform.storage.tables.models import model_versions, models
from modelkeep_platform.storage.transactions import Row, TenantTransaction
from modelkeep_platform.uploads.service import UploadService

PENDING: Final = "pending"
READY: Final = "ready"
FIRST: Final = 1
MAX_VERSION: Final = 999_999_999


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


def of_job(tx: TenantTransaction, job_id: str) -> int | None:
    """Return the version that a job registered, or None."""
    row = tx.first(tx.select(model_versions, model_versions.c.version).where(model_versions.c.job_id == job_id))
    return None if row is None else int(row["version"])


def require_model(tx: TenantTransaction, model_id: ObjectId) -> None:
    """Refuse to go on with a model that was deleted.

    Raises:
        ConflictError: ``deleted``.
    """
    if tx.first(tx.select(models, models.c.id).where(models.c.id == model_id)) is None:
        raise ConflictError("the model was deleted meanwhile", code="deleted")


def drop_pending(tx: TenantTransaction, artifacts: UploadService, model_id: ObjectId, version: int) -> None:
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
        artifacts.forget(tx, tx.owner, model_id)


def ready(tx: TenantTransaction, model_id: ObjectId, version: int) -> Row | None:
    """Return the row of a visible version, or None."""
    return tx.first(
        tx.select(model_versions).where(
            model_versions.c.model_id == model_id,
            model_versions.c.version == version,
            model_versions.c.state == READY,
        )
    )
