"""Frames over a socket, blocking, with deadlines: for training, and for the workers' own end."""

import select
import socket
import time
from typing import Final

from modelkeep_platform.workers.errors import WorkerDiedError, WorkerTimeoutError
from modelkeep_platform.workers.frames import (
    DEFAULT_BOUNDS,
    PREFIX_BYTES,
    Bounds,
    Buffer,
    Frame,
    header_length,
    parse_header,
    pieces_to_send,
)

_READ_AHEAD_BYTES: Final = 64 * 1024


class SyncChannel:
    """One end of a socket pair, used by one thread at a time.

    After any error the channel is of no further use: part of a frame may have passed. `wait` is how to look for
    a frame without that risk.

    Args:
        connection: the socket.
        bounds: the largest frame accepted and sent.
    """

    def __init__(self, connection: socket.socket, *, bounds: Bounds = DEFAULT_BOUNDS) -> None:
        self._connection = connection
        self._bounds = bounds
        self._ahead = bytearray()
        self._blocking = False

    def send(self, frame: Frame, *, timeout_s: float | None = None) -> None:
        """Send `frame`.

        Args:
            frame: what to say.
            timeout_s: for the whole frame; None waits as long as it takes.

        Raises:
            FrameError: it is past the bounds; nothing was sent.
            WorkerTimeoutError: the other side did not take it in time.
            WorkerDiedError: the other side is gone.
        """
        pieces = pieces_to_send(frame, self._bounds)
        end_s = _end(timeout_s)
        try:
            for piece in pieces:
                self._set_timeout(end_s)
                self._connection.sendall(piece)
        except TimeoutError as exc:
            raise WorkerTimeoutError("the worker did not take a message in time") from exc
        except OSError as exc:
            raise WorkerDiedError("the worker closed its channel; try again") from exc

    def wait(self, timeout_s: float) -> bool:
        """Return whether a frame (or the end of the channel) arrives within `timeout_s`."""
        if self._ahead:
            return True
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))

    def receive(self, *, timeout_s: float | None = None) -> Frame:
        """Return the next frame.

        Raises:
            FrameError: the bytes are not a frame within the bounds.
            WorkerTimeoutError: it did not arrive whole in time.
            WorkerDiedError: the other side is gone.
        """
        end_s = _end(timeout_s)
        length = header_length(self._exactly(PREFIX_BYTES, end_s), self._bounds)
        header = parse_header(self._exactly(length, end_s), self._bounds)
        buffers: list[Buffer] = [self._exactly(size, end_s) for size in header.sizes]
        return header.frame(buffers)

    def close(self) -> None:
        """Close this end."""
        self._connection.close()

    def _exactly(self, size: int, end_s: float | None) -> bytearray:
        """Return the next `size` bytes. Small pieces are read together: a small frame is one system call."""
        try:
            if size > len(self._ahead) and size < _READ_AHEAD_BYTES:
                self._fill(size, end_s)
            data, self._ahead = self._ahead[:size], self._ahead[size:]
            if len(data) < size:
                data = self._read_on(data, size, end_s)
        except TimeoutError as exc:
            raise WorkerTimeoutError("the worker did not answer in time") from exc
        except OSError as exc:
            raise WorkerDiedError("the worker closed its channel; try again") from exc
        return data

    def _fill(self, size: int, end_s: float | None) -> None:
        while len(self._ahead) < size:
            self._set_timeout(end_s)
            arrived = self._connection.recv(_READ_AHEAD_BYTES)
            if not arrived:
                raise WorkerDiedError("the worker closed its channel; try again")
            self._ahead += arrived

    def _read_on(self, begun: bytearray, size: int, end_s: float | None) -> bytearray:
        data, filled = bytearray(size), len(begun)
        data[:filled] = begun
        with memoryview(data) as view:
            while filled < size:
                self._set_timeout(end_s)
                count = self._connection.recv_into(view[filled:])
                if count == 0:
                    raise WorkerDiedError("the worker closed its channel; try again")
                filled += count
        return data

    def _set_timeout(self, end_s: float | None) -> None:
        # A system call each time; who waits for ever says so once.
        if end_s is not None or not self._blocking:
            self._connection.settimeout(_left(end_s))
            self._blocking = end_s is None


def _end(timeout_s: float | None) -> float | None:
    return None if timeout_s is None else time.monotonic() + timeout_s


def _left(end_s: float | None) -> float | None:
    if end_s is None:
        return None
    left_s = end_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s
