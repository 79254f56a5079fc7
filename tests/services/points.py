"""Named points at which a process of the platform can be made to die, and the page that a test shares with it.

Nothing here starts anything: `crashing_server` and `dying_worker` set the points in the processes that they are.
"""

import mmap
import os
import signal
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

COUNT, AT, CLOCK_S, STEPS, WITH_SERVER, HELD, LOOK_MS = range(7)
"""Numbers of a page: points counted, the one to die at, what the server's clock is off by, noisy steps that
workers began, whether a worker takes its server with it, whether queued jobs stay queued, how often jobs of dead
servers are looked for (0: as often as shipped)."""
THREADS, WORKER, MOMENT, LAST = range(4)
"""Texts of a page: whose points count (threads of the server, or a worker's module), which of them (none: all), and the
last that counted."""
PAGE_BYTES: Final = 4096
_NUMBERS: Final = struct.Struct("<q")
_TEXTS_AT: Final = 1024
_TEXT_BYTES: Final = 64


class Page:
    """Numbers and short texts that the test and the processes it looks at share.

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

    def text(self, at: int) -> str:
        """Return a text."""
        begin = _TEXTS_AT + at * _TEXT_BYTES
        return self._map[begin : begin + _TEXT_BYTES].rstrip(b"\0").decode()

    def write(self, at: int, text: str) -> None:
        """Set a text, of at most 64 characters."""
        begin = _TEXTS_AT + at * _TEXT_BYTES
        self._map[begin : begin + _TEXT_BYTES] = text.encode()[:_TEXT_BYTES].ljust(_TEXT_BYTES, b"\0")

    def disarm(self) -> None:
        """Let nothing count."""
        for text in (THREADS, WORKER, MOMENT):
            self.write(text, "")
        self[AT] = 0

    def arm(self, at: int, *, threads: str = "", worker: str = "", moment: str = "", with_server: bool = False) -> None:
        """Let a process die at its `at`-th point from now.

        Args:
            at: counted from 1.
            threads: how the names of the server's threads begin whose points count, parted by ``|``.
            worker: the module of the workers whose points count.
            moment: the one point that counts; empty for every one.
            with_server: whether the worker kills its server first.
        """
        self.disarm()
        self[COUNT], self[AT], self[WITH_SERVER] = 0, at, int(with_server)
        self.write(LAST, "")
        self.write(MOMENT, moment)
        self.write(WORKER, worker)
        self.write(THREADS, threads)

    @property
    def reached(self) -> bool:
        """Return whether the point was reached: the process is dead or about to be."""
        return 0 < self[AT] <= self[COUNT]


class Points:
    """Counts what a process does, and ends it at the point that is asked for.

    Args:
        page: says which points count, and at which to die.
        counts: whether what runs now is what the page means.
        die: ends the process.
    """

    def __init__(self, page: Page, *, counts: Callable[[], bool], die: Callable[[], None]) -> None:
        self._page, self._counts, self._die = page, counts, die
        self._lock = threading.Lock()

    def reach(self, name: str) -> None:
        """Count a point, if it is one that counts."""
        if not self._counts() or self._page.text(MOMENT) not in ("", name):
            return
        with self._lock:
            self._page[COUNT] += 1
            self._page.write(LAST, name)
            if self._page[COUNT] == self._page[AT]:
                self._die()

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


def kill(pid: int) -> None:
    """End a process as a power cut would; a process that ends itself does not return."""
    os.kill(pid, signal.SIGKILL)
    if pid == os.getpid():
        signal.pause()
