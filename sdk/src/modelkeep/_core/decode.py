"""Turns JSON into the dataclasses of `modelkeep.types`, checking every field's type."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from typing import Any, TypeVar, Union, get_args, get_origin

from modelkeep.errors import ProtocolError

T = TypeVar("T")


def decode(wanted: type[T], value: object) -> T:
    """Return `value` as a `wanted`, a dataclass.

    Raises:
        ProtocolError: a field is missing or of another type; the message names it.
    """
    result: T = _convert(wanted, value, wanted.__name__)
    return result


def fields_of(value: object, what: str) -> dict[str, Any]:
    """Return `value`, which must be an object.

    Raises:
        ProtocolError: it is not.
    """
    if not isinstance(value, dict):
        raise ProtocolError(f"the server's answer has no {what}")
    return value


def _convert(wanted: Any, value: Any, place: str) -> Any:  # noqa: ANN401 -- a type, and what it describes
    if wanted is Any:
        return value
    if dataclasses.is_dataclass(wanted):
        return _build(wanted, value, place)
    origin, args = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(next(arg for arg in args if arg is not type(None)), value, place)
    if origin is list and isinstance(value, list):
        return [_convert(args[0], item, f"{place}[{number}]") for number, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {key: _convert(args[1], item, f"{place}.{key[:40]}") for key, item in value.items()}
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(wanted, type) and origin is None and type(value) is wanted:
        return value
    raise ProtocolError(f"`{place}` of the server's answer is not what it should be; is the SDK older than the server?")


def _build(wanted: Any, value: Any, place: str) -> Any:  # noqa: ANN401
    if not isinstance(value, dict):
        raise ProtocolError(f"`{place}` of the server's answer is not an object")
    found: dict[str, Any] = {}
    for name, (kind, required) in _fields(wanted).items():
        if name in value:
            found[name] = _convert(kind, value[name], f"{place}.{name}")
        elif required:
            raise ProtocolError(f"`{place}.{name}` is missing from the server's answer")
    return wanted(**found)


@functools.cache
def _fields(wanted: Any) -> dict[str, tuple[Any, bool]]:  # noqa: ANN401
    hints = typing.get_type_hints(wanted)
    return {item.name: (hints[item.name], item.default is dataclasses.MISSING) for item in dataclasses.fields(wanted)}
