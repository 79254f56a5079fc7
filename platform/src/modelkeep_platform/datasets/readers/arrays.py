"""Arrays: a safetensors file with `features` or `images`, and `target`. Its header is checked by our own rules."""

import math
from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from modelkeep_platform.core.limits import MIB
from modelkeep_platform.datasets.readers.errors import BadCellError
from modelkeep_platform.datasets.readers.tensors import (
    HEAD_BYTES,
    PREFIX_BYTES,
    TensorRange,
    header_end,
    parse_header,
)
from modelkeep_platform.datasets.spec import Column, DatasetSpec, InvalidDatasetError

_DTYPES: Final = {"F32": "<f4", "F64": "<f8", "I64": "<i8", "I32": "<i4", "U8": "|u1"}
_PIECE_BYTES: Final = 4 * MIB
_TARGET: Final = "target"


def check(spec: DatasetSpec, chunks: Iterable[bytes], size_bytes: int) -> None:
    """Check every cell, holding a few MiB at a time; see `readers.check`."""
    source = _Source(chunks)
    begin = header_end(source.peek(HEAD_BYTES), size_bytes)
    tensors = parse_header(source.take(begin)[PREFIX_BYTES:], size_bytes - begin)
    _check_shapes(spec, tensors)
    for tensor in tensors:
        for first, rows in _pieces(tensor, source):
            _check_rows(spec, tensor.name, rows, first)


def read(
    spec: DatasetSpec, chunks: Iterable[bytes]
) -> tuple[NDArray[np.float32], NDArray[np.int64] | NDArray[np.float32] | None]:
    """Return features and targets; see `readers.read`."""
    raw = b"".join(chunks)
    begin = header_end(raw, len(raw))
    tensors = parse_header(raw[PREFIX_BYTES:begin], len(raw) - begin)
    _check_shapes(spec, tensors)
    found: dict[str, NDArray[Any]] = {}
    for tensor in tensors:
        values = np.frombuffer(raw[begin + tensor.begin : begin + tensor.end], dtype=_DTYPES[tensor.dtype])
        found[tensor.name] = values.reshape(tensor.shape)
        _check_rows(spec, tensor.name, values.reshape(tensor.shape[0], -1), 0)
    features = found[_main(spec)].astype(np.float32)
    if _TARGET not in found:
        return features, None
    target = found[_TARGET]
    return features, target.astype(np.int64) if spec.class_count() is not None else target.astype(np.float32)


class _Source:
    """Bytes of a stream, taken in pieces."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks: Iterator[bytes] = iter(chunks)
        self._held = bytearray()

    def peek(self, count: int) -> bytes:
        """Return the next `count` bytes, or as many as there are."""
        while len(self._held) < count and (chunk := next(self._chunks, None)) is not None:
            self._held += chunk
        return bytes(self._held[:count])

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes and go on."""
        taken = self.peek(count)
        if len(taken) < count:
            raise InvalidDatasetError("the arrays are shorter than their header says")
        del self._held[:count]
        return taken


def _pieces(tensor: TensorRange, source: _Source) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield the number of the first row, and rows ``[n, values]``, piece by piece."""
    values = math.prod(tensor.shape[1:])
    at_once = max(1, _PIECE_BYTES // (values * tensor.width))
    for first in range(0, tensor.shape[0], at_once):
        count = min(at_once, tensor.shape[0] - first)
        raw = source.take(count * values * tensor.width)
        yield first, np.frombuffer(raw, dtype=_DTYPES[tensor.dtype]).reshape(count, values)


def _main(spec: DatasetSpec) -> str:
    return "images" if spec.schema.images is not None else "features"


def _check_shapes(spec: DatasetSpec, tensors: list[TensorRange]) -> None:
    main = _main(spec)
    by_name = {tensor.name: tensor for tensor in tensors}
    has_target = spec.class_count() is not None or spec.target() is not None
    wanted = {main, _TARGET} if has_target else {main}
    if set(by_name) != wanted:
        raise InvalidDatasetError(f"the arrays are {' and '.join(f'`{name}`' for name in sorted(wanted))}")
    shape = by_name[main].shape
    if not shape or shape[0] < 1 or shape[1:] != spec.feature_shape():
        raise InvalidDatasetError(
            f"`{main}` has the shape [N, {', '.join(map(str, spec.feature_shape()))}], N at least 1"
        )
    if has_target and by_name[_TARGET].shape != shape[:1]:
        raise InvalidDatasetError("`target` has one number for each record")


def _check_rows(spec: DatasetSpec, name: str, rows: NDArray[Any], first: int) -> None:
    low, high, columns = _limits(spec, name)
    inside = (rows >= low) & (rows <= high)  # NaN is inside nothing
    whole = [at for at, column in enumerate(columns) if column.type != "float"]
    if name == _TARGET and spec.class_count() is not None:
        whole = [0]
    fits = inside.copy()
    fits[:, whole] &= rows[:, whole] == np.floor(rows[:, whole])
    if fits.all():
        return
    row, place = (int(at) for at in np.argwhere(~fits)[0])
    reason = "not a whole number" if inside[row, place] else "outside the declared bounds"
    if not math.isfinite(float(rows[row, place])):
        reason = "not a finite number"
    raise BadCellError(first + row + 1, _place(spec, name, columns, place), reason)


def _place(spec: DatasetSpec, name: str, columns: list[Column], place: int) -> str:
    if columns:
        return columns[place].name
    if name == _TARGET:
        return spec.schema.target or _TARGET
    return f"images{[int(at) for at in np.unravel_index(place, spec.feature_shape())]}"


def _limits(spec: DatasetSpec, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64], list[Column]]:
    """Return lower and upper bounds of the values of one row, and the columns they stand for."""
    classes, images = spec.class_count(), spec.schema.images
    if name == _TARGET and classes is not None:
        return np.array([0.0]), np.array([classes - 1.0]), []
    if images is not None:
        return np.array([images.min]), np.array([images.max]), []
    target = spec.target()
    columns = spec.features() if name != _TARGET else [] if target is None else [target]
    bounds = np.array([column.bounds() for column in columns], dtype=np.float64)
    return bounds[:, 0], bounds[:, 1], columns
