"""Starts, watches and kills worker processes.

A worker is ``python -I -B -m MODULE``: isolated from the environment and the current folder, with the few fixed
variables below and nothing else, in a session of its own, in `/`, with its three standard streams closed off and
one inherited descriptor: its end of a socket pair. It inherits no other descriptor, and other children not its own.
"""

import os
import select
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

import msgspec

from modelkeep_platform.workers.errors import WorkerDiedError, WorkerError
from modelkeep_platform.workers.limits import Limits
from modelkeep_platform.workers.sandbox import Sandbox

_SOCKET_BYTES: Final = 1024 * 1024
_REAP_S: Final = 10.0
# Looks at how a child ended without reaping it.
_PEEK: Final = os.WEXITED | os.WNOWAIT


def environment(limits: Limits) -> dict[str, str]:
    """Return the whole environment of a worker; nothing of the platform's own is in it."""
    threads = str(limits.threads)
    return {
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        # One arena a thread would count many times against the memory limit.
        "MALLOC_ARENA_MAX": "2",
        # Workers compute on the processor; without it torch looks for devices through the driver's files.
        "CUDA_VISIBLE_DEVICES": "",
    }


class WorkerProcess:
    """One child process and the platform's end of its channel. A context manager that kills on exit.

    Args:
        process: the child.
        connection: the platform's end of the socket pair.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", connection: socket.socket) -> None:
        self._process = process
        self.connection = connection

    @property
    def pid(self) -> int:
        """Return the child's process id, which is also its process group's."""
        return self._process.pid

    def alive(self) -> bool:
        """Return whether it still runs."""
        if self._process.returncode is not None:
            return False
        try:
            return os.waitid(os.P_PID, self.pid, _PEEK | os.WNOHANG) is None
        except ChildProcessError:
            return False  # another thread reaped it just now

    def detach(self) -> socket.socket:
        """Hand the platform's end of the channel to another owner, who closes it; may be called once."""
        return socket.socket(fileno=self.connection.detach())

    def death(self) -> WorkerDiedError:
        """Return the error that says how it ended, after it closed its end; reaps it.

        The reason names a signal or an exit status, nothing that the process itself said. Waits up to a second.
        """
        return WorkerDiedError(f"the worker process ended: {self._reason()}; try again")

    def _reason(self) -> str:
        ended = self._ended_within(1.0)
        self.kill()
        status = self._process.returncode
        if not ended or status is None:
            return "it closed its channel"
        if status == 0:
            return "it stopped by itself"
        if status > 0:
            return f"exit status {status}"
        try:
            return f"signal {signal.Signals(-status).name}"
        except ValueError:
            return f"signal {-status}"

    def _ended_within(self, timeout_s: float) -> bool:
        if self._process.returncode is not None:
            return True
        descriptor = os.pidfd_open(self.pid)
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            return bool(poll.poll(timeout_s * 1000))
        finally:
            os.close(descriptor)

    def kill_soon(self) -> None:
        """Kill it and every process of its group, without waiting; `kill` reaps it."""
        # INVARIANT: the group is killed before its leader is reaped. Until then no other group can have its number,
        # and children that the worker left behind die with it.
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def kill(self) -> None:
        """Kill it and every process of its group, reap it and close the channel. May be called again."""
        self.kill_soon()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_REAP_S)
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()


def start(module: str, *, limits: Limits, sandbox: Sandbox) -> WorkerProcess:
    """Start `module` as a worker. It is not ready yet: its first frame says so.

    The thread that calls this must live as long as the worker: the kernel kills the worker when that thread ends.

    Args:
        module: the dotted name of a module whose ``__main__`` part calls `workers.child.run`.
        limits: what it may use.
        sandbox: what confines it from outside.

    Raises:
        WorkerError: the process could not be started.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for end in (ours, theirs):
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BYTES)
    settings = msgspec.json.encode(limits).decode("ascii")
    argv = [sys.executable, "-I", "-B", "-m", module, str(theirs.fileno()), settings]
    try:
        process = subprocess.Popen(  # noqa: S603 -- our own interpreter and module; no shell, nothing of a tenant's
            sandbox.command(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=True,
            pass_fds=(theirs.fileno(),),
            env=environment(limits),
            cwd="/",
            start_new_session=True,
        )
    except OSError as exc:
        ours.close()
        raise WorkerError("a worker process could not be started; try again later", code="worker_start") from exc
    finally:
        theirs.close()
    return WorkerProcess(process, ours)
