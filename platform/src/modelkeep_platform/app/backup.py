"""Backup while serving, and restore with training frozen.

A backup is a folder: the database as it was at one moment, without the wrapped key-encryption keys; every sealed blob;
the settings; and `backup.json`, which names each file with its digest and the log's size and root at that moment. The
wrapped keys go to a file of their own: whoever holds the backup and the root key, but not that file, opens nothing.

A restored ledger may be older than what was really spent. So restoring freezes every budget, ends every job, and keeps
what was reserved as spent; `compare` lets training go on, or declares the budgets exhausted.
"""

import base64
import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from modelkeep_platform.app import settings as settings_file
from modelkeep_platform.app.installation import open_database
from modelkeep_platform.app.platform import Platform
from modelkeep_platform.app.settings import Settings
from modelkeep_platform.audit.checkpoint import Checkpoint, verify
from modelkeep_platform.audit.tree import Nodes, tree_root
from modelkeep_platform.core.errors import ConflictError, IntegrityError
from modelkeep_platform.core.events import Event, Outcome
from modelkeep_platform.core.ids import PLATFORM
from modelkeep_platform.core.refs import PLATFORM_REF
from modelkeep_platform.jobs.queue import ACTIVE, JobState
from modelkeep_platform.keys.context import kek_context
from modelkeep_platform.keys.roots.file import FileRootKey
from modelkeep_platform.keys.sealed import SealedError
from modelkeep_platform.privacy.ledger import FROZEN_EXHAUSTED, FROZEN_RESTORED
from modelkeep_platform.storage import migrate as migrations
from modelkeep_platform.storage.files import fsync
from modelkeep_platform.storage.tables.audit import audit_checkpoints
from modelkeep_platform.storage.tables.jobs import jobs
from modelkeep_platform.storage.tables.keys import wrapped_keks
from modelkeep_platform.storage.tables.privacy import privacy_budgets
from modelkeep_platform.storage.tables.processes import server_processes
from modelkeep_platform.telemetry.system import SystemClock

_FORMAT: Final = 1
_MANIFEST: Final = "backup.json"
_DATABASE: Final = "platform.db"
_RESTORED: Final = "restored.json"
_BLOCK: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class BackedUp:
    """What a backup holds."""

    files: int
    size_bytes: int
    log_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What a restore brought back."""

    log_size: int
    frozen_budgets: int
    ended_jobs: int


def backup(data: Path, *, out: Path, keys: Path) -> BackedUp:
    """Write a backup of the installation in `data`; the server may go on serving.

    Args:
        data: the data folder.
        out: a folder that is not there yet.
        keys: a file that is not there yet, outside `out`: the wrapped key-encryption keys.

    Raises:
        ConflictError: something is there already, or `keys` lies in `out`.
        IntegrityError: a blob that the database names is missing.
    """
    data, out, keys = data.resolve(), out.resolve(), keys.resolve()
    if out.exists() or keys.exists():
        raise ConflictError("a backup is written to a new folder and a new file; choose others", code="backup_exists")
    if out in keys.parents:
        raise ConflictError("the keys must not lie in the backup: a copy of it would hold both", code="keys_inside")
    settings_file.load(data)
    out.mkdir(mode=0o700, parents=True)
    copy = out / _DATABASE
    # INVARIANT: the database first, the blobs after: blobs are immutable, and a name is never used again.
    _snapshot(data / _DATABASE, copy)
    _part_keys(copy, keys)
    for source in _files(data / "blobs"):
        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile; whether it was needed is checked below
            _copy(source, out / source.relative_to(data))
    _check_blobs(data, copy, out / "blobs")
    _copy(data / settings_file.FILE, out / settings_file.FILE)
    log_size, root = _log(copy)
    listed = {str(path.relative_to(out)): _digest(path) for path in _files(out)}
    manifest = {
        "format": _FORMAT,
        "created_at": SystemClock().now_s(),
        "revision": migrations.newest(),
        "log": {"size": log_size, "root": base64.b64encode(root).decode("ascii")},
        "files": listed,
    }
    _write(out / _MANIFEST, json.dumps(manifest, indent=1).encode())
    size = sum(path.stat().st_size for path in _files(out))
    return BackedUp(files=len(listed), size_bytes=size, log_size=log_size)


def restore(backed_up: Path, *, keys: Path, root_key: Path, data: Path) -> Restored:
    """Make an installation from a backup, with every budget frozen and every job ended.

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
    _match(backed_up / _DATABASE, wrapped, FileRootKey.load(root_key, data=data))
    data.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    half = Path(tempfile.mkdtemp(prefix=f".{data.name}.restoring-", dir=data.parent))
    try:
        frozen, ended = _fill(half, backed_up, manifest, wrapped, root_key)
        half.replace(data)
    except BaseException:
        shutil.rmtree(half, ignore_errors=True)
        raise
    fsync(data.parent)
    return Restored(log_size=manifest["log"]["size"], frozen_budgets=frozen, ended_jobs=ended)


def _fill(
    half: Path, backed_up: Path, manifest: dict[str, Any], wrapped: list[dict[str, Any]], root_key: Path
) -> tuple[int, int]:
    for name in manifest["files"]:
        if name != settings_file.FILE:
            _copy(backed_up / name, half / name)
    (half / "blobs").mkdir(mode=0o700, exist_ok=True)
    settings = replace(settings_file.load_file(backed_up), root_key=str(root_key))
    frozen, ended = _freeze(half, wrapped)
    _write(half / _RESTORED, json.dumps(manifest["log"]).encode())
    settings_file.write(half, settings)
    _record(half, settings, "platform:restore", {"log_size": manifest["log"]["size"], "frozen_budgets": frozen})
    for path in (half / settings_file.FILE, *(path for path in half.rglob("*") if path.is_dir()), half):
        fsync(path)
    return frozen, ended


def compare(data: Path, *, checkpoint: Path | None) -> bool:
    """Compare a restored log with the newest checkpoint that is held elsewhere; return whether training goes on.

    Args:
        data: the restored data folder.
        checkpoint: the signed note; None when nobody holds one.

    With a checkpoint that the restored log contains, nothing is known to be lost, and budgets are freed. With a larger
    one, or none, what was spent after the backup cannot be known: every frozen budget counts as exhausted.

    Raises:
        ConflictError: nothing was restored here, or it was compared already.
        IntegrityError: the checkpoint is not this log's, or the log does not contain it.
    """
    data = data.resolve()
    settings = settings_file.load(data)
    if not (data / _RESTORED).exists():
        raise ConflictError("no budget waits for a comparison in this folder", code="nothing_restored")
    restored_size = int(json.loads((data / _RESTORED).read_bytes())["size"])
    held = None if checkpoint is None else _verified(data, settings, checkpoint.read_text(encoding="utf-8"))
    if held is not None and held.size <= restored_size:
        database = open_database(data)
        try:
            with database.platform(read_only=True) as tx:
                if tree_root(Nodes(tx), held.size) != held.root:
                    raise IntegrityError("the restored log does not contain this checkpoint", code="log_changed")
        finally:
            database.close()
    freed = held is not None and held.size <= restored_size
    _move_frozen(data, to="" if freed else FROZEN_EXHAUSTED)
    facts: dict[str, Any] = {"freed": freed, "checkpoint_size": -1 if held is None else held.size}
    _record(data, settings, "platform:compare-budgets", facts)
    (data / _RESTORED).unlink()
    return freed


def _snapshot(source: Path, target: Path) -> None:
    # One read transaction: what was committed before it, and nothing after.
    connection = sqlite3.connect(source)
    try:
        connection.execute("PRAGMA busy_timeout=30000")
        connection.execute("VACUUM INTO ?", (str(target),))
    finally:
        connection.close()
    target.chmod(0o600)
    fsync(target)


def _part_keys(copy: Path, keys: Path) -> None:
    """Move the wrapped key-encryption keys out of the copy; the vacuum leaves no trace of them in free pages."""
    connection = sqlite3.connect(copy)
    try:
        names = [column.name for column in wrapped_keks.columns]
        rows = connection.execute(f"SELECT {', '.join(names)} FROM wrapped_keks").fetchall()  # noqa: S608 -- our names
        shown = [
            {
                n: base64.b64encode(v).decode("ascii") if isinstance(v, bytes) else v
                for n, v in zip(names, row, strict=True)
            }
            for row in rows
        ]
        keys.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(keys, json.dumps(shown).encode())
        connection.execute("DELETE FROM wrapped_keks")
        connection.execute("DELETE FROM server_processes")
        connection.commit()
        connection.execute("VACUUM")
    finally:
        connection.close()
    fsync(copy)


def _check_blobs(data: Path, copy: Path, blobs: Path) -> None:
    live = sqlite3.connect(data / _DATABASE)
    connection = sqlite3.connect(copy)
    try:
        wanted = [
            *connection.execute("SELECT tenant_id, model_id, version FROM model_versions WHERE state = 'ready'"),
            *connection.execute("SELECT tenant_id, id, 1 FROM datasets WHERE state = 'ready'"),
        ]
        for tenant, object_id, version in wanted:
            if (blobs / tenant / object_id / str(version)).is_dir():
                continue
            # Deleted between the snapshot and the copy: its key is gone from the live database, too.
            key = live.execute("SELECT 1 FROM wrapped_deks WHERE tenant_id = ? AND object_id = ?", (tenant, object_id))
            if key.fetchone() is not None:
                raise IntegrityError("a stored object is missing; the backup is not whole", code="blob_missing")
    finally:
        connection.close()
        live.close()


def _log(copy: Path) -> tuple[int, bytes]:
    connection = sqlite3.connect(copy)
    try:
        row = connection.execute("SELECT size, root FROM audit_checkpoints ORDER BY size DESC LIMIT 1").fetchone()
    finally:
        connection.close()
    return (0, b"") if row is None else (int(row[0]), bytes(row[1]))


def _manifest(backed_up: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((backed_up / _MANIFEST).read_bytes())
        files: dict[str, str] = manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise IntegrityError("this folder holds no whole backup", code="backup_damaged") from exc
    if manifest.get("format") != _FORMAT or manifest.get("revision") != migrations.newest():
        raise ConflictError(
            "the backup is of another version; restore it with that version, then migrate", code="backup_version"
        )
    for name, digest in files.items():
        path = (backed_up / name).resolve()
        if backed_up not in path.parents or not path.is_file() or _digest(path) != digest:
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


def _freeze(data: Path, keys: list[dict[str, Any]]) -> tuple[int, int]:
    database = open_database(data)
    try:
        with database.platform() as tx:
            for row in keys:
                tx.execute(sa.insert(wrapped_keks).values(**row))
            tx.execute(sa.delete(server_processes))
            frozen = tx.execute(
                sa.update(privacy_budgets).where(privacy_budgets.c.frozen == "").values(frozen=FROZEN_RESTORED)
            ).rowcount
            # What they reserved stays reserved: the platform that was lost may have run them.
            ended = tx.execute(
                sa.update(jobs)
                .where(jobs.c.state.in_(ACTIVE))
                .values(
                    state=JobState.FAILED,
                    holder=None,
                    lease_until=None,
                    fence=jobs.c.fence + 1,
                    error_code="interrupted",
                    error_message="the platform was restored from a backup; what the job reserved counts as spent",
                )
            ).rowcount
            tx.bump_epoch()
    finally:
        database.close()
    return frozen, ended


def _move_frozen(data: Path, *, to: str) -> None:
    database = open_database(data)
    try:
        with database.platform() as tx:
            waiting = privacy_budgets.c.frozen == FROZEN_RESTORED
            tx.execute(sa.update(privacy_budgets).where(waiting).values(frozen=to))
            tx.bump_epoch()
    finally:
        database.close()


def _verified(data: Path, settings: Settings, note: str) -> Checkpoint:
    platform = Platform(data=data, settings=settings)
    try:
        return verify(note, origin=settings.log_origin, public_key=platform.ground.signer.public_key())
    finally:
        platform.close()


def _record(data: Path, settings: Settings, action: str, facts: dict[str, Any]) -> None:
    platform = Platform(data=data, settings=settings)
    try:
        event = Event(tenant=PLATFORM, action=action, outcome=Outcome.DONE, ref=PLATFORM_REF, facts=facts)
        platform.record(event)
    finally:
        platform.close()


def newest_checkpoint(data: Path) -> str:
    """Return the newest signed checkpoint, to be kept elsewhere.

    Raises:
        IntegrityError: the log has none yet.
    """
    database = open_database(data.resolve())
    try:
        with database.platform(read_only=True) as tx:
            row = tx.first(sa.select(audit_checkpoints.c.note).order_by(audit_checkpoints.c.size.desc()).limit(1))
    finally:
        database.close()
    if row is None:
        raise IntegrityError("the log has no checkpoint yet; start the server once", code="log_empty")
    return str(row["note"])


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.name != _MANIFEST:
            yield path


def _copy(source: Path, target: Path) -> None:
    # `parents=True` would make the folders between with the umask's mode.
    for folder in reversed([one for one in target.parents if not one.exists()]):
        folder.mkdir(mode=0o700)
    shutil.copyfile(source, target)
    target.chmod(0o600)
    fsync(target)


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.hexdigest()
