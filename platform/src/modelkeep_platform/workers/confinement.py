"""What a worker does to itself before it loads anything else: limits, no core dumps, no life after its parent.

Called first by `workers.child`. It cannot be undone by the process later: hard limits only go down. The kernel
sandbox (namespaces, Landlock, seccomp) belongs here and behind `workers.sandbox`.
"""

import ctypes
import os
import resource
import signal
from contextlib import suppress
from pathlib import Path
from typing import Final

from modelkeep_platform.workers.limits import Limits

_AUTOGROUP: Final = Path("/proc/self/autogroup")
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38


def confine(limits: Limits) -> None:
    """Apply `limits` to this process, for good.

    After it the process writes no file (not even an empty one grows), dumps no core, cannot be attached to by
    other processes of the user, gains no privilege by executing a file, and is killed when its parent's thread ends.

    Raises:
        OSError: the kernel refused; the process must not go on.
    """
    end_with_parent(signal.SIGKILL)
    _prctl(_PR_SET_DUMPABLE, 0)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _stand_back(limits.niceness)
    _set(resource.RLIMIT_CORE, 0)
    _set(resource.RLIMIT_FSIZE, 0)
    _set(resource.RLIMIT_NOFILE, limits.files)
    _set(resource.RLIMIT_DATA, limits.memory_bytes)
    if limits.processes is not None:
        _set(resource.RLIMIT_NPROC, limits.processes)
    if limits.cpu_s is not None:
        _set(resource.RLIMIT_CPU, limits.cpu_s)
    # A file past RLIMIT_FSIZE is an error of the write, not a signal that ends the process.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.umask(0o077)


def _stand_back(niceness: int) -> None:
    os.nice(niceness)
    # Where the kernel groups processes by session (sched(7), autogroup), niceness counts within the group alone; a
    # worker has a session of its own, so its group stands back, too.
    with suppress(OSError):
        _AUTOGROUP.write_text(str(niceness), encoding="ascii")


def end_with_parent(number: signal.Signals) -> None:
    """Let the kernel send this process `number` when the thread that started it ends.

    Raises:
        OSError: the kernel refused.
    """
    _prctl(_PR_SET_PDEATHSIG, number)


def _set(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    ceiling = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (ceiling, ceiling))


def _prctl(option: int, value: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
