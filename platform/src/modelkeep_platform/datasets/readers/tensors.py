"""The header of a safetensors file that holds a dataset, checked by our own rules. Pure.

The file is ``u64 little-endian header length || JSON header || tensors``. Ranges cover the data without gap or
overlap. Nothing else is opened: pickles and archives do not begin like this.
"""

import math
from dataclasses import dataclass
from typing import Any, Final

from modelkeep_platform.core import strictjson
from modelkeep_platform.core.errors import MalformedError
from modelkeep_platform.core.limits import MIB
from modelkeep_platform.datasets.spec import InvalidDatasetError

PREFIX_BYTES: Final = 8
MAX_HEADER_BYTES: Final = 1 * MIB
WIDTHS: Final = {"U8": 1, "I32": 4, "I64": 8, "F32": 4, "F64": 8}
_MAX_SIZE: Final = 1 << 48
_ENDS: Final = 2


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


def header_end(head: bytes | bytearray, size_bytes: int) -> int:
    """Return where the tensors begin.

    Args:
        head: at least the first 8 bytes, or the whole file if it is shorter.
        size_bytes: the length of the file.

    Raises:
        InvalidDatasetError: it does not begin like a safetensors file.
    """
    length = int.from_bytes(head[:PREFIX_BYTES], "little")
    if len(head) < PREFIX_BYTES or not _ENDS <= length <= min(MAX_HEADER_BYTES, size_bytes - PREFIX_BYTES):
        raise InvalidDatasetError(
            "the file is not safetensors; save arrays with `safetensors.numpy.save` (pickles are never opened)"
        )
    return PREFIX_BYTES + length


def parse_header(header: bytes, data_bytes: int) -> list[TensorRange]:
    """Return the tensors in the order of their bytes.

    Args:
        header: the JSON.
        data_bytes: how many bytes follow it.

    Raises:
        InvalidDatasetError: not such a header, or its ranges do not cover the data exactly once.
    """
    try:
        document = strictjson.loads(header.rstrip(b" "), max_bytes=MAX_HEADER_BYTES, max_depth=4)
    except MalformedError as exc:
        raise InvalidDatasetError("the header of the file is not strict JSON") from exc
    if not isinstance(document, dict):
        raise InvalidDatasetError("the header of the file is a JSON object")
    document.pop("__metadata__", None)
    tensors = sorted((_tensor(name, entry) for name, entry in document.items()), key=lambda one: (one.begin, one.end))
    position = 0
    for tensor in tensors:
        if tensor.begin != position:
            raise InvalidDatasetError(f"the ranges leave a gap or overlap at `{tensor.name[:80]}`")
        position = tensor.end
    if position != data_bytes:
        raise InvalidDatasetError("the ranges of the tensors do not cover the file")
    return tensors


def _tensor(name: str, entry: Any) -> TensorRange:  # noqa: ANN401 -- parsed JSON
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise InvalidDatasetError(f"the entry of `{name[:80]}` has dtype, shape and data_offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in WIDTHS:
        raise InvalidDatasetError(f"the dtype of `{name[:80]}` is one of {', '.join(WIDTHS)}")
    if not (_naturals(shape) and _naturals(offsets) and len(offsets) == _ENDS):
        raise InvalidDatasetError(f"shape and offsets of `{name[:80]}` are natural numbers")
    if offsets[1] - offsets[0] != math.prod(shape) * WIDTHS[entry["dtype"]]:
        raise InvalidDatasetError(f"the range of `{name[:80]}` does not fit its shape")
    return TensorRange(name=name, dtype=entry["dtype"], shape=tuple(shape), begin=offsets[0], end=offsets[1])


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, int) and not isinstance(item, bool) and 0 <= item < _MAX_SIZE for item in value
    )
