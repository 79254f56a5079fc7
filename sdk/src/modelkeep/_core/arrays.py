"""Arrays without numpy: shapes of nested lists, their flat values, and numpy's where it is there.

numpy is looked up among what the caller already imported; the SDK never imports it by itself.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeGuard

from modelkeep.errors import ConfigurationError

_MAX_RANK: Final = 16
_MAX_BITS: Final = 1023  # the largest float


def is_numpy(value: object) -> bool:
    """Return whether `value` is an array or a scalar of numpy."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray | numpy.generic)


def shape_of(value: object) -> list[int]:
    """Return the shape of a number, of nested sequences, or of anything with a `shape`.

    Raises:
        ConfigurationError: rows have different lengths.
    """
    shape = getattr(value, "shape", None)
    if shape is not None:
        return [int(size) for size in shape]
    found: list[int] = []
    level = value
    while _is_rows(level):
        if len(found) == _MAX_RANK:
            raise ConfigurationError(f"an input nests deeper than {_MAX_RANK}")
        found.append(len(level))
        if not level:
            break
        level = level[0]
    _check(value, found)
    return found


def flat_of(value: object) -> list[Any]:
    """Return the values, row-major, as Python numbers."""
    if hasattr(value, "shape"):
        array: Any = value.detach() if hasattr(value, "detach") else value
        flat: list[Any] = array.reshape(-1).tolist()
        return flat
    return list(_values(value))


def check_finite(values: Sequence[Any], name: str) -> None:
    """Check that every value can be written as JSON.

    Raises:
        ConfigurationError: a NaN, an infinity, or something that is no number.
    """
    for position, value in enumerate(values):
        if not isinstance(value, int | float):
            raise ConfigurationError(f"input `{name}` holds a `{type(value).__name__}`, which is not a number")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigurationError(f"input `{name}` holds `{value}` at position {position}; inputs must be finite")
        if isinstance(value, int) and value.bit_length() > _MAX_BITS:
            raise ConfigurationError(f"input `{name}` holds an integer at position {position} that is too large")


def nested(values: Sequence[Any], shape: Sequence[int]) -> Any:  # noqa: ANN401 -- a number or lists of lists
    """Return flat `values` as nested lists of `shape`."""
    if not shape:
        return values[0]
    level = list(values)
    for size in reversed(shape[1:]):
        level = [level[start : start + size] for start in range(0, len(level), size)] if size else []
    if 0 in shape[1:]:
        return [_empty(shape[1:]) for _ in range(shape[0])]
    return level


def _empty(shape: Sequence[int]) -> list[Any]:
    return [_empty(shape[1:]) for _ in range(shape[0])] if len(shape) > 1 else []


def _is_rows(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _check(value: object, shape: Sequence[int]) -> None:
    if not shape:
        if _is_rows(value):
            raise ConfigurationError("the rows of an input have different lengths")
        return
    if not _is_rows(value) or len(value) != shape[0]:
        raise ConfigurationError("the rows of an input have different lengths")
    for item in value:
        _check(item, shape[1:])


def _values(value: object) -> Iterator[Any]:
    if _is_rows(value):
        for item in value:
            yield from _values(item)
    else:
        yield value
