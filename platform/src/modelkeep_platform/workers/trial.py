"""Confines a process as a worker is, and says what does not hold; `modelkeep-platform doctor` asks.

``python -I -B -m modelkeep_platform.workers.trial LIMITS`` prints a JSON list of texts, empty when everything holds.
"""

import ctypes
import errno
import json
import mmap
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import msgspec

from modelkeep_platform.workers.confinement import confine
from modelkeep_platform.workers.limits import Limits

_PR_GET_PDEATHSIG: Final = 2
_PR_GET_DUMPABLE: Final = 3
_PR_GET_NO_NEW_PRIVS: Final = 39


def broken(limits: Limits) -> Iterator[str]:
    """Yield what this process may do that a confined one may not."""
    for text, held in PROMISES.items():
        if not held(limits):
            yield text


def main() -> None:
    """Confine this process and print what does not hold."""
    limits = msgspec.json.decode(sys.argv[1], type=Limits)
    try:
        confine(limits)
    except (OSError, ValueError) as exc:
        found = [f"the kernel refuses ({exc})"]
    else:
        found = list(broken(limits))
    sys.stdout.write(json.dumps(found))


def _ends_with_its_parent(_limits: Limits) -> bool:
    number = ctypes.c_int()
    ctypes.CDLL(None).prctl(_PR_GET_PDEATHSIG, ctypes.byref(number), 0, 0, 0)
    return number.value == signal.SIGKILL


def _is_closed(_limits: Limits) -> bool:
    return int(ctypes.CDLL(None).prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0)) == 0


def _gains_nothing(_limits: Limits) -> bool:
    return int(ctypes.CDLL(None).prctl(_PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)) == 1


def _dumps_nothing(_limits: Limits) -> bool:
    return resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)


def _writes_nothing(_limits: Limits) -> bool:
    descriptor = os.memfd_create("trial")
    try:
        os.write(descriptor, b"x")
    except OSError as exc:
        return exc.errno == errno.EFBIG
    else:
        return False
    finally:
        os.close(descriptor)


def _opens_few(limits: Limits) -> bool:
    opened: list[int] = []
    try:
        while len(opened) <= limits.files:
            opened.append(os.dup(1))
    except OSError:
        return True
    else:
        return False
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _takes_no_more(limits: Limits) -> bool:
    try:
        # Promised and never touched: where the limit does not hold, nothing is used of it.
        mmap.mmap(-1, limits.memory_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError:
        return True
    return False


PROMISES: Final[Mapping[str, Callable[[Limits], bool]]] = {
    "it would live on after the server": _ends_with_its_parent,
    "other processes of the user may attach to it": _is_closed,
    "it may gain privileges by executing a file": _gains_nothing,
    "it would dump its memory": _dumps_nothing,
    "it may write files": _writes_nothing,
    "it may open more files than its limit": _opens_few,
    "it may use more memory than its limit": _takes_no_more,
}
"""What an unconfined process may do, and how to find out that this one may not."""


if __name__ == "__main__":
    main()
