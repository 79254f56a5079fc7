"""Frames: what the platform and its workers say to each other, checked before it is used.

    frame  = length of header (32 bits, big-endian) || header || buffer_0 || buffer_1 ...
    header = MessagePack array [kind, id, [size of each buffer], fields]

Buffers are raw bytes (tensors, chunks of weights), never parsed here. A frame is refused before memory is taken
for it when its header, the number of its buffers or any size is past the bounds. Nothing is ever unpickled. Pure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, TypeVar

import msgspec

from modelkeep_platform.core.limits import MIB
from modelkeep_platform.workers.errors import FrameError

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Raw bytes; a memoryview is contiguous and of format ``B``."""

Wanted = TypeVar("Wanted")

PREFIX_BYTES: Final = 4
_JOIN_BELOW_BYTES: Final = 64 * 1024
_MAX_KIND_CHARS: Final = 32
_MAX_ID: Final = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The largest frame one side accepts.

    Args:
        header_bytes: of the header.
        buffers: how many.
        total_bytes: of all buffers together.
    """

    header_bytes: int = 4 * MIB
    buffers: int = 1024
    total_bytes: int = 256 * MIB


DEFAULT_BOUNDS: Final = Bounds()


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One message.

    Args:
        kind: what it is, at most 32 characters.
        id: pairs an answer with its request.
        fields: values that MessagePack can carry.
        buffers: raw bytes beside them.
    """

    kind: str
    id: int = 0
    fields: Mapping[str, Any] = field(default_factory=dict)
    buffers: Sequence[Buffer] = ()

    def read(self, wanted: type[Wanted]) -> Wanted:
        """Return `fields` as the type `wanted`.

        Raises:
            FrameError: a field is missing or of another type.
        """
        try:
            return msgspec.convert(self.fields, wanted, strict=True)
        except msgspec.ValidationError as exc:
            raise FrameError(f"the fields of a `{self.kind}` frame are not what is wanted") from exc


class Header(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The part of a frame that is parsed."""

    kind: str
    id: int
    sizes: tuple[int, ...]
    fields: dict[str, Any]

    def frame(self, buffers: Sequence[Buffer]) -> Frame:
        """Return the frame, once its buffers have arrived."""
        return Frame(kind=self.kind, id=self.id, fields=self.fields, buffers=buffers)


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Header)


def encode(frame: Frame, bounds: Bounds = DEFAULT_BOUNDS) -> list[Buffer]:
    """Return the pieces of `frame` in order, buffers not copied.

    Raises:
        FrameError: it is past `bounds`.
    """
    sizes = tuple(len(buffer) for buffer in frame.buffers)
    _check(frame.kind, frame.id, sizes, bounds)
    header = _encoder.encode(Header(kind=frame.kind, id=frame.id, sizes=sizes, fields=dict(frame.fields)))
    if len(header) > bounds.header_bytes:
        raise FrameError(f"the header of a `{frame.kind}` frame is larger than {bounds.header_bytes} bytes")
    return [len(header).to_bytes(PREFIX_BYTES, "big") + header, *frame.buffers]


def pieces_to_send(frame: Frame, bounds: Bounds = DEFAULT_BOUNDS) -> list[Buffer]:
    """Return the pieces of `frame` as they are best sent: a small one whole, so that it is one system call.

    Raises:
        FrameError: it is past `bounds`.
    """
    pieces = encode(frame, bounds)
    return [b"".join(pieces)] if sum(map(len, pieces)) < _JOIN_BELOW_BYTES else pieces


def header_length(prefix: bytes | bytearray, bounds: Bounds = DEFAULT_BOUNDS) -> int:
    """Return how many bytes of header follow `prefix` (4 bytes).

    Raises:
        FrameError: none, or more than `bounds` allow.
    """
    length = int.from_bytes(prefix, "big")
    if len(prefix) != PREFIX_BYTES or not 0 < length <= bounds.header_bytes:
        raise FrameError("a frame begins with an impossible length")
    return length


def parse_header(raw: bytes | bytearray, bounds: Bounds = DEFAULT_BOUNDS) -> Header:
    """Return the header in `raw`, its sizes checked.

    Raises:
        FrameError: not a header, or it announces more than `bounds` allow.
    """
    try:
        header = _decoder.decode(raw)
    except (msgspec.DecodeError, RecursionError, ValueError) as exc:
        raise FrameError("a frame has no readable header") from exc
    _check(header.kind, header.id, header.sizes, bounds)
    return header


def _check(kind: str, number: int, sizes: Sequence[int], bounds: Bounds) -> None:
    if not 0 < len(kind) <= _MAX_KIND_CHARS:
        raise FrameError(f"the kind of a frame has 1 to {_MAX_KIND_CHARS} characters")
    if not 0 <= number <= _MAX_ID:
        raise FrameError("the id of a frame is a non-negative 63-bit number")
    if len(sizes) > bounds.buffers:
        raise FrameError(f"a frame has more than {bounds.buffers} buffers")
    if any(size < 0 for size in sizes) or sum(sizes) > bounds.total_bytes:
        raise FrameError(f"the buffers of a frame are larger than {bounds.total_bytes} bytes")
