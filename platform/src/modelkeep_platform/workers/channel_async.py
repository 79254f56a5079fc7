"""Frames over a socket for asyncio: for serving.

A protocol of its own, not asyncio's streams: a frame that arrives whole costs one wake-up of the task that waits for
it, and the end of the channel is known at once, also while nobody waits.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Self, cast

from modelkeep_platform.workers.errors import FrameError, WorkerDiedError, WorkerError, WorkerTimeoutError
from modelkeep_platform.workers.frames import (
    DEFAULT_BOUNDS,
    PREFIX_BYTES,
    Bounds,
    Frame,
    Header,
    header_length,
    parse_header,
    pieces_to_send,
)

_READ_AHEAD_BYTES: Final = 1024 * 1024


class AsyncChannel(asyncio.Protocol):
    """One end of a socket pair, used by one task at a time.

    After any error, or a time-out, the channel is of no further use: part of a frame may have passed.

    Args:
        bounds: the largest frame accepted and sent.
        on_lost: called once, when the channel has ended, for whatever reason.
    """

    def __init__(self, bounds: Bounds, on_lost: Callable[[], None] = lambda: None) -> None:
        self._bounds = bounds
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._arrived = bytearray()
        self._header: Header | None = None
        self._frames: deque[Frame] = deque()
        self._error: Exception | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._full = self._paused = False

    @classmethod
    async def open(
        cls, connection: socket.socket, *, bounds: Bounds = DEFAULT_BOUNDS, on_lost: Callable[[], None] = lambda: None
    ) -> Self:
        """Take over `connection`."""
        loop = asyncio.get_running_loop()
        _, channel = await loop.create_connection(lambda: cls(bounds, on_lost), sock=connection)
        return channel

    async def send(self, frame: Frame) -> None:
        """Send `frame`; returns when the socket has room again.

        Raises:
            FrameError: it is past the bounds; nothing was sent.
            WorkerDiedError: the other side is gone.
            WorkerTimeoutError: `expire` was called.
        """
        for piece in pieces_to_send(frame, self._bounds):
            if self._transport.is_closing():
                raise self._error or _died()
            self._transport.write(piece)
            if self._full:
                self._writer = self._loop.create_future()
                await self._writer

    async def receive(self) -> Frame:
        """Return the next frame.

        Raises:
            FrameError: the bytes are not a frame within the bounds.
            WorkerDiedError: the other side is gone.
            WorkerTimeoutError: `expire` was called.
        """
        while not self._frames:
            if self._error is not None:
                raise self._error
            self._resume()
            self._reader = self._loop.create_future()
            await self._reader
            self._reader = None
        return self._frames.popleft()

    def expire(self) -> None:
        """End the channel because the other side took too long; whoever waits gets a WorkerTimeoutError."""
        self._end(WorkerTimeoutError("the worker did not answer in time"))

    def close(self) -> None:
        """Close this end at once; what was not sent is dropped."""
        self._end(_died())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Take what arrived, and wake whoever waits when it completes a frame."""
        self._arrived += data
        try:
            while (frame := self._whole()) is not None:
                self._frames.append(frame)
        except FrameError as exc:
            self._end(exc)
            return
        if self._frames:
            _wake(self._reader)
        # What nobody waits for is not taken in without bound.
        if self._reader is None and (len(self._frames) > 1 or len(self._arrived) > _READ_AHEAD_BYTES):
            self._paused = True
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        """Let senders wait."""
        self._full = True

    def resume_writing(self) -> None:
        """Let senders go on."""
        self._full = False
        _wake(self._writer)

    def connection_lost(self, exc: Exception | None) -> None:
        """Say that the other side is gone."""
        del exc  # whatever it was
        self._end(_died())
        self._on_lost()

    def _whole(self) -> Frame | None:
        """Take the next frame from what has arrived, if it is there whole."""
        arrived = self._arrived
        if self._header is None:
            if len(arrived) < PREFIX_BYTES:
                return None
            end = PREFIX_BYTES + header_length(arrived[:PREFIX_BYTES], self._bounds)
            if len(arrived) < end:
                return None
            self._header = parse_header(arrived[PREFIX_BYTES:end], self._bounds)
            del arrived[:end]
        header = self._header
        if len(arrived) < sum(header.sizes):
            return None
        buffers, at = [], 0
        with memoryview(arrived) as view:
            for size in header.sizes:
                buffers.append(bytes(view[at : at + size]))
                at += size
        del arrived[:at]
        self._header = None
        return header.frame(buffers)

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            self._transport.resume_reading()

    def _end(self, error: WorkerError | WorkerTimeoutError) -> None:
        # The first reason is the one that is told.
        if self._error is None:
            self._error = error
        self._full = False
        _wake(self._reader)
        _wake(self._writer)
        with suppress(OSError, RuntimeError):
            self._transport.abort()


def _died() -> WorkerDiedError:
    return WorkerDiedError("the worker closed its channel; try again")


def _wake(waiter: "asyncio.Future[None] | None") -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
