"""What lenient parsers disagree about is refused, with its place."""

from typing import Any

import pytest

from modelkeep_platform.core.errors import MalformedError, TooLargeError
from modelkeep_platform.core.strictjson import check_structure, loads

ACCEPTED: dict[str, tuple[bytes, Any]] = {
    "null": (b"null", None),
    "true": (b" true\n", True),
    "an integer": (b"-12", -12),
    "a float": (b"1.5e3", 1500.0),
    "minus zero": (b"-0", 0),
    "the largest double": (b"1.7976931348623157e308", 1.7976931348623157e308),
    "an underflow": (b"1e-999", 0.0),
    "a long integer": (b"9" * 400, int("9" * 400)),
    "text": ('"ü€😀"'.encode(), "ü€😀"),
    "a surrogate pair": (rb'"\ud83d\ude00"', "😀"),
    "escapes": (rb'"\"\\\/\b\f\n\r\t\u0041"', '"\\/\b\f\n\r\tA'),
    "brackets in text": (b'["]}[{"]', ["]}[{"]),
    "a quote before a bracket": (rb'["\"]"]', ['"]']),
    "an object": (b'{"a": {"a": 1}, "b": [{"a": 2}]}', {"a": {"a": 1}, "b": [{"a": 2}]}),
    "names that differ in case": (b'{"a": 1, "A": 2}', {"a": 1, "A": 2}),
}


@pytest.mark.parametrize(("data", "value"), ACCEPTED.values(), ids=ACCEPTED.keys())
def test_strict_json_is_read(data: bytes, value: Any) -> None:
    assert loads(data) == value
    check_structure(data, max_depth=8)


REFUSED: dict[str, tuple[bytes, int | None]] = {
    "nothing": (b"", 0),
    "space alone": (b"  ", 2),
    "a duplicate name": (b'{"a": 1, "a": 1}', None),
    "a duplicate name by escape": (rb'{"a": 1, "\u0061": 2}', None),
    "a duplicate name inside": (b'[{"b": {"a": 1, "a": 2}}]', None),
    "NaN": (b"NaN", None),
    "infinity": (b'{"a": Infinity}', None),
    "minus infinity": (b"-Infinity", None),
    "infinity by overflow": (b"1e999", None),
    "minus infinity by overflow": (b"[-1e999]", None),
    "401 digits": (b"1" * 401, None),
    "a lone high surrogate": (rb'"\ud800"', None),
    "a lone low surrogate": (rb'["\udc00"]', None),
    "a lone surrogate in a name": (rb'{"\ud800": 1}', None),
    "a byte-order mark": (b"\xef\xbb\xbf{}", 0),
    "UTF-16": ("{}".encode("utf-16"), 0),
    "a raw surrogate": (b'"\xed\xa0\x80"', 1),
    "an overlong encoding": (b'"\xc0\x80"', 1),
    "a cut character": (b'"\xe2\x82', 1),
    "trailing bytes": (b"{} {}", 3),
    "a trailing comma": (b"[1,]", None),
    "a comment": (b"/* */ 1", 0),
    "a single quote": (b"{'a': 1}", 1),
    "a leading zero": (b"01", 1),
    "a plus": (b"+1", 0),
    "hexadecimal": (b"0x1", 1),
    "a bare point": (b"1.", 1),
    "a raw newline in text": (b'"a\nb"', 2),
    "a nul": (b"\x00", 0),
    "an open object": (b'{"a": 1', None),
    "an open string": (b'"abc', 0),
    "a bad escape": (rb'"\x41"', 1),
}


@pytest.mark.parametrize(("data", "offset"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_strict_is_refused(data: bytes, offset: int | None) -> None:
    with pytest.raises(MalformedError) as caught:
        loads(data)
    assert caught.value.error_code == "invalid_json"
    if offset is not None:
        assert caught.value.details == {"offset": offset}


def test_a_message_shows_no_more_than_80_characters_of_a_name() -> None:
    name = "n" * 500
    with pytest.raises(MalformedError) as caught:
        loads(f'{{"{name}": 1, "{name}": 2}}'.encode())
    assert caught.value.message == f"the name `{'n' * 80}` occurs twice in one object"


@pytest.mark.parametrize("read", [loads, check_structure], ids=["loads", "check_structure"])
@pytest.mark.parametrize("pair", [("[", "]"), ('{"a":', "}")], ids=["arrays", "objects"])
def test_depth_is_counted_before_a_recursive_parser_sees_it(read: Any, pair: tuple[str, str]) -> None:
    def nested(depth: int) -> bytes:
        return (pair[0] * depth + "1" + pair[1] * depth).encode()

    read(nested(8), max_depth=8)
    with pytest.raises(MalformedError, match="deeper than 8") as caught:
        read(nested(9), max_depth=8)
    assert caught.value.details == {"offset": 8 * len(pair[0])}
    with pytest.raises(MalformedError, match="deeper than 64"):
        read(nested(100_000), max_depth=64)


def test_siblings_do_not_add_depth() -> None:
    assert loads(b"[[],[],[]]", max_depth=2) == [[], [], []]


def test_length_is_checked_before_anything_else() -> None:
    assert loads(b"[1]", max_bytes=3) == [1]
    with pytest.raises(TooLargeError, match="limit of 3 bytes"):
        loads(b"\xff\xff\xff\xff", max_bytes=3)


STRUCTURE: dict[str, bytes] = {
    "a duplicate name": b'{"a": 1, "a": 2}',
    "a duplicate name far apart": b'{"a": [{"a": 1}, {"a": 2}], "b": {}, "a": 3}',
    "a duplicate name with space before the colon": b'{"a"\n :1,"a"\t:2}',
    "a duplicate name by escape": rb'{"a": 1, "\u0061": 2}',
    "not UTF-8": b'{"\xff": 1}',
}


@pytest.mark.parametrize("data", STRUCTURE.values(), ids=STRUCTURE.keys())
def test_check_structure_refuses_duplicates_and_bad_text(data: bytes) -> None:
    with pytest.raises(MalformedError) as caught:
        check_structure(data, max_depth=8)
    assert caught.value.error_code == "invalid_json"


@pytest.mark.parametrize(
    "data",
    [b'{"a": "a", "b": ["a", "a"]}', b'[{"a": 1}, {"a": 1}]', b'{"a": {"a": {"a": 1}}}', rb'{"a\"": 1, "a": ":"}'],
)
def test_check_structure_takes_equal_text_in_other_places(data: bytes) -> None:
    check_structure(data, max_depth=8)


def test_check_structure_leaves_what_is_not_json_to_the_decoder() -> None:
    check_structure(b"}}]]", max_depth=8)
