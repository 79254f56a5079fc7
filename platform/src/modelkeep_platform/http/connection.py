"""The server's side of a connection: uvicorn's, with a bound on the head of a request in bytes and in time.

uvicorn's fast parser keeps whatever a client sends as a head, for as long as it sends: one connection could fill the
memory with a header that never ends, or hold its place with a byte a minute. Here a head has 64 KiB and 15 s. And there
are only so many connections, of all and of one source: what is more is closed before a byte of it is read. The head of
an answer and its body, which uvicorn writes one after the other, leave in one system call.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from modelkeep_platform.core.sources import subscriber

HEAD_BYTES: Final = 64 * 1024
HEAD_TIMEOUT_S: Final = 15.0


class Connections:
    """How many connections are open in this process; used by the event loop alone.

    Args:
        most: how many at once.
        of_source: how many of one source, which is an address, of IPv6 a /64; 0 for any number.
        refused: told which limit was reached.
    """

    def __init__(
        self, *, most: int = 4096, of_source: int = 0, refused: Callable[[str], None] = lambda _limit: None
    ) -> None:
        self._most = most
        self._of_source = of_source
        self._refused = refused
        self._sources: Counter[str] = Counter()
        self.open = 0

    def enter(self, source: str) -> bool:
        """Count a connection from the address `source`, and return whether it may stay."""
        source = subscriber(source)
        if self.open >= self._most:
            self._refused("all")
            return False
        if self._of_source and self._sources[source] >= self._of_source:
            self._refused("source")
            return False
        self.open += 1
        self._sources[source] += 1
        return True

    def leave(self, source: str) -> None:
        """Forget a connection that `enter` counted."""
        source = subscriber(source)
        self.open -= 1
        self._sources[source] -= 1
        if not self._sources[source]:
            del self._sources[source]


class JoinedWrites(asyncio.Transport):
    """A transport that holds a write until the next one, or until the loop's turn is over, and sends both together.

    Args:
        transport: what sends.
        loop: whose turns.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._held: Any = None

    def write(self, data: Any) -> None:  # noqa: ANN401 -- anything with the buffer protocol
        """Send `data`, at the latest when this turn of the loop is over."""
        held, self._held = self._held, None
        if held is not None:
            self._transport.writelines((held, data))
            return
        self._held = data
        self._loop.call_soon(self._flush)

    def close(self) -> None:
        """Send what is held, and close."""
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        """Close at once; what was not sent is dropped."""
        self._held = None
        self._transport.abort()

    def is_closing(self) -> bool:
        """Return whether it closes or is closed."""
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        """Take nothing more in."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Take in what comes."""
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # noqa: ANN401 -- of any type
        """Return what is known of the connection."""
        return self._transport.get_extra_info(name, default)

    def _flush(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            self._transport.write(held)


class BoundedProtocol(HttpToolsProtocol):
    """One connection; `bounded` makes the class for a server's `Connections`."""

    bounds = Connections()
    _source: str | None = None
    _head_bytes = 0
    _in_head = True
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head."""
        super().connection_made(JoinedWrites(transport, self.loop))
        peer = transport.get_extra_info("peername")
        source = str(peer[0]) if peer else ""
        if not self.bounds.enter(source):
            transport.abort()
            return
        self._source = source
        self._deadline = self.loop.call_later(HEAD_TIMEOUT_S, self._end)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of the timer."""
        self._in_time()
        if self._source is not None:
            self.bounds.leave(self._source)
            self._source = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what belongs to a head that is not whole yet."""
        if self._in_head:
            self._head_bytes += len(data)
            if self._deadline is None:
                self._deadline = self.loop.call_later(HEAD_TIMEOUT_S, self._end)
        super().data_received(data)
        if self._in_head and self._head_bytes > HEAD_BYTES:
            self._end()

    def on_headers_complete(self) -> None:
        """Stop counting: the body has its own limits."""
        self._in_head, self._head_bytes = False, 0
        self._in_time()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Expect the next head."""
        self._in_head = True
        super().on_message_complete()

    def _in_time(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _end(self) -> None:
        self._in_time()
        if not self.transport.is_closing():
            self.transport.close()


def bounded(connections: Connections) -> type[BoundedProtocol]:
    """Return the protocol of a server that counts its connections in `connections`."""
    return type("BoundedProtocol", (BoundedProtocol,), {"bounds": connections})
