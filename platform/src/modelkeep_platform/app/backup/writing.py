"""Backup while serving.

A backup is a folder: the database as it was at one moment, without the wrapped key-encryption keys; every sealed blob
that it names; the settings; and `backup.json`, which names each file with its digest, and the log's size and root at
that moment. The wrapped keys go to a file of their own: whoever holds the backup and the root key, but not that file,
opens nothing.
"""

import base64
import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from modelkeep_platform.app import settings as settings_file
from modelkeep_platform.app.backup.files import DATABASE, FORMAT, MANIFEST, copy_file, digest, files, write
from modelkeep_platform.app.backup.gathering import Gathered, moment
from modelkeep_platform.app.backup.publishing import check_free, clear_leftovers, half_made, publish
from modelkeep_platform.core.errors import ConflictError
from modelkeep_platform.storage import migrate as migrations
from modelkeep_platform.storage.files import fsync
from modelkeep_platform.storage.tables.keys import wrapped_keks
from modelkeep_platform.telemetry.system import SystemClock


@dataclass(frozen=True, slots=True, kw_only=True)
class BackedUp:
    """What a backup holds."""

    files: int
    size_bytes: int
    log_size: int


def backup(data: Path, *, out: Path, keys: Path) -> BackedUp:
    """Write a backup of the installation in `data`; the server may go on serving.

    It is made beside `out` and renamed last: a backup that fails, or whose machine stops, leaves no `out`, and can
    be repeated.

    Args:
        data: the data folder.
        out: a folder that is not there yet.
        keys: a file that is not there yet, outside `out`: the wrapped key-encryption keys.

    Raises:
        ConflictError: something is there already, or `keys` lies in `out`.
        IntegrityError: a blob that the database names is missing.
    """
    data, out, keys = data.resolve(), out.resolve(), keys.resolve()
    if out == keys or out in keys.parents:
        raise ConflictError("the keys must not lie in the backup: a copy of it would hold both", code="keys_inside")
    settings_file.load(data)
    check_free(out, keys=keys)
    clear_leftovers(out)
    with half_made(out) as half:
        made, content = _fill(half, data)
        publish(half, out, keys=keys, content=content)
    return made


def _fill(half: Path, data: Path) -> tuple[BackedUp, bytes]:
    """Make a backup in `half`; return what it holds, and the wrapped keys, which it does not."""
    copy = half / DATABASE
    gathered = Gathered(data / "blobs", half / "blobs")
    with moment(data / DATABASE, gathered) as reader:
        created_at = SystemClock().now_s()
        with closing(sqlite3.connect(copy)) as target:
            copy.chmod(0o600)
            reader.backup(target)
    content = _part_keys(copy)
    log_size, root = _log(copy)
    listed = {f"blobs/{name}": found for name, found in gathered.digests.items()}
    listed[DATABASE] = digest(copy)
    listed[settings_file.FILE] = copy_file(data / settings_file.FILE, half / settings_file.FILE)
    manifest = {
        "format": FORMAT,
        "created_at": created_at,
        "revision": migrations.newest(),
        "log": {"size": log_size, "root": base64.b64encode(root).decode("ascii")},
        "files": dict(sorted(listed.items())),
    }
    write(half / MANIFEST, json.dumps(manifest, indent=1).encode())
    size = sum(path.stat().st_size for path in files(half))
    return BackedUp(files=len(listed), size_bytes=size, log_size=log_size), content


def _part_keys(copy: Path) -> bytes:
    """Take the wrapped key-encryption keys out of the copy; the vacuum leaves no trace of them in free pages."""
    connection = sqlite3.connect(copy)
    try:
        # As the live one it would be in WAL mode, and be opened with two files beside it.
        connection.execute("PRAGMA journal_mode=DELETE")
        names = [column.name for column in wrapped_keks.columns]
        rows = connection.execute(f"SELECT {', '.join(names)} FROM wrapped_keks").fetchall()  # noqa: S608 -- our names
        shown = [
            {
                n: base64.b64encode(v).decode("ascii") if isinstance(v, bytes) else v
                for n, v in zip(names, row, strict=True)
            }
            for row in rows
        ]
        connection.execute("DELETE FROM wrapped_keks")
        connection.execute("DELETE FROM server_processes")
        connection.commit()
        connection.execute("VACUUM")
    finally:
        connection.close()
    fsync(copy)
    return json.dumps(shown).encode()


def _log(copy: Path) -> tuple[int, bytes]:
    connection = sqlite3.connect(copy)
    try:
        row = connection.execute("SELECT size, root FROM audit_checkpoints ORDER BY size DESC LIMIT 1").fetchone()
    finally:
        connection.close()
    return (0, b"") if row is None else (int(row[0]), bytes(row[1]))
