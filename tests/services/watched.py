"""Runs a module of the platform and notes what it, and its workers, ask of the network.

``python watched.py PIPE MODULE ARGUMENTS…``. Each connection, datagram and look-up of a name is a line in the pipe:
JSON of the module, the event and the address. The event loop is Python's own here, which says what it connects to;
uvloop does not. What is connected to by compiled code alone is not seen: a test has to listen where it is sent.
"""

import json
import os
import runpy
import sys
from collections.abc import Sequence
from typing import Any, Final

WATCHED: Final = frozenset(
    {
        "socket.connect",
        "socket.sendto",
        "socket.sendmsg",
        "socket.getaddrinfo",
        "socket.gethostbyname",
        "socket.gethostbyaddr",
        "socket.getnameinfo",
        "urllib.Request",
        "http.client.connect",
    }
)
SERVER: Final = "modelkeep_platform"


def main(pipe: str, module: str, arguments: Sequence[str]) -> None:
    """Watch this process, and be the module."""
    descriptor = os.open(pipe, os.O_WRONLY)

    def note(event: str, args: tuple[Any, ...]) -> None:
        if event in WATCHED:
            os.write(descriptor, json.dumps([module, event, repr(args[1:] or args)]).encode()[:1000] + b"\n")

    sys.addaudithook(note)
    if module == SERVER:
        _watch_workers(pipe)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _watch_workers(pipe: str) -> None:
    from uvicorn.config import LOOP_FACTORIES

    from modelkeep_platform.workers.sandbox import ProcessSandbox

    LOOP_FACTORIES["uvloop"] = LOOP_FACTORIES["asyncio"]

    def command(self: ProcessSandbox, argv: Sequence[str]) -> Sequence[str]:
        at = argv.index("-m")
        return [*argv[:at], __file__, pipe, *argv[at + 1 :]]

    ProcessSandbox.command = command  # type: ignore[method-assign]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
