"""Several server processes behind one address: starts them on one listening socket, replaces those that die.

Each is a whole server over the same database. They agree through it: the epoch with its acknowledgements, the leases of
jobs and of the log, the limits. They stop in order when the supervisor ends, however it does: nobody would replace them
any more, and they would keep the address from the next one.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Final

_log = logging.getLogger(__name__)
_LOOK_S: Final = 0.5
_SETTLE_S: Final = 5.0
_STOP_S: Final = 30.0


class Supervisor:
    """Runs `count` servers.

    Args:
        data: the data folder.
        listener: the bound socket that all of them accept from.
        options: what else each is started with.
        count: how many.
    """

    def __init__(self, *, data: Path, listener: socket.socket, options: tuple[str, ...], count: int) -> None:
        self._listener = listener
        self._command = [
            *(sys.executable, "-m", "modelkeep_platform", "serve", "--data", str(data)),
            *("--listener-fd", str(listener.fileno()), *options),
        ]
        self._count = count
        self._children: list[subprocess.Popen[bytes]] = []
        self._stop = threading.Event()

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; then stop every server in order."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
        self._listener.listen(2048)
        self._children = [self._start(number) for number in range(self._count)]
        while not self._stop.wait(_LOOK_S):
            self._children = [
                child if child.poll() is None else self._replace(child, number)
                for number, child in enumerate(self._children)
            ]
        for child in self._children:
            child.terminate()
        for child in self._children:
            try:
                child.wait(timeout=_STOP_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def _start(self, number: int) -> "subprocess.Popen[bytes]":
        command = [*self._command, "--process-number", str(number), "--supervisor-pid", str(os.getpid())]
        return subprocess.Popen(command, pass_fds=(self._listener.fileno(),))  # noqa: S603 -- our own command

    def _replace(self, dead: "subprocess.Popen[bytes]", number: int) -> "subprocess.Popen[bytes]":
        _log.error("a server process ended with status %s and is started again", dead.returncode)
        # A server that cannot start must not be started in a tight loop.
        self._stop.wait(_SETTLE_S if dead.returncode > 0 else 0)
        return self._start(number)
