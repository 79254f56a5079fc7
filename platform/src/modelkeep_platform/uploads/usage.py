"""What a tenant's things occupy, as the rows say: the sum that its limit of storage is compared with.

Counted are uploads from their beginning, whole: what was promised to one is not given to another; datasets with their
declarations; the weights of models and their graphs; what jobs set aside for their checkpoints and their result, for a
day also those that failed or were cancelled, and what they need to know while they wait. Declarations, graphs and jobs
lie in the database, and a tenant could fill it with them. Sealing adds 0.01 %, which nobody counts.
"""

from typing import Any

import sqlalchemy as sa

from modelkeep_platform.core.errors import ConflictError
from modelkeep_platform.core.limits import MIB, TenantLimits
from modelkeep_platform.core.refs import Kind
from modelkeep_platform.storage.tables.datasets import datasets
from modelkeep_platform.storage.tables.jobs import jobs
from modelkeep_platform.storage.tables.models import model_versions
from modelkeep_platform.storage.tables.uploads import uploads
from modelkeep_platform.storage.transactions import TenantTransaction

_UNDER_WAY = ("open", "ending")
_READY = "ready"


def stored_bytes(tx: TenantTransaction, principal: str | None = None) -> dict[str, int]:
    """Return how many bytes the tenant of `tx` occupies, by kind of thing.

    Args:
        tx: an open transaction of the tenant.
        principal: who made what is counted; None for all.
    """
    weights = sa.case((model_versions.c.state == _READY, model_versions.c.weights_bytes), else_=0)
    graphs = sa.func.length(model_versions.c.graph_sealed)
    return {
        "models": _sum(tx, model_versions, weights + graphs, *_by(model_versions.c.created_by, principal)),
        "datasets": _datasets(tx, principal),
        "uploads": _sum(
            tx, uploads, uploads.c.size_bytes, uploads.c.state.in_(_UNDER_WAY), *_by(uploads.c.principal, principal)
        ),
        "jobs": _sum(tx, jobs, jobs.c.stored_bytes + sa.func.length(jobs.c.payload), *_by(jobs.c.principal, principal)),
    }


def check_room(tx: TenantTransaction, *, wanted_bytes: int, limits: TenantLimits, principal: str) -> None:
    """Return when `wanted_bytes` more fit the tenant's storage, and what of it `principal` may have made.

    Raises:
        ConflictError: they do not. Waiting does not help, deleting does: a state, and no question of how often.
    """
    for whose, maker, limit_bytes in (
        ("this account's", principal, limits.principal_storage_bytes),
        ("this tenant's", None, limits.storage_bytes),
    ):
        used = sum(stored_bytes(tx, maker).values())
        if used + wanted_bytes > limit_bytes:
            raise ConflictError(
                f"{whose} storage of {limit_bytes // MIB} MiB is used up: {used // MIB} MiB are taken; delete models "
                "or datasets, or ask the platform's operator for more",
                code="storage_exhausted",
                details={"limit_bytes": limit_bytes, "used_bytes": used, "wanted_bytes": wanted_bytes},
            )


def _by(column: sa.Column[str], principal: str | None) -> tuple[sa.ColumnElement[bool], ...]:
    return () if principal is None else (column == principal,)


def _datasets(tx: TenantTransaction, principal: str | None) -> int:
    columns = (datasets.c.id, datasets.c.state, sa.func.length(datasets.c.spec).label("n"))
    found = tx.all(tx.select(datasets, *columns).where(*_by(datasets.c.created_by, principal)))
    ready = {row["id"] for row in found if row["state"] == _READY}
    sizes = tx.select(uploads, uploads.c.object_id, uploads.c.size_bytes).where(
        uploads.c.kind == Kind.DATASET, uploads.c.state.not_in(_UNDER_WAY)
    )
    rows = sum(int(row["size_bytes"]) for row in tx.all(sizes) if row["object_id"] in ready)
    return rows + sum(int(row["n"]) for row in found)


def _sum(tx: TenantTransaction, table: sa.Table, what: sa.ColumnElement[Any], *where: sa.ColumnElement[bool]) -> int:
    row = tx.first(tx.select(table, sa.func.coalesce(sa.func.sum(what), 0).label("n")).where(*where))
    return 0 if row is None else int(row["n"])
