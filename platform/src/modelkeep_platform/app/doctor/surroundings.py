"""What the machine gives the server: disk, time, files, memory, and a kernel that confines workers."""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from modelkeep_platform.app.doctor.contents import ask
from modelkeep_platform.app.doctor.findings import Finding, Level
from modelkeep_platform.app.settings import Settings
from modelkeep_platform.core.limits import GIB, MIB
from modelkeep_platform.workers.limits import Limits

_LOW_DISK: Final = 5 * GIB
_FILES: Final = 4096
_AHEAD_S: Final = 60
_CHILD_S: Final = 30.0
_TRIAL: Final = "modelkeep_platform.workers.trial"
_CONTAINERS: Final = (Path("/.dockerenv"), Path("/run/.containerenv"), Path("/run/systemd/container"))
_UNSYNCHRONISED: Final = 0x40  # STA_UNSYNC of adjtimex(2)
# With no `modes`, adjtimex only reads. It is called in a child: a filter of system calls, as the systemd unit has one,
# may end the process that calls it, and then the answer is that nobody knows.
_READ_CLOCK: Final = """
import ctypes
class Clock(ctypes.Structure):
    _fields_ = [("modes", ctypes.c_uint), *((name, ctypes.c_long) for name in ("offset", "freq", "most", "estimated")),
                ("status", ctypes.c_int), ("rest", ctypes.c_char * 512)]
clock = Clock()
if ctypes.CDLL(None).adjtimex(ctypes.byref(clock)) < 0:
    raise SystemExit(1)
print(clock.status)
"""


def disk(data: Path, settings: Settings) -> Iterator[Finding]:
    """Look how much is free."""
    free, reserve = shutil.disk_usage(data).free, settings.disk_reserve_mib * MIB
    if free < max(_LOW_DISK, 4 * reserve):
        level = Level.BAD if free <= reserve else Level.WARN
        advice = (
            f"make room: at {settings.disk_reserve_mib} MiB (`disk_reserve_mib`) predictions and changes are refused"
        )
        yield Finding(level=level, what=f"{free // MIB} MiB are free", advice=advice)
    else:
        yield Finding(level=Level.OK, what=f"{free // GIB} GiB are free")


def clock(data: Path, _settings: Settings) -> Iterator[Finding]:
    """Look whether the clock stands behind what was written, and whether anything keeps it.

    Far ahead of what was written it may be rightly: an installation may have stood still for a year.
    """
    newest = max(
        ask(data, f"SELECT max({column}) FROM {table}")[0][0] or 0  # noqa: S608 -- our own constants
        for table, column in (("audit_entries", "created_at"), ("server_processes", "seen_at"))
    )
    if newest > time.time() + _AHEAD_S:
        yield Finding(
            level=Level.BAD,
            what=f"the clock stands {int(newest - time.time())} s before the newest log entry or heartbeat",
            advice="set the clock (chrony or systemd-timesyncd): tokens and leases live by it",
        )
    else:
        yield Finding(level=Level.OK, what="the clock is not behind the log")
    synchronised = _synchronised()
    if synchronised is None:
        yield Finding(level=Level.OK, what="whether the clock is synchronised is unknown: it cannot be seen from here")
    elif synchronised:
        yield Finding(level=Level.OK, what="the clock is synchronised")
    else:
        yield Finding(
            level=Level.WARN,
            what="the kernel says that nothing synchronises the clock",
            advice="run chrony (with `rtcsync`) or systemd-timesyncd: tokens and leases live by the clock",
        )


def _synchronised() -> bool | None:
    """Return whether something keeps the clock; None when that cannot be known from here."""
    status = _clock_status()
    if status is None:
        return None
    if not status & _UNSYNCHRONISED:
        return True
    # A container has its host's clock, which may be kept by means that the kernel is not told of.
    return None if _in_container() else False


def _clock_status() -> int | None:
    try:
        told = subprocess.run(  # noqa: S603 -- our own interpreter and a constant
            [sys.executable, "-I", "-c", _READ_CLOCK], capture_output=True, timeout=_CHILD_S, check=True
        )
        return int(told.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def _in_container() -> bool:
    return "KUBERNETES_SERVICE_HOST" in os.environ or any(mark.exists() for mark in _CONTAINERS)


def machine(_data: Path, settings: Settings) -> Iterator[Finding]:
    """Look at open files and memory."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files < _FILES:
        advice = "LimitNOFILE=65536 in the systemd unit"
        yield Finding(level=Level.WARN, what=f"only {files} files may be open at once", advice=advice)
    else:
        yield Finding(level=Level.OK, what=f"{files} files may be open at once")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if settings.worker_memory_mib * MIB > memory:
        yield Finding(
            level=Level.WARN,
            what="a worker may use more memory than this machine has",
            advice=f"lower `worker_memory_mib` below {memory // MIB}",
        )
    else:
        yield Finding(level=Level.OK, what=f"a worker's {settings.worker_memory_mib} MiB fit this machine")


def kernel(_data: Path, settings: Settings) -> Iterator[Finding]:
    """Confine a child as a worker is, and look whether the kernel holds it."""
    if sys.platform != "linux":
        advice = "workers are limited by Linux's own means; elsewhere run the server for trials only"
        yield Finding(level=Level.WARN, what="this is not Linux", advice=advice)
        return
    limits = msgspec.json.encode(Limits(memory_bytes=settings.worker_memory_mib * MIB)).decode()
    advice = "run the server where a process may limit itself: prctl(2), setrlimit(2)"
    try:
        told = subprocess.run(  # noqa: S603 -- our own interpreter and module
            [sys.executable, "-I", "-B", "-m", _TRIAL, limits], capture_output=True, timeout=_CHILD_S, check=False
        )
        broken: list[str] = json.loads(told.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        broken = ["the trial ended without an answer"]
    for text in broken:
        yield Finding(level=Level.BAD, what=f"a worker cannot be confined here: {text}", advice=advice)
    if not broken:
        yield Finding(level=Level.OK, what="the kernel confines a worker: its files, memory, privileges and end")
