"""Strict JSON (RFC 8259, the I-JSON subset of RFC 7493), for tokens and request bodies alike.

Refuses what lenient parsers disagree about: duplicate names, NaN and infinities (also by overflow,
``1e999``), nesting past a limit, invalid UTF-8, lone surrogates, trailing bytes. Everything is checked
before a recursive parser sees the text, so depth cannot exhaust the stack.
"""

import json
import math
import re
from typing import Any, Final, NoReturn

from modelkeep_platform.core.errors import MalformedError, TooLargeError
from modelkeep_platform.core.limits import MAX_JSON_BYTES, MAX_JSON_DEPTH

# A string that never ends is one match: were it none, every escaped quote in it would begin another look to the end.
_STRUCTURE: Final = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)
_NAMES: Final = re.compile(r'(?P<name>"(?:[^"\\]|\\.)*")(?=\s*:)|"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)
_MAX_INT_DIGITS: Final = 400


def loads(data: bytes, *, max_bytes: int = MAX_JSON_BYTES, max_depth: int = MAX_JSON_DEPTH) -> Any:  # noqa: ANN401
    """Parse `data` strictly.

    Args:
        data: UTF-8 JSON without a byte-order mark.
        max_bytes: the largest accepted length in bytes.
        max_depth: how many arrays and objects may enclose a value.

    Returns:
        The value, of `dict`, `list`, `str`, `int`, `float`, `bool` and `None`.

    Raises:
        TooLargeError: longer than `max_bytes`.
        MalformedError: not strict JSON; `details["offset"]` is the place, in characters, where known.
    """
    if len(data) > max_bytes:
        message = f"the JSON text is longer than the limit of {max_bytes} bytes"
        raise TooLargeError(message)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise _malformed("the text is not UTF-8", exc.start) from exc
    _check_depth(text, max_depth)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_bounded_int,
        )
    except json.JSONDecodeError as exc:
        reason = f"the text is not JSON: {exc.msg.lower()} at line {exc.lineno} column {exc.colno}"
        raise _malformed(reason, exc.pos) from exc
    if "\\u" in text:
        _refuse_surrogates(value)
    return value


def check_structure(data: bytes, *, max_depth: int) -> None:
    """Check depth and duplicate names without building values; for large bodies that a typed decoder reads next.

    Args:
        data: UTF-8 JSON.
        max_depth: how many arrays and objects may enclose a value.

    Raises:
        MalformedError: too deep, a name twice in one object, or not UTF-8.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise _malformed("the text is not UTF-8", exc.start) from exc
    open_names: list[set[str] | None] = []
    for match in _NAMES.finditer(text):
        mark = match.group()
        if mark[0] in "[{":
            if len(open_names) >= max_depth:
                raise _malformed(f"the JSON text nests deeper than {max_depth}", match.start())
            open_names.append(set() if mark == "{" else None)
        elif mark[0] in "]}":
            if open_names:
                open_names.pop()
        elif match["name"] is not None and open_names and open_names[-1] is not None:
            name = match["name"]
            _once(json.loads(name) if "\\" in name else name[1:-1], open_names[-1], match.start())


def _once(name: str, seen: set[str], offset: int) -> None:
    if name in seen:
        raise _malformed(f"the name `{name[:80]}` occurs twice in one object", offset)
    seen.add(name)


def _check_depth(text: str, max_depth: int) -> None:
    depth = 0
    for match in _STRUCTURE.finditer(text):
        mark = text[match.start()]
        if mark in "[{":
            depth += 1
            if depth > max_depth:
                raise _malformed(f"the JSON text nests deeper than {max_depth}", match.start())
        elif mark in "]}":
            depth -= 1


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        duplicate = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise _malformed(f"the name `{duplicate[:80]}` occurs twice in one object", None)
    return value


def _refuse_constant(constant: str) -> NoReturn:
    raise _malformed(f"`{constant}` is not a JSON number", None)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _malformed("a number is too large for a 64-bit float", None)
    return value


def _bounded_int(text: str) -> int:
    if len(text) > _MAX_INT_DIGITS:
        raise _malformed("an integer has too many digits", None)
    return int(text)


def _refuse_surrogates(value: object) -> None:
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            try:
                item.encode("utf-8")
            except UnicodeEncodeError as exc:
                raise _malformed("a string holds half of a surrogate pair", None) from exc
        elif isinstance(item, list):
            pending += item
        elif isinstance(item, dict):
            pending += item
            pending += item.values()


def _malformed(message: str, offset: int | None) -> MalformedError:
    return MalformedError(message, code="invalid_json", details={} if offset is None else {"offset": offset})
