"""What the operator's command does directly on the installation's own machine."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from modelkeep_platform.app import settings as settings_file
from modelkeep_platform.app.installation import open_database
from modelkeep_platform.app.platform import Platform
from modelkeep_platform.audit.checkpoint import verify
from modelkeep_platform.audit.entries import leaf_data
from modelkeep_platform.audit.merkle import leaf_hash, root_of
from modelkeep_platform.core.callers import OperatorCaller
from modelkeep_platform.core.errors import IntegrityError
from modelkeep_platform.core.ids import PrincipalId, RequestId, new_object_id
from modelkeep_platform.storage.pages import PageRequest
from modelkeep_platform.storage.tables.audit import audit_checkpoints, audit_entries
from modelkeep_platform.storage.transactions import PlatformTransaction
from modelkeep_platform.telemetry.system import SystemEntropy
from modelkeep_platform.tenants.service import TenantCreated

_LEAVES_AT_ONCE: Final = 5_000


def add_tenant(data: Path, *, slug: str, name: str) -> TenantCreated:
    """Add a tenant, recorded as done by the operator at the console."""
    platform = Platform(data=data.resolve(), settings=settings_file.load(data))
    try:
        platform.ground.epoch.refresh()
        return platform.rooms.tenants.create(_console(), slug, name)
    finally:
        platform.close()


def list_tenants(data: Path) -> list[dict[str, Any]]:
    """Return every tenant."""
    platform = Platform(data=data.resolve(), settings=settings_file.load(data))
    try:
        platform.ground.epoch.refresh()
        rows: list[dict[str, Any]] = []
        cursor = None
        while True:
            page = platform.rooms.tenants.list(_console(), PageRequest(limit=200, cursor=cursor))
            rows += msgspec.to_builtins(list(page.items))
            cursor = page.next_cursor
            if cursor is None:
                return rows
    finally:
        platform.close()


def tenant_limits(data: Path, *, slug: str, changes: Mapping[str, int | None]) -> dict[str, Any]:
    """Set `changes` of a tenant's limits, if there are any, as the operator at the console; return the tenant.

    Args:
        data: the data folder.
        slug: whose.
        changes: by the limit's name, a number, or None to take it back.
    """
    platform = Platform(data=data.resolve(), settings=settings_file.load(data))
    try:
        platform.ground.epoch.refresh()
        limits = platform.rooms.tenant_limits
        found = limits.change(_console(), slug, changes) if changes else limits.show(_console(), slug)
        shown: dict[str, Any] = msgspec.to_builtins(found)
        return shown
    finally:
        platform.close()


def verify_log(data: Path) -> tuple[int, str]:
    """Recompute the tree from the entries; return its size and the checkpoint it agrees with.

    Raises:
        IntegrityError: entries were deleted, edited, reordered or inserted.
    """
    settings = settings_file.load(data)
    platform = Platform(data=data.resolve(), settings=settings)
    try:
        public_key = platform.ground.signer.public_key()
    finally:
        platform.close()
    database = open_database(data.resolve())
    try:
        with database.platform(read_only=True) as tx:
            newest = tx.first(sa.select(audit_checkpoints).order_by(audit_checkpoints.c.size.desc()).limit(1))
            if newest is None:
                raise IntegrityError("the log has no checkpoint yet; start the server once", code="log_empty")
            checkpoint = verify(newest["note"], origin=settings.log_origin, public_key=public_key)
            root = root_of(_leaves(tx))
            size = tx.first(sa.select(sa.func.count(audit_entries.c.log_index).label("n")))
    finally:
        database.close()
    if size is None or size["n"] != checkpoint.size or root != checkpoint.root:
        raise _log_changed()
    return checkpoint.size, newest["note"]


def _leaves(tx: PlatformTransaction) -> Iterator[bytes]:
    """Yield the hash of every integrated entry in order, however many there are; raises where an index is missing."""
    index = 0
    while True:
        rows = tx.all(
            sa.select(audit_entries.c.log_index, audit_entries.c.salt, audit_entries.c.body)
            .where(audit_entries.c.log_index >= index)
            .order_by(audit_entries.c.log_index)
            .limit(_LEAVES_AT_ONCE)
        )
        for row in rows:
            if row["log_index"] != index:
                raise _log_changed()
            yield leaf_hash(leaf_data(row["salt"], row["body"]))
            index += 1
        if not rows:
            return


def _log_changed() -> IntegrityError:
    return IntegrityError(
        "the stored entries are not those that the newest checkpoint commits to: the log was changed",
        code="log_changed",
    )


def _console() -> OperatorCaller:
    return OperatorCaller(
        principal=PrincipalId("console"),
        name="console",
        token_id="",
        request_id=RequestId(new_object_id(SystemEntropy(), "req")),
    )
