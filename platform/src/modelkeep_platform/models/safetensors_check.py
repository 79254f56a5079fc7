"""Admission of weights: the safetensors header, checked by our own rules before any library sees it.

The file is ``u64 little-endian header length || JSON header || tensors``. Every tensor the graph wants is there with
its dtype and shape, no other is, and the ranges cover the data without gap or overlap. Pickles and archives are
refused by their first bytes, whatever they are called.
"""

import math
from collections.abc import Mapping
from typing import Any, Final

from modelkeep_platform.core import strictjson
from modelkeep_platform.core.errors import MalformedError, UnprocessableError
from modelkeep_platform.core.limits import MAX_GRAPH_BYTES

_DTYPES: Final = {"F32": ("float32", 4), "F64": ("float64", 8), "I64": ("int64", 8), "U8": ("uint8", 1)}
_MAGIC: Final = (
    (b"\x80", "a pickle"),
    (b"PK\x03\x04", "a zip archive (torch.save makes one, with a pickle inside)"),
    (b"\x1f\x8b", "a gzip file"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"\x93NUMPY", "a numpy file"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ", "an xz file"),
    (b"x\x9c", "a zlib stream (joblib makes one, with a pickle inside)"),
    (b"\x89HDF", "an HDF5 file"),
)
_TAR: Final = slice(257, 262)


class WeightsError(UnprocessableError):
    """The weights are not a safetensors file of this graph."""

    code = "invalid_weights"


def header_bytes(head: bytes, total_bytes: int) -> int:
    """Return how many bytes of the file the length and the header take.

    Args:
        head: the first bytes of the file, at least 8 unless the file is shorter.
        total_bytes: the length of the whole file.

    Raises:
        UnprocessableError: ``pickle_refused`` for pickles and archives, ``invalid_weights`` for the rest.
    """
    length = int.from_bytes(head[:8], "little")
    plausible = len(head) >= 8 and 2 <= length <= min(MAX_GRAPH_BYTES, total_bytes - 8)  # noqa: PLR2004
    if not plausible or head[8:9] != b"{":
        refuse_foreign(head)
        raise WeightsError("the weights are not a safetensors file; save them with `safetensors.torch.save_file`")
    return 8 + length


def refuse_foreign(head: bytes) -> None:
    """Raise for a pickle or an archive.

    Raises:
        UnprocessableError: ``pickle_refused``.
    """
    named = next((name for magic, name in _MAGIC if head.startswith(magic)), None)
    if head[_TAR] == b"ustar":
        named = "a tar archive"
    if named is not None:
        raise UnprocessableError(
            f"this is {named}; such files can hold code and are never opened here: convert it to safetensors",
            code="pickle_refused",
        )


def read_header(header: bytes, data_bytes: int) -> dict[str, tuple[str, tuple[int, ...], int, int]]:
    """Return each tensor's dtype, shape and range.

    Args:
        header: the JSON header.
        data_bytes: how many bytes follow it.

    Raises:
        WeightsError: not a header, or its ranges do not cover the data exactly once.
    """
    try:
        document = strictjson.loads(header.rstrip(b" "), max_bytes=MAX_GRAPH_BYTES, max_depth=4)
    except MalformedError as exc:
        raise WeightsError(f"the header of the weights is not strict JSON: {exc.message}") from exc
    if not isinstance(document, dict):
        raise WeightsError("the header of the weights is a JSON object")
    document.pop("__metadata__", None)
    tensors = {name: _entry(name, entry) for name, entry in document.items()}
    position = 0
    for name, (_, _, begin, end) in sorted(tensors.items(), key=lambda item: (item[1][2], item[1][3])):
        if begin != position:
            raise WeightsError(f"the ranges of the weights leave a gap or overlap at tensor `{name[:80]}`")
        position = end
    if position != data_bytes:
        raise WeightsError("the ranges of the weights do not cover the file")
    return tensors


def check(header: bytes, data_bytes: int, expected: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """Check that the weights hold exactly the tensors of the graph.

    Args:
        header: the JSON header.
        data_bytes: how many bytes follow it.
        expected: the graph's parameters, name to dtype and shape.

    Raises:
        WeightsError: a tensor is missing, unknown, or of another dtype or shape.
    """
    tensors = read_header(header, data_bytes)
    for name, (dtype, shape) in expected.items():
        if name not in tensors:
            raise WeightsError(f"the weights lack the tensor `{name}` of the graph")
        if tensors[name][:2] != (dtype, shape):
            raise WeightsError(f"the tensor `{name}` is {dtype} {list(shape)} in the graph; the weights differ")
    for name in tensors:
        if name not in expected:
            raise WeightsError(f"the graph has no parameter `{name[:80]}`; leave it out of the weights")


def _entry(name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:  # noqa: ANN401 -- parsed JSON
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise WeightsError(f"the entry of tensor `{name[:80]}` has dtype, shape and data_offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if entry["dtype"] not in _DTYPES:
        raise WeightsError(f"the tensor `{name[:80]}` has a dtype other than {', '.join(_DTYPES)}")
    if not (_naturals(shape) and _naturals(offsets) and len(offsets) == 2):  # noqa: PLR2004 -- begin and end
        raise WeightsError(f"shape and offsets of tensor `{name[:80]}` are natural numbers")
    dtype, width = _DTYPES[entry["dtype"]]
    if offsets[1] - offsets[0] != math.prod(shape) * width:
        raise WeightsError(f"the range of tensor `{name[:80]}` does not fit its shape")
    return dtype, tuple(shape), offsets[0], offsets[1]


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 1 << 48 for item in value
    )
