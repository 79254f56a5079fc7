"""Restore, with training frozen.

A restored ledger may be older than what was really spent. So a restore begins a new ledger epoch, freezes every
budget, ends every job, and keeps what was reserved as spent; `comparing` lets training go on, or declares the budgets
exhausted.
"""

import base64
import json
import shutil
import sqlite3
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from modelkeep_platform.app import settings as settings_file
from modelkeep_platform.app.backup.files import (
    DATABASE,
    FORMAT,
    MANIFEST,
    RESTORED,
    copy_file,
    digest,
    fsync_folders,
    write,
)
from modelkeep_platform.app.ground import Ground
from modelkeep_platform.app.installation import open_database
from modelkeep_platform.core.errors import ConflictError, IntegrityError
from modelkeep_platform.core.events import Event, Facts, Outcome
from modelkeep_platform.core.ids import PLATFORM
from modelkeep_platform.core.refs import PLATFORM_REF
from modelkeep_platform.jobs.queue import ACTIVE, JobState
from modelkeep_platform.keys.context import kek_context
from modelkeep_platform.keys.roots.file import FileRootKey
from modelkeep_platform.keys.sealed import SealedError
from modelkeep_platform.privacy.epochs import LedgerEpoch, begin_restored_epoch
from modelkeep_platform.storage import migrate as migrations
from modelkeep_platform.storage.files import fsync
from modelkeep_platform.storage.tables.jobs import jobs
from modelkeep_platform.storage.tables.keys import wrapped_keks
from modelkeep_platform.storage.tables.processes import server_processes
from modelkeep_platform.storage.transactions import PlatformTransaction


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What a restore brought back, and the ledger epoch it began."""

    log_size: int
    frozen_budgets: int
    ended_jobs: int
    epoch: LedgerEpoch


def restore(backed_up: Path, *, keys: Path, root_key: Path, data: Path) -> Restored:
    """Make an installation from a backup, in a new ledger epoch, with every budget frozen and every job ended.

    Backup, keys and root key are checked against one another first. The installation is made beside `data` and
    renamed last: a restore that fails, or whose machine stops, leaves nothing in `data`.

    Args:
        backed_up: the backup's folder.
        keys: the file with its wrapped keys.
        root_key: the root key file, outside `data`.
        data: the data folder to make; an empty one may be there.

    Raises:
        ConflictError: something is in `data` already, or the backup is of another version.
        IntegrityError: the backup was changed or is not whole, or keys and root key do not belong to it.
        RootKeyError: the root key file is missing, open to others, or damaged.
    """
    backed_up, data, root_key = backed_up.resolve(), data.resolve(), root_key.resolve()
    if (data / settings_file.FILE).exists():
        raise ConflictError("there is an installation in this folder already", code="already_initialised")
    if data.exists() and (not data.is_dir() or any(data.iterdir())):
        raise ConflictError("restore to a new or an empty folder; this one holds something", code="folder_not_empty")
    manifest = _manifest(backed_up)
    wrapped = _wrapped(keys)
    _match(backed_up / DATABASE, wrapped, FileRootKey.load(root_key, data=data))
    data.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    half = Path(tempfile.mkdtemp(prefix=f".{data.name}.restoring-", dir=data.parent))
    try:
        made = _fill(half, backed_up, manifest, wrapped, root_key)
        half.replace(data)
    except BaseException:
        shutil.rmtree(half, ignore_errors=True)
        raise
    fsync(data.parent)
    return made


def _fill(
    half: Path, backed_up: Path, manifest: dict[str, Any], wrapped: list[dict[str, Any]], root_key: Path
) -> Restored:
    for name in manifest["files"]:
        if name != settings_file.FILE:
            copy_file(backed_up / name, half / name)
    (half / "blobs").mkdir(mode=0o700, exist_ok=True)
    settings = replace(settings_file.load_file(backed_up), root_key=str(root_key))
    _put_back_keys(half, wrapped)
    write(half / RESTORED, json.dumps(manifest["log"]).encode())
    settings_file.write(half, settings)
    ground = Ground(data=half, settings=settings)
    try:
        made = _begin(ground, log_size=manifest["log"]["size"])
    finally:
        ground.close()
    fsync(half / settings_file.FILE)
    fsync_folders(half)
    return made


def _put_back_keys(data: Path, keys: list[dict[str, Any]]) -> None:
    database = open_database(data)
    try:
        with database.platform() as tx:
            for row in keys:
                tx.execute(sa.insert(wrapped_keks).values(**row))
            tx.execute(sa.delete(server_processes))
    finally:
        database.close()


def _begin(ground: Ground, *, log_size: int) -> Restored:
    """Begin a ledger epoch, with every budget frozen and every job ended, and record it: in one transaction."""
    with ground.database.platform() as tx:
        epoch, frozen = begin_restored_epoch(tx, clock=ground.clock, entropy=ground.entropy)
        ended = _end_jobs(tx, now_s=ground.clock.now_s())
        facts: Facts = {"log_size": log_size, "frozen_budgets": frozen, "ended_jobs": ended, **epoch.facts()}
        event = Event(tenant=PLATFORM, action="platform:restore", outcome=Outcome.DONE, ref=PLATFORM_REF, facts=facts)
        ground.log.record(tx, event)
        tx.bump_epoch()
    return Restored(log_size=log_size, frozen_budgets=frozen, ended_jobs=ended, epoch=epoch)


def _end_jobs(tx: PlatformTransaction, *, now_s: int) -> int:
    # What they reserved stays reserved: the platform that was lost may have run them.
    ended = sa.update(jobs).where(jobs.c.state.in_(ACTIVE))
    return tx.execute(
        ended.values(
            state=JobState.FAILED,
            holder=None,
            lease_until=None,
            fence=jobs.c.fence + 1,
            finished_at=now_s,  # a day later what they had stored is given back
            payload=b"",
            error_code="interrupted",
            error_message="the platform was restored from a backup; what the job reserved counts as spent",
        )
    ).rowcount


def _manifest(backed_up: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((backed_up / MANIFEST).read_bytes())
        files: dict[str, str] = manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise IntegrityError("this folder holds no whole backup", code="backup_damaged") from exc
    if manifest.get("format") != FORMAT or manifest.get("revision") != migrations.newest():
        raise ConflictError(
            "the backup is of another version; restore it with that version, then migrate", code="backup_version"
        )
    for name, expected in files.items():
        path = (backed_up / name).resolve()
        if backed_up not in path.parents or not path.is_file() or digest(path) != expected:
            raise IntegrityError(f"`{name}` is not as it was backed up; use another copy", code="backup_damaged")
    return manifest


def _wrapped(keys: Path) -> list[dict[str, Any]]:
    try:
        rows = [
            {**row, "wrapped": base64.b64decode(row["wrapped"], validate=True)} for row in json.loads(keys.read_bytes())
        ]
        names = {column.name for column in wrapped_keks.columns}
        if not rows or any(set(row) != names for row in rows):
            raise ValueError("other columns")
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise IntegrityError("this is no file of wrapped keys; use another copy", code="keys_damaged") from exc
    return rows


def _match(database: Path, wrapped: list[dict[str, Any]], root: FileRootKey) -> None:
    """Refuse keys of another root key, damaged keys, and keys that are not those of this backup."""
    for row in wrapped:
        if row["root_id"] != root.id:
            raise IntegrityError("the keys were wrapped by another root key; use that one", code="root_key_other")
        try:
            root.unwrap(row["wrapped"], kek_context(row["tenant_id"], version=row["version"], root_id=row["root_id"]))
        except SealedError as exc:
            raise IntegrityError(
                "a wrapped key was changed; use another copy of the file", code="keys_damaged"
            ) from exc
    connection = sqlite3.connect(f"{database.as_uri()}?mode=ro&immutable=1", uri=True)
    try:
        wanted = set(connection.execute("SELECT DISTINCT tenant_id, kek_version FROM wrapped_deks"))
    finally:
        connection.close()
    if not wanted <= {(row["tenant_id"], row["version"]) for row in wrapped}:
        raise IntegrityError("these are the keys of another backup: some of this one's are missing", code="keys_other")
