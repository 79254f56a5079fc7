"""Frames over a socket for asyncio: for serving."""

import asyncio
import socket
from contextlib import suppress
from typing import Final, Self

from modelkeep_platform.workers.errors import WorkerDiedError
from modelkeep_platform.workers.frames import (
    DEFAULT_BOUNDS,
    PREFIX_BYTES,
    Bounds,
    Buffer,
    Frame,
    encode,
    header_length,
    parse_header,
)

_JOIN_BELOW_BYTES: Final = 64 * 1024
_READ_AHEAD_BYTES: Final = 1024 * 1024


class AsyncChannel:
    """One end of a socket pair, used by one task at a time; time limits are the caller's (`asyncio.timeout`).

    After any error, or a time-out, the channel is of no further use: part of a frame may have passed.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, bounds: Bounds) -> None:
        self._reader = reader
        self._writer = writer
        self._bounds = bounds

    @classmethod
    async def open(cls, connection: socket.socket, *, bounds: Bounds = DEFAULT_BOUNDS) -> Self:
        """Take over `connection`."""
        reader, writer = await asyncio.open_connection(sock=connection, limit=_READ_AHEAD_BYTES)
        return cls(reader, writer, bounds)

    async def send(self, frame: Frame) -> None:
        """Send `frame`; returns when the socket has room again.

        Raises:
            FrameError: it is past the bounds; nothing was sent.
            WorkerDiedError: the other side is gone.
        """
        pieces = encode(frame, self._bounds)
        if sum(map(len, pieces)) < _JOIN_BELOW_BYTES:
            pieces = [b"".join(pieces)]
        try:
            for piece in pieces:
                self._writer.write(piece)
                await self._writer.drain()
        except OSError as exc:
            raise WorkerDiedError("the worker closed its channel; try again") from exc

    async def receive(self) -> Frame:
        """Return the next frame.

        Raises:
            FrameError: the bytes are not a frame within the bounds.
            WorkerDiedError: the other side is gone.
        """
        try:
            length = header_length(await self._reader.readexactly(PREFIX_BYTES), self._bounds)
            header = parse_header(await self._reader.readexactly(length), self._bounds)
            buffers: list[Buffer] = [await self._reader.readexactly(size) for size in header.sizes]
        except (asyncio.IncompleteReadError, OSError) as exc:
            raise WorkerDiedError("the worker closed its channel; try again") from exc
        return header.frame(buffers)

    def close(self) -> None:
        """Close this end at once; what was not sent is dropped."""
        with suppress(OSError, RuntimeError):
            self._writer.transport.abort()
