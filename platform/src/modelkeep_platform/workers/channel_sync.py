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
    encode,
    header_length,
    parse_header,
)

_JOIN_BELOW_BYTES: Final = 64 * 1024


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
        pieces = encode(frame, self._bounds)
        if sum(map(len, pieces)) < _JOIN_BELOW_BYTES:
            pieces = [b"".join(pieces)]
        end_s = _end(timeout_s)
        try:
            for piece in pieces:
                self._connection.settimeout(_left(end_s))
                self._connection.sendall(piece)
        except TimeoutError as exc:
            raise WorkerTimeoutError("the worker did not take a message in time") from exc
        except OSError as exc:
            raise WorkerDiedError("the worker closed its channel; try again") from exc

    def wait(self, timeout_s: float) -> bool:
        """Return whether a frame (or the end of the channel) arrives within `timeout_s`."""
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
        length = header_length(bytes(self._exactly(PREFIX_BYTES, end_s)), self._bounds)
        header = parse_header(self._exactly(length, end_s), self._bounds)
        buffers: list[Buffer] = [self._exactly(size, end_s) for size in header.sizes]
        return header.frame(buffers)

    def close(self) -> None:
        """Close this end."""
        self._connection.close()

    def _exactly(self, size: int, end_s: float | None) -> bytearray:
        data = bytearray(size)
        view, filled = memoryview(data), 0
        try:
            while filled < size:
                self._connection.settimeout(_left(end_s))
                count = self._connection.recv_into(view[filled:])
                if count == 0:
                    raise WorkerDiedError("the worker closed its channel; try again")
                filled += count
        except TimeoutError as exc:
            raise WorkerTimeoutError("the worker did not answer in time") from exc
        except OSError as exc:
            raise WorkerDiedError("the worker closed its channel; try again") from exc
        return data


def _end(timeout_s: float | None) -> float | None:
    return None if timeout_s is None else time.monotonic() + timeout_s


def _left(end_s: float | None) -> float | None:
    if end_s is None:
        return None
    left_s = end_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s
