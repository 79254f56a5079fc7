"""Admission of weights: the safetensors header, checked by our own rules before any library sees it.

Every tensor the graph wants is there with its dtype and shape, no other is, and the ranges cover the data without gap
or overlap (`core.safetensors`). Pickles and archives are refused by their first bytes, whatever they are called.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Final

from modelkeep_platform.core import safetensors
from modelkeep_platform.core.errors import UnprocessableError
from modelkeep_platform.core.limits import MAX_GRAPH_BYTES
from modelkeep_platform.core.safetensors import PREFIX_BYTES, SafetensorsError, TensorRange
from modelkeep_platform.models.graph.description import DTYPES

_DTYPES: Final = {"F32": "float32", "F64": "float64", "I64": "int64", "I32": "int32", "U8": "uint8"}
_MAGIC: Final = (
    (b"\x80", "a pickle"),
    (b"PK\x03\x04", "a zip archive (torch.save makes one, with a pickle inside)"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a rar archive"),
    (b"\x93NUMPY", "a numpy file"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ", "an xz file"),
    (b"\x5d\x00\x00", "an lzma file"),
    (b"\x28\xb5\x2f\xfd", "a zstandard file"),
    (b"\x04\x22\x4d\x18", "an lz4 file"),
    *(
        (bytes((0x78, level)), "a zlib stream (joblib makes one, with a pickle inside)")
        for level in b"\x01\x5e\x9c\xda"
    ),
    (b"ZF", "a zlib file of an old joblib, with a pickle inside"),
    (b"\x89HDF", "an HDF5 file"),
)
_TAR: Final = slice(257, 262)


class WeightsError(UnprocessableError):
    """The weights are not a safetensors file of this graph."""

    code = "invalid_weights"


def header_bytes(head: bytes, total_bytes: int) -> int:
    """Return how many bytes of the file the length and the header take.

    Args:
        head: the first bytes of the file, at least 262 unless the file is shorter.
        total_bytes: the length of the whole file.

    Raises:
        UnprocessableError: ``pickle_refused`` for pickles and archives, ``invalid_weights`` for the rest.
    """
    end = safetensors.header_end(head, total_bytes, max_header_bytes=MAX_GRAPH_BYTES)
    if end is None:
        refuse_foreign(head)
        raise WeightsError("the weights are not a safetensors file; save them with `safetensors.torch.save_file`")
    return end


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


def read_header(header: bytes, data_bytes: int) -> list[TensorRange]:
    """Return the tensors in the order of their bytes.

    Args:
        header: the JSON header.
        data_bytes: how many bytes follow it.

    Raises:
        WeightsError: not a header, or its ranges do not cover the data exactly once.
    """
    try:
        return safetensors.parse_header(header, data_bytes, max_header_bytes=MAX_GRAPH_BYTES)
    except SafetensorsError as exc:
        raise WeightsError(f"the weights are refused: {exc.message}") from exc


def check(header: bytes, data_bytes: int, expected: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """Check that the weights hold exactly the tensors of the graph.

    Args:
        header: the JSON header.
        data_bytes: how many bytes follow it.
        expected: the graph's parameters, name to dtype and shape.

    Raises:
        WeightsError: a tensor is missing, unknown, or of another dtype or shape.
    """
    tensors = {tensor.name: tensor for tensor in read_header(header, data_bytes)}
    for name, (dtype, shape) in expected.items():
        found = tensors.get(name)
        if found is None:
            raise WeightsError(f"the weights lack the tensor `{name}` of the graph")
        if (_DTYPES[found.dtype], found.shape) != (dtype, shape):
            raise WeightsError(
                f"the tensor `{name}` is {dtype} {list(shape)} in the graph, "
                f"{_DTYPES[found.dtype]} {list(found.shape)} in the weights"
            )
    for name in tensors:
        if name not in expected:
            raise WeightsError(f"the graph has no parameter `{name[:80]}`; leave it out of the weights")


def check_stream(
    head: bytes, rest: Iterator[bytes], total_bytes: int, expected: Mapping[str, tuple[str, tuple[int, ...]]]
) -> bytes:
    """Check a file that comes in chunks, reading no further than the chunk in which its header ends.

    Args:
        head: the first chunk.
        rest: the chunks after it.
        total_bytes: the length of the whole file.
        expected: the graph's parameters, name to dtype and shape.

    Returns:
        All that was read of it.

    Raises:
        UnprocessableError: as for `header_bytes` and `check`.
    """
    end = header_bytes(head, total_bytes)
    while len(head) < end and (more := next(rest, None)) is not None:
        head += more
    check(head[PREFIX_BYTES:end], total_bytes - end, expected)
    return head


def admitted(chunks: Iterable[bytes], expected: Mapping[str, tuple[str, tuple[int, ...]]]) -> Iterator[bytes]:
    """Yield what a worker sends, after checking that it holds exactly the tensors expected.

    Args:
        chunks: a safetensors file of unknown length.
        expected: name to dtype and shape: a graph's parameters, or more.

    Raises:
        UnprocessableError: it does not; what was yielded before must not become visible.
    """
    source = iter(chunks)
    head = next(source, b"")
    # Its length is what its header and what is expected say, whatever is sent.
    data_bytes = sum(math.prod(shape) * DTYPES[dtype] for dtype, shape in expected.values())
    total = PREFIX_BYTES + int.from_bytes(head[:PREFIX_BYTES], "little") + data_bytes
    head = check_stream(head, source, total, expected)
    count = 0
    for chunk in chain([head], source):
        count += len(chunk)
        if count > total:
            break  # nothing past the end is written: a worker could fill the disk
        yield chunk
    if count != total:
        raise WeightsError("the weights are shorter or longer than their header says")


__all__ = [
    "PREFIX_BYTES",
    "WeightsError",
    "admitted",
    "check",
    "check_stream",
    "header_bytes",
    "read_header",
    "refuse_foreign",
]
