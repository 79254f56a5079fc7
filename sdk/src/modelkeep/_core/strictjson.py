"""Strict JSON of answers: no duplicate names, no NaN, bounded depth, UTF-8; a hostile answer is an error, no crash."""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final, NoReturn

from modelkeep.errors import ProtocolError

MAX_DEPTH: Final = 64
# A string that never ends is one match: were it none, every escaped quote in it would begin another look to the end.
_STRUCTURE: Final = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)
_MAX_INT_DIGITS: Final = 400


def loads(data: bytes, *, max_depth: int = MAX_DEPTH) -> Any:  # noqa: ANN401 -- any JSON value
    """Parse `data`.

    Raises:
        ProtocolError: it is not strict JSON, or nests deeper than `max_depth`.
    """
    try:
        text = data.decode("utf-8")
        _check_depth(text, max_depth)
        return json.loads(
            text, object_pairs_hook=_object, parse_constant=_refuse, parse_float=_finite, parse_int=_bounded
        )
    except (UnicodeDecodeError, json.JSONDecodeError) as exc:
        raise ProtocolError("the server's answer is not JSON") from exc


def _check_depth(text: str, max_depth: int) -> None:
    depth = 0
    for match in _STRUCTURE.finditer(text):
        mark = text[match.start()]
        if mark in "[{":
            depth += 1
            if depth > max_depth:
                raise ProtocolError(f"the server's answer nests deeper than {max_depth}")
        elif mark in "]}":
            depth -= 1


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ProtocolError("a name occurs twice in an object of the server's answer")
    return value


def _refuse(constant: str) -> NoReturn:
    raise ProtocolError(f"the server's answer holds `{constant}`, which is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ProtocolError("a number in the server's answer is too large")
    return value


def _bounded(text: str) -> int:
    if len(text) > _MAX_INT_DIGITS:
        raise ProtocolError("an integer in the server's answer has too many digits")
    return int(text)
