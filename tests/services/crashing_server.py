"""A server that dies at its N-th durable write, or whose worker does: for the tests of `tests/faults`.

It is a zygote: it imports the whole platform once, then forks a child for each line it reads on its standard input,
before it ever starts a thread. A child is the real server, `app.server.serve`. In the child's memory alone the points
where something becomes durable are wrapped: the commit of a write transaction, a blob put, created or deleted, an
fsync, each before and after. At each the child asks a page that it shares with the test whether to go on. Its workers
are `dying_worker`. The wrapped calls themselves are the shipped ones, and shipped code has no hook.

``python -m services.crashing_server DATA PAGE``. Prints the child's id when it was forked and its wait status when it
ended, a line each. It dies with the process that started it, and its child with it.
"""

import ctypes
import fcntl
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from services.points import CLOCK_S, HELD, LOOK_MS, THREADS, Page, Points, kill

_PR_SET_PDEATHSIG: Final = 1
_WORKER: Final = Path(__file__).with_name("dying_worker.py")


def install(page: Page, page_path: Path) -> None:
    """Wrap this process's durable writes, its clock and how it starts workers."""
    points = Points(page, counts=lambda: _counts(page), die=lambda: kill(os.getpid()))
    _count_writes(page, points)
    _replace_workers(page_path)
    _hold_jobs(page)
    now = time.time
    time.time = lambda: now() + page[CLOCK_S]


def _counts(page: Page) -> bool:
    names = tuple(name for name in page.text(THREADS).split("|") if name)
    return threading.current_thread().name.startswith(names or ("\0",))


def _count_writes(page: Page, points: Points) -> None:
    from modelkeep_platform.storage.blobs import LocalBlobs
    from modelkeep_platform.storage.database import Database

    begin = Database.connection

    @contextmanager
    def counted(self: Database, *, read_only: bool = False) -> Iterator[Any]:
        wrote = False
        with begin(self, read_only=read_only) as connection:
            driver: Any = connection.connection.driver_connection
            before = driver.total_changes
            yield connection
            # Who looks for work five times a second and finds none writes nothing.
            wrote = driver.total_changes != before
            if wrote:
                points.reach("before commit")
        if wrote:
            points.reach("after commit")

    Database.connection = counted  # type: ignore[method-assign]
    for name in ("put", "create", "delete"):
        points.wrap(LocalBlobs, name, name)
    points.wrap(os, "fsync", "fsync")


def _replace_workers(page_path: Path) -> None:
    from modelkeep_platform.workers.sandbox import ProcessSandbox

    def command(self: ProcessSandbox, argv: Sequence[str]) -> Sequence[str]:
        at = argv.index("-m")
        return [*argv[:at], str(_WORKER), argv[at + 1], str(page_path), *argv[at + 2 :]]

    ProcessSandbox.command = command  # type: ignore[method-assign]


def _hold_jobs(page: Page) -> None:
    """Let nobody claim a job while the page says so, and those of dead servers be looked for as often as it says."""
    from modelkeep_platform.jobs.queue import JobQueue
    from modelkeep_platform.training import dispatcher

    due, shipped_s = dispatcher.Dispatcher._look_is_due, dispatcher._LAPSED_EVERY_S

    def look_is_due(self: dispatcher.Dispatcher) -> bool:
        dispatcher._LAPSED_EVERY_S = page[LOOK_MS] / 1000 or shipped_s  # type: ignore[misc]
        return due(self)

    dispatcher.Dispatcher._look_is_due = look_is_due  # type: ignore[method-assign]
    claim = JobQueue.claim

    def held(self: JobQueue, *args: Any, **options: Any) -> Any:
        return None if page[HELD] else claim(self, *args, **options)

    JobQueue.claim = held  # type: ignore[method-assign]


def main(data: Path, page_path: Path) -> None:
    """Fork a server for each line."""
    _die_with_parent()
    from modelkeep_platform.app import server

    zygote = os.getpid()
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            _die_with_parent()
            if os.getppid() != zygote:
                os._exit(1)
            _serve(server.serve, data, page_path)
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)


def _serve(serve: Callable[..., None], data: Path, page_path: Path) -> None:
    status = 1
    try:
        # Its output is the log; standard input and output are the zygote's own.
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        fcntl.fcntl(1, fcntl.F_SETFD, 0)
        install(Page(page_path), page_path)
        serve(data=data, host=None, port=None, tls_cert=None, tls_key=None, unsafe_no_tls=False)
        status = 0
    finally:
        os._exit(status)


def _die_with_parent() -> None:
    """Let the kernel end this process when the thread that started it is gone: pytest may be killed, too."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
