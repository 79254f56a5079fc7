"""Looks an installation over: what is wrong with it, and how to mend that. Changes nothing."""

import os
import resource
import shutil
import sqlite3
import ssl
import stat
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from modelkeep_platform.app import settings as settings_file
from modelkeep_platform.app.installation import open_database
from modelkeep_platform.app.settings import Settings
from modelkeep_platform.core.errors import ModelkeepError
from modelkeep_platform.core.limits import GIB, MIB
from modelkeep_platform.keys.roots.file import FileRootKey
from modelkeep_platform.storage import migrate as migrations

_LOW_DISK: Final = 5 * GIB
_FILES: Final = 4096
_HTTP_S: Final = 3.0
_AHEAD_S: Final = 60
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_LANDLOCK: Final = Path("/sys/kernel/security/lsm")


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARN = "warn"
    BAD = "bad"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at, and what to do about it when it is not well."""

    level: Level
    what: str
    advice: str = ""


def examine(data: Path) -> list[Finding]:
    """Look at everything; a check that fails does not stop the others."""
    data = data.resolve()
    try:
        settings = settings_file.load(data)
    except ModelkeepError as exc:
        return [Finding(level=Level.BAD, what=f"settings: {exc.message}", advice="see docs/reference/settings.md")]
    found = [Finding(level=Level.OK, what="settings are complete and known")]
    checks: tuple[Callable[[Path, Settings], Iterator[Finding]], ...] = (
        *(_permissions, _root_key, _database, _disk, _clock),
        *(_machine, _kernel, _address),
    )
    for check in checks:
        try:
            found += check(data, settings)
        except (OSError, ModelkeepError, sqlite3.Error) as exc:
            what = f"{check.__name__.strip('_').replace('_', ' ')}: {exc}"
            found.append(Finding(level=Level.BAD, what=what, advice="mend this first, then look again"))
    return found


def _permissions(data: Path, _settings: Settings) -> Iterator[Finding]:
    for path in (data, data / settings_file.FILE, data / "platform.db", data / "blobs"):
        if not path.exists():
            continue
        status = path.stat()
        if status.st_uid != os.geteuid():
            advice = f"run as the owner, or `chown -R` {path} to the server's user"
            yield Finding(level=Level.BAD, what=f"{path.name} belongs to another user", advice=advice)
        elif status.st_mode & _OTHERS and path.is_dir():
            yield Finding(level=Level.WARN, what=f"others may enter {path.name}", advice=f"chmod 700 {path}")
        else:
            yield Finding(level=Level.OK, what=f"{path.name} is the server's own")
    if os.geteuid() == 0:
        yield Finding(
            level=Level.WARN,
            what="this runs as root: the limit on a worker's processes does not hold for root",
            advice="give the server a user of its own (docs/how-to/install.md)",
        )


def _ask(data: Path, question: str) -> list[tuple[Any, ...]]:
    """Ask the database without writing to it, whatever state it is in."""
    connection = sqlite3.connect(f"file:{data / 'platform.db'}?mode=ro", uri=True)
    try:
        return connection.execute(question).fetchall()
    finally:
        connection.close()


def _root_key(data: Path, settings: Settings) -> Iterator[Finding]:
    root = FileRootKey.load(Path(settings.root_key), data=data)
    ids = {row[0] for row in _ask(data, "SELECT DISTINCT root_id FROM wrapped_keks")}
    if ids - {root.id}:
        yield Finding(
            level=Level.BAD,
            what="tenants' keys are wrapped under another root key than this one",
            advice="put back the root key that this installation was made with; without it nothing sealed opens",
        )
    else:
        yield Finding(level=Level.OK, what="the root key is private and is the one that keys are wrapped under")


def _database(data: Path, _settings: Settings) -> Iterator[Finding]:
    problem = _ask(data, "PRAGMA quick_check")[0][0]
    if problem != "ok":
        yield Finding(level=Level.BAD, what="the database is damaged", advice="restore the newest backup")
        return
    database = open_database(data)
    try:
        now = migrations.current(database)
    finally:
        database.close()
    if now == migrations.newest():
        yield Finding(level=Level.OK, what=f"the database is sound and at revision {now}")
    else:
        advice = "stop the server and run `modelkeep-platform migrate`"
        yield Finding(level=Level.BAD, what=f"the database is at revision {now}, not this version's", advice=advice)


def _disk(data: Path, settings: Settings) -> Iterator[Finding]:
    free, reserve = shutil.disk_usage(data).free, settings.disk_reserve_mib * MIB
    if free < max(_LOW_DISK, 4 * reserve):
        level = Level.BAD if free <= reserve else Level.WARN
        advice = (
            f"make room: at {settings.disk_reserve_mib} MiB (`disk_reserve_mib`) predictions and changes are refused"
        )
        yield Finding(level=level, what=f"{free // MIB} MiB are free", advice=advice)
    else:
        yield Finding(level=Level.OK, what=f"{free // GIB} GiB are free")


def _clock(data: Path, _settings: Settings) -> Iterator[Finding]:
    newest = _ask(data, "SELECT max(created_at) FROM audit_entries")[0][0]
    if newest is not None and newest > time.time() + _AHEAD_S:
        yield Finding(
            level=Level.BAD,
            what=f"the clock stands {int(newest - time.time())} s before the newest log entry",
            advice="set the clock (chrony or systemd-timesyncd): tokens and leases live by it",
        )
    else:
        yield Finding(level=Level.OK, what="the clock is not behind the log")


def _machine(_data: Path, settings: Settings) -> Iterator[Finding]:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files < _FILES:
        advice = "LimitNOFILE=65536 in the systemd unit"
        yield Finding(level=Level.WARN, what=f"only {files} files may be open at once", advice=advice)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if settings.worker_memory_mib * MIB > memory:
        yield Finding(
            level=Level.WARN,
            what="a worker may use more memory than this machine has",
            advice=f"lower `worker_memory_mib` below {memory // MIB}",
        )
    else:
        yield Finding(level=Level.OK, what=f"a worker's {settings.worker_memory_mib} MiB fit this machine")


def _kernel(_data: Path, _settings: Settings) -> Iterator[Finding]:
    if sys.platform != "linux":
        advice = "workers are limited by Linux's own means; elsewhere run the server for trials only"
        yield Finding(level=Level.WARN, what="this is not Linux", advice=advice)
        return
    try:
        modules = _LANDLOCK.read_text(encoding="ascii").split(",")
    except OSError:
        modules = []
    shown = "is there" if "landlock" in modules else "is not there"
    yield Finding(level=Level.OK, what=f"Landlock {shown}; workers do not use it yet")


def _address(_data: Path, settings: Settings) -> Iterator[Finding]:
    url = f"{settings.base_url}/.well-known/oauth-protected-resource"
    try:
        with urllib.request.urlopen(url, timeout=_HTTP_S) as answer:  # noqa: S310 -- checked: http(s) to our own address
            body = answer.read(65_536)
    except urllib.error.HTTPError as exc:
        advice = "something else answers at `base_url`; look at the proxy"
        yield Finding(level=Level.BAD, what=f"{settings.base_url} answers {exc.code}", advice=advice)
    except ssl.SSLError:
        advice = "renew the certificate, or give clients its authority"
        yield Finding(level=Level.BAD, what=f"the certificate of {settings.base_url} does not verify", advice=advice)
    except (OSError, ValueError):
        advice = "start the server, or look at DNS, firewall and proxy"
        yield Finding(level=Level.WARN, what=f"nothing answers at {settings.base_url}", advice=advice)
    else:
        good = f'"{settings.base_url}"'.encode() in body
        what = (
            f"{settings.base_url} answers as this platform"
            if good
            else f"another platform answers at {settings.base_url}"
        )
        advice = "" if good else "`base_url` names another installation; set it to this one's address"
        yield Finding(level=Level.OK if good else Level.BAD, what=what, advice=advice)
