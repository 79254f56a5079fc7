"""The header of a safetensors file, read by our own rules before any library sees the file. Pure.

The file is ``u64 little-endian header length || JSON header || tensors``. The header is strict JSON, every range fits
its tensor's shape, and together the ranges cover the data without gap or overlap. Time is bounded by the header's
length. What the tensors are for is not judged here, and their bytes are not looked at.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from modelkeep_platform.core import strictjson
from modelkeep_platform.core.errors import MalformedError, UnprocessableError

PREFIX_BYTES: Final = 8
WIDTHS: Final[Mapping[str, int]] = {"U8": 1, "I32": 4, "I64": 8, "F32": 4, "F64": 8}
MAX_RANK: Final = 8
_MAX_SIZE: Final = 1 << 48
_SHORTEST: Final = len("{}")
_ENDS: Final = 2


class SafetensorsError(UnprocessableError):
    """The bytes are not a safetensors header; callers say of what file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRange:
    """One tensor: dtype, shape, and where its bytes lie after the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def width(self) -> int:
        """Bytes of one value."""
        return WIDTHS[self.dtype]


def header_end(head: bytes | bytearray, size_bytes: int, *, max_header_bytes: int) -> int | None:
    """Return where the tensors begin, or None if the file does not begin like safetensors.

    Args:
        head: the first bytes of the file, at least 9 unless the file is shorter.
        size_bytes: the length of the file.
        max_header_bytes: the longest header that is read.
    """
    length = int.from_bytes(head[:PREFIX_BYTES], "little")
    fits = len(head) > PREFIX_BYTES and _SHORTEST <= length <= min(max_header_bytes, size_bytes - PREFIX_BYTES)
    return PREFIX_BYTES + length if fits and head[PREFIX_BYTES : PREFIX_BYTES + 1] == b"{" else None


def parse_header(header: bytes, data_bytes: int, *, max_header_bytes: int) -> list[TensorRange]:
    """Return the tensors in the order of their bytes.

    Args:
        header: the JSON, padded with spaces or not.
        data_bytes: how many bytes follow it.
        max_header_bytes: the longest header that is read.

    Raises:
        SafetensorsError: not such a header, or its ranges do not cover the data exactly once.
        TooLargeError: the header is longer than `max_header_bytes`.
    """
    try:
        document = strictjson.loads(header.rstrip(b" "), max_bytes=max_header_bytes, max_depth=4)
    except MalformedError as exc:
        raise SafetensorsError(f"the header is not strict JSON: {exc.message}") from exc
    if not isinstance(document, dict):
        raise SafetensorsError("the header is a JSON object")
    _check_metadata(document.pop("__metadata__", {}))
    tensors = sorted((_tensor(name, entry) for name, entry in document.items()), key=lambda one: (one.begin, one.end))
    position = 0
    for tensor in tensors:
        if tensor.begin != position:
            raise SafetensorsError(f"the ranges leave a gap or overlap at tensor `{tensor.name[:80]}`")
        position = tensor.end
    if position != data_bytes:
        raise SafetensorsError("the ranges of the tensors do not cover the file")
    return tensors


def _check_metadata(metadata: object) -> None:
    # Libraries refuse the whole file over it; what we admit must be readable later.
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise SafetensorsError("`__metadata__` is an object of strings")


def _tensor(name: str, entry: Any) -> TensorRange:  # noqa: ANN401 -- parsed JSON
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise SafetensorsError(f"the entry of tensor `{name[:80]}` has dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in WIDTHS:
        raise SafetensorsError(f"the dtype of tensor `{name[:80]}` is one of {', '.join(WIDTHS)}")
    # INVARIANT: few dimensions before they are multiplied; a million of them take minutes.
    if not (_naturals(shape, MAX_RANK) and _naturals(offsets, _ENDS) and len(offsets) == _ENDS):
        raise SafetensorsError(
            f"shape and offsets of tensor `{name[:80]}` are natural numbers, at most {MAX_RANK} dimensions"
        )
    if offsets[1] - offsets[0] != math.prod(shape) * WIDTHS[dtype]:
        raise SafetensorsError(f"the range of tensor `{name[:80]}` does not fit its shape")
    return TensorRange(name=name, dtype=dtype, shape=tuple(shape), begin=offsets[0], end=offsets[1])


def _naturals(value: object, most: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= most
        and all(isinstance(item, int) and not isinstance(item, bool) and 0 <= item < _MAX_SIZE for item in value)
    )
