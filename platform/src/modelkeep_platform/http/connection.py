"""The server's side of a connection: uvicorn's, with a bound on the head of a request in bytes and in time.

uvicorn's fast parser keeps whatever a client sends as a head, for as long as it sends: one connection could fill the
memory with a header that never ends, or hold its place with a byte a minute. Here a head has 64 KiB and 15 s.
"""

import asyncio
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES: Final = 64 * 1024
HEAD_TIMEOUT_S: Final = 15.0


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    _head_bytes = 0
    _in_head = True
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._deadline = self.loop.call_later(HEAD_TIMEOUT_S, self._end)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of the timer."""
        self._in_time()
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
