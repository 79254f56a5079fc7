"""Arrays: a safetensors file with `features` or `images`, and `target`. Its header is checked by our own rules."""

import math
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from modelkeep_platform.core import strictjson
from modelkeep_platform.core.errors import MalformedError
from modelkeep_platform.datasets.readers.errors import BadCellError
from modelkeep_platform.datasets.spec import DatasetSpec, InvalidDatasetError

_DTYPES: Final = {"F32": "<f4", "F64": "<f8", "I64": "<i8", "I32": "<i4", "U8": "|u1"}
_MAX_HEADER: Final = 64 * 1024


def read(
    spec: DatasetSpec, chunks: Iterable[bytes]
) -> tuple[NDArray[np.float32], NDArray[np.int64] | NDArray[np.float32] | None]:
    """Return features and targets; see `readers.read`."""
    tensors = _tensors(b"".join(chunks))
    main = "images" if spec.schema.images is not None else "features"
    has_target = spec.class_count() is not None or spec.target() is not None
    wanted = {main, "target"} if has_target else {main}
    if set(tensors) != wanted:
        raise InvalidDatasetError(f"the arrays are {' and '.join(f'`{name}`' for name in sorted(wanted))}")
    features = tensors[main]
    if features.ndim < 2 or features.shape[1:] != spec.feature_shape() or not len(features):  # noqa: PLR2004
        raise InvalidDatasetError(
            f"`{main}` has the shape [N, {', '.join(map(str, spec.feature_shape()))}], N at least 1"
        )
    _check_features(spec, features)
    target = _target(spec, tensors["target"], len(features)) if has_target else None
    return features.astype(np.float32), target


def _check_features(spec: DatasetSpec, features: NDArray[Any]) -> None:
    if spec.schema.images is not None:
        image = spec.schema.images
        bad = ~((features >= image.min) & (features <= image.max))
        if bad.any():
            raise BadCellError(int(np.argwhere(bad)[0][0]) + 1, "images", "a pixel is outside the declared bounds")
        return
    for at, column in enumerate(spec.features()):
        values = features[:, at]
        low, high = (0, len(column.categories) - 1) if column.categories else (column.min, column.max)
        bad = ~((values >= low) & (values <= high))
        if bad.any():
            raise BadCellError(int(np.argmax(bad)) + 1, column.name, "outside the declared bounds")
        if column.type != "float" and (values != np.floor(values)).any():
            raise BadCellError(int(np.argmax(values != np.floor(values))) + 1, column.name, "not a whole number")


def _target(spec: DatasetSpec, target: NDArray[Any], count: int) -> NDArray[np.int64] | NDArray[np.float32]:
    if target.shape != (count,):
        raise InvalidDatasetError("`target` has one number for each record")
    classes = spec.class_count()
    name = spec.schema.target or "target"
    if classes is not None:
        bad = ~((target >= 0) & (target < classes) & (target == np.floor(target)))
        if bad.any():
            raise BadCellError(int(np.argmax(bad)) + 1, name, "not the number of a declared class")
        return target.astype(np.int64)
    column = spec.target()
    bad = ~np.isfinite(target) if column is None else ~((target >= column.min) & (target <= column.max))
    if bad.any():
        raise BadCellError(int(np.argmax(bad)) + 1, name, "outside the declared bounds")
    return target.astype(np.float32)


def _tensors(raw: bytes) -> dict[str, NDArray[Any]]:
    length = int.from_bytes(raw[:8], "little")
    if len(raw) < 8 or not 2 <= length <= min(_MAX_HEADER, len(raw) - 8) or raw[8:9] != b"{":  # noqa: PLR2004
        raise InvalidDatasetError("the arrays are not a safetensors file; the SDK's `upload_arrays` makes one")
    try:
        header = strictjson.loads(raw[8 : 8 + length].rstrip(b" "), max_depth=4)
    except MalformedError as exc:
        raise InvalidDatasetError("the header of the arrays is not strict JSON") from exc
    if not isinstance(header, dict):
        raise InvalidDatasetError("the header of the arrays is a JSON object")
    header.pop("__metadata__", None)
    data = memoryview(raw)[8 + length :]
    found = {name: _tensor(name, entry, data) for name, entry in header.items()}
    position = 0
    for _, begin, end in sorted(found.values(), key=lambda item: item[1:]):
        if begin != position:
            raise InvalidDatasetError("the ranges of the arrays leave a gap or overlap")
        position = end
    if position != len(data):
        raise InvalidDatasetError("the ranges of the arrays do not cover the file")
    return {name: array for name, (array, _, _) in found.items()}


def _tensor(name: str, entry: Any, data: memoryview) -> tuple[NDArray[Any], int, int]:  # noqa: ANN401 -- JSON
    try:
        dtype, shape, (begin, end) = np.dtype(_DTYPES[entry["dtype"]]), entry["shape"], entry["data_offsets"]
        sizes = [*shape, begin, end]
        if not all(isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 1 << 40 for size in sizes):
            raise ValueError
        if end - begin != math.prod(shape) * dtype.itemsize or end > len(data):
            raise ValueError
    except (KeyError, TypeError, ValueError) as exc:
        raise InvalidDatasetError(f"the entry of the array `{name[:80]}` is not one") from exc
    return np.frombuffer(data[begin:end], dtype=dtype).reshape(shape), begin, end
