"""Writes arrays as safetensors: an 8-byte little-endian length, a JSON header, then little-endian buffers.

Only what uploads of datasets need: numpy arrays or nested lists in, bytes out.
"""

from __future__ import annotations

import json
import struct
import sys
from array import array
from collections.abc import Mapping
from typing import Any, Final

from modelkeep._core.arrays import flat_of, is_numpy, shape_of
from modelkeep.errors import ConfigurationError

_DTYPES: Final = {
    "float64": ("F64", "d"),
    "float32": ("F32", "f"),
    "int64": ("I64", "q"),
    "int32": ("I32", "i"),
    "uint8": ("U8", "B"),
}
_ALIGNMENT: Final = 8


def write(tensors: Mapping[str, Any], *, dtypes: Mapping[str, str]) -> bytes:
    """Return `tensors` as one safetensors file.

    Args:
        tensors: numpy arrays or nested lists, by name.
        dtypes: the dtype each is written in, such as ``float32``.

    Raises:
        ConfigurationError: a value does not fit its dtype, or rows have different lengths.
    """
    header: dict[str, Any] = {}
    buffers: list[bytes] = []
    offset = 0
    # Wider elements first keep every buffer aligned.
    for name in sorted(tensors, key=lambda name: (-array(_DTYPES[dtypes[name]][1]).itemsize, name)):
        code, _ = _DTYPES[dtypes[name]]
        data = _bytes_of(tensors[name], dtypes[name], name)
        header[name] = {
            "dtype": code,
            "shape": shape_of(tensors[name]),
            "data_offsets": [offset, offset + len(data)],
        }
        buffers.append(data)
        offset += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return b"".join([struct.pack("<Q", len(text)), text, *buffers])


def _bytes_of(value: object, dtype: str, name: str) -> bytes:
    if is_numpy(value):
        numpy = sys.modules["numpy"]
        little = numpy.dtype(dtype).newbyteorder("<")
        converted = numpy.ascontiguousarray(value, dtype=little)
        if dtype not in {"float32", "float64"} and not numpy.array_equal(converted, value):
            raise ConfigurationError(f"`{name}` holds values that `{dtype}` cannot")
        data: bytes = converted.tobytes()
        return data
    try:
        buffer = array(_DTYPES[dtype][1], flat_of(value))
    except (TypeError, OverflowError) as exc:
        raise ConfigurationError(f"`{name}` holds values that `{dtype}` cannot: {exc}") from exc
    if sys.byteorder == "big":
        buffer.byteswap()
    return buffer.tobytes()
