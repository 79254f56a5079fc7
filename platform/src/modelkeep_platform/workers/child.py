"""The worker's own side: confine first, then load and serve.

A worker module ends with::

    if __name__ == "__main__":
        run(main)

and imports torch only inside `main`, so that nothing is loaded before the limits hold.
"""

import os
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import Final, NoReturn

import msgspec

from modelkeep_platform.workers.channel_sync import SyncChannel
from modelkeep_platform.workers.confinement import confine
from modelkeep_platform.workers.errors import WorkerDiedError
from modelkeep_platform.workers.frames import Frame
from modelkeep_platform.workers.limits import Limits

READY: Final = "ready"
"""The kind of the first frame a worker sends, when it has loaded what it needs."""

FAULT: Final = "fault"
"""The kind of the last frame of a worker that failed: the type of the exception and where in our code, no message."""


def run(main: Callable[[SyncChannel, Limits], None]) -> NoReturn:
    """Confine this process, call `main(channel, limits)` and exit.

    Exits 0 when `main` returns or the platform closed the channel, 1 after an exception. An exception's message may
    hold a tenant's values, so only its type and our own line are told.
    """
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    limits = msgspec.json.decode(sys.argv[2], type=Limits)
    confine(limits)
    # Libraries look for a temporary folder when they are imported (torch.optim does), by writing a file; this process
    # may not write any. They are told of one that is not there, and nothing of ours asks for it.
    tempfile.tempdir = "/nonexistent"
    channel = SyncChannel(connection)
    status = 0
    try:
        main(channel, limits)
    except WorkerDiedError:
        status = 0
    except BaseException as exc:  # noqa: BLE001 -- the process's own edge
        status = 1
        _report(channel, exc)
    # Interpreter shutdown frees gigabytes one object at a time and runs finalisers of libraries; the kernel is quicker.
    os._exit(status)


def _report(channel: SyncChannel, exc: BaseException) -> None:
    try:
        channel.send(Frame(kind=FAULT, fields={"type": type(exc).__name__, "at": _place(exc)}), timeout_s=1.0)
    except Exception:  # noqa: BLE001 -- the exit status still tells
        return


def _place(exc: BaseException) -> str:
    """Return module and line of the innermost frame that is ours."""
    place = ""
    for frame, line in traceback.walk_tb(exc.__traceback__):
        name = str(frame.f_globals.get("__name__", ""))
        if name.startswith("modelkeep_platform") or name == "__main__":
            place = f"{name}:{line}"
    return place
