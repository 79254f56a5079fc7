"""A server that dies at its N-th durable write: for the tests of `tests/faults`, started as a script.

It is a zygote: it imports the whole platform once, then forks a child for each line it reads on its standard input,
before it ever starts a thread. A child is the real server, `app.server.serve`. In the child's memory alone the points
where something becomes durable are wrapped: the commit of a write transaction, a blob put, created or deleted, an
fsync, each before and after. At each the child asks a page that it shares with the test whether to go on. The
wrapped calls themselves are the shipped ones, and shipped code has no hook.

``python crashing_server.py DATA PAGE``: PAGE is a file of `PAGE_BYTES`. Prints the child's id when it was forked and
its wait status when it ended, a line each.
"""

import errno
import fcntl
import importlib
import mmap
import os
import signal
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

COUNT, AT, CLOCK_S, FAULT = range(4)
PAGE_BYTES: Final = 4096
_NUMBERS: Final = struct.Struct("<q")
_TEXT_AT: Final = 64
_TEXT_BYTES: Final = 64
_LAST_AT: Final = _TEXT_AT + _TEXT_BYTES

NONE, NO_SPACE, BROKEN, SHORT, TORN, NO_PAGES = range(6)
"""What is broken: nothing; ENOSPC or EIO of every blob (EIO on reads, too); half reads; half writes; a database that
cannot grow."""
_MANY_PAGES: Final = 1 << 30


class Page:
    """Numbers that the test and the server share.

    Args:
        path: the file, made when it is not there.
    """

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(descriptor, PAGE_BYTES)
        self._map = mmap.mmap(descriptor, PAGE_BYTES)
        os.close(descriptor)

    def __getitem__(self, at: int) -> int:
        """Return a number."""
        return int(_NUMBERS.unpack_from(self._map, at * _NUMBERS.size)[0])

    def __setitem__(self, at: int, value: int) -> None:
        """Set a number."""
        _NUMBERS.pack_into(self._map, at * _NUMBERS.size, value)

    @property
    def threads(self) -> tuple[str, ...]:
        """Return how the names of the threads begin whose writes count; none: nothing counts."""
        return tuple(name for name in self._text(_TEXT_AT).split("|") if name)

    @threads.setter
    def threads(self, names: tuple[str, ...]) -> None:
        self._put(_TEXT_AT, "|".join(names))

    @property
    def last(self) -> str:
        """Return the name of the last point that counted."""
        return self._text(_LAST_AT)

    @last.setter
    def last(self, name: str) -> None:
        self._put(_LAST_AT, name)

    def _text(self, at: int) -> str:
        return self._map[at : at + _TEXT_BYTES].rstrip(b"\0").decode()

    def _put(self, at: int, text: str) -> None:
        self._map[at : at + _TEXT_BYTES] = text.encode()[:_TEXT_BYTES].ljust(_TEXT_BYTES, b"\0")


class Points:
    """Counts durable writes, and ends the process at the one that is asked for."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._lock = threading.Lock()

    def reach(self, name: str) -> None:
        """Count a point of a thread that counts."""
        if not threading.current_thread().name.startswith(self._page.threads or ("\0",)):
            return
        with self._lock:
            self._page[COUNT] += 1
            self._page.last = name
            if self._page[COUNT] == self._page[AT]:
                os.kill(os.getpid(), signal.SIGKILL)
                signal.pause()

    @contextmanager
    def around(self, name: str) -> Iterator[None]:
        """Count before and after."""
        self.reach(f"before {name}")
        yield
        self.reach(f"after {name}")

    def wrap(self, owner: Any, name: str, title: str) -> None:
        """Count before and after the calls of a function."""
        real: Callable[..., Any] = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            with self.around(title):
                return real(*args, **kwargs)

        setattr(owner, name, counted)


def install(page: Page) -> None:
    """Wrap this process's durable writes and its clock."""
    from modelkeep_platform.storage.blobs import LocalBlobs
    from modelkeep_platform.storage.database import Database
    from modelkeep_platform.telemetry.system import SystemClock

    points = Points(page)
    begin = Database._begin

    @contextmanager
    def counted(self: Database, *, read_only: bool) -> Iterator[Any]:
        wrote = False
        with begin(self, read_only=read_only) as connection:
            # SQLite takes no limit below the present size, so 1 is: not a page more.
            connection.exec_driver_sql(f"PRAGMA max_page_count={1 if page[FAULT] == NO_PAGES else _MANY_PAGES}")
            driver: Any = connection.connection.driver_connection
            before = driver.total_changes
            yield connection
            # Who looks for work five times a second and finds none writes nothing.
            wrote = driver.total_changes != before
            if wrote:
                points.reach("before commit")
        if wrote:
            points.reach("after commit")

    Database._begin = counted  # type: ignore[method-assign]
    for name in ("put", "create", "delete"):
        points.wrap(LocalBlobs, name, name)
    points.wrap(os, "fsync", "fsync")
    now_s = SystemClock.now_s
    SystemClock.now_s = lambda self: now_s(self) + page[CLOCK_S]  # type: ignore[method-assign]
    _break_blobs(page)


def _break_blobs(page: Page) -> None:
    """Let obstore fail as a disk does, when the page says so."""
    store_module: Any = importlib.import_module("obstore")
    real_put, real_get = store_module.put, store_module.get

    def put(store: Any, key: str, data: bytes, **kwargs: Any) -> Any:
        fault = page[FAULT]
        if fault in (NO_SPACE, BROKEN):
            number = errno.ENOSPC if fault == NO_SPACE else errno.EIO
            raise OSError(number, os.strerror(number))
        if fault == TORN:
            # Half of it is there, under its name, and the call fails: what a file system without order leaves behind.
            real_put(store, key, data[: len(data) // 2], **kwargs)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real_put(store, key, data, **kwargs)

    def get(store: Any, key: str) -> Any:
        fault, found = page[FAULT], real_get(store, key)
        if fault == BROKEN:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return _Half(found.bytes()) if fault == SHORT else found

    store_module.put = put
    store_module.get = get


class _Half:
    """An answer of which half arrived."""

    def __init__(self, data: Any) -> None:
        self._data = bytes(data)

    def bytes(self) -> Self:
        return self

    def to_bytes(self) -> Any:
        return self._data[: len(self._data) // 2]


def main(data: Path, page: Path) -> None:
    """Fork a server for each line."""
    from modelkeep_platform.app import server

    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            _serve(server.serve, data, page)
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)


def _serve(serve: Callable[..., None], data: Path, page: Path) -> None:
    status = 1
    try:
        # Its output is the log; standard input and output are the zygote's own.
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        fcntl.fcntl(1, fcntl.F_SETFD, 0)
        install(Page(page))
        serve(data=data, host=None, port=None, tls_cert=None, tls_key=None, unsafe_no_tls=False)
        status = 0
    finally:
        os._exit(status)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
