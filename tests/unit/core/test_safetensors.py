"""The header of a safetensors file: what is read, and every reason to refuse it."""

import json
from typing import Any

import pytest

from modelkeep_platform.core.errors import TooLargeError
from modelkeep_platform.core.safetensors import SafetensorsError, TensorRange, header_end, parse_header

MOST = 1000


def tensor(begin: int = 0, end: int = 8, *, shape: object = (2,), dtype: object = "F32", **more: object) -> Any:
    shown = list(shape) if isinstance(shape, tuple) else shape
    return {"dtype": dtype, "shape": shown, "data_offsets": [begin, end], **more}


def parsed(document: object, data_bytes: int = 8) -> list[TensorRange]:
    return parse_header(json.dumps(document).encode(), data_bytes, max_header_bytes=MOST)


def test_tensors_come_in_the_order_of_their_bytes() -> None:
    document = {
        "last": tensor(12, 36, shape=(3,), dtype="F64"),
        "first": tensor(0, 8),
        "scalar": tensor(8, 12, shape=(), dtype="I32"),
        "__metadata__": {"made": "by hand"},
    }
    found = parsed(document, 36)
    assert [(one.name, one.dtype, one.width, one.shape) for one in found] == [
        ("first", "F32", 4, (2,)),
        ("scalar", "I32", 4, ()),
        ("last", "F64", 8, (3,)),
    ]
    assert [(one.begin, one.end) for one in found] == [(0, 8), (8, 12), (12, 36)]


def test_a_file_without_tensors_and_padding_with_spaces_are_read() -> None:
    assert parse_header(b"{}      ", 0, max_header_bytes=MOST) == []


def test_an_empty_tensor_lies_between_others() -> None:
    document = {"a": tensor(0, 8), "empty": tensor(8, 8, shape=(0, 3)), "b": tensor(8, 16)}
    assert [one.name for one in parsed(document, 16)] == ["a", "empty", "b"]


REFUSED: dict[str, tuple[object, int, str]] = {
    "no object": ([], 0, "JSON object"),
    "metadata that is no object": ({"__metadata__": []}, 0, "`__metadata__`"),
    "metadata that is no text": ({"__metadata__": {"a": 1}}, 0, "`__metadata__`"),
    "an entry that is no object": ({"t": 1}, 8, "dtype, shape and data_offsets"),
    "an entry with one field more": ({"t": tensor(stride=1)}, 8, "dtype, shape and data_offsets"),
    "an entry with one field less": ({"t": {"dtype": "F32", "shape": [2]}}, 8, "dtype, shape and data_offsets"),
    "an unknown dtype": ({"t": tensor(dtype="BF16")}, 8, "dtype of tensor"),
    "a dtype that is no text": ({"t": tensor(dtype=["F32"])}, 8, "dtype of tensor"),
    "a negative dimension": ({"t": tensor(shape=(-2,))}, 8, "natural numbers"),
    "a dimension that is a truth value": ({"t": tensor(shape=(True, 2))}, 8, "natural numbers"),
    "a dimension that is no whole number": ({"t": tensor(shape=(2.0,))}, 8, "natural numbers"),
    "a dimension of 2**48": ({"t": tensor(shape=(2**48,))}, 8, "natural numbers"),
    "a shape that is no list": ({"t": tensor(shape=2)}, 8, "natural numbers"),
    "nine dimensions": ({"t": tensor(shape=(1,) * 8 + (2,))}, 8, "at most 8 dimensions"),
    "one offset": ({"t": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}, 8, "natural numbers"),
    "three offsets": ({"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 8]}}, 8, "natural numbers"),
    "a range shorter than the shape": ({"t": tensor(0, 4)}, 4, "does not fit its shape"),
    "a range backwards": ({"t": tensor(8, 0)}, 8, "does not fit its shape"),
    "a gap": ({"a": tensor(0, 8), "b": tensor(9, 17)}, 17, "gap or overlap at tensor `b`"),
    "an overlap": ({"a": tensor(0, 8), "b": tensor(4, 12)}, 12, "gap or overlap at tensor `b`"),
    "a first tensor that does not begin at 0": ({"a": tensor(1, 9)}, 9, "gap or overlap at tensor `a`"),
    "bytes that no tensor covers": ({"a": tensor(0, 8)}, 9, "do not cover the file"),
    "tensors beyond the end": ({"a": tensor(0, 8)}, 7, "do not cover the file"),
    "bytes without a tensor": ({}, 1, "do not cover the file"),
}


@pytest.mark.parametrize(("document", "data_bytes", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_cover_the_file_exactly_once_is_refused(document: object, data_bytes: int, said: str) -> None:
    with pytest.raises(SafetensorsError) as raised:
        parsed(document, data_bytes)
    assert said in raised.value.message


@pytest.mark.parametrize(
    "header", [b"", b"{", b'{"a": 1, "a": 1}', b'{"a": NaN}', b"\xff", b'{"a":{"b":{"c":{"d":{}}}}}'], ids=str
)
def test_what_is_no_strict_json_is_refused(header: bytes) -> None:
    with pytest.raises(SafetensorsError, match="not strict JSON"):
        parse_header(header, 0, max_header_bytes=MOST)


def test_a_header_that_is_too_long_is_refused() -> None:
    with pytest.raises(TooLargeError):
        parse_header(b"{" + b" " * MOST + b"}", 0, max_header_bytes=MOST)


@pytest.mark.parametrize(
    ("length", "first", "size", "end"),
    [
        (2, b"{", 10, 10),
        (100, b"{", 108, 108),
        (100, b"{", 107, None),
        (MOST, b"{", 10_000, MOST + 8),
        (MOST + 1, b"{", 10_000, None),
        (1, b"{", 10_000, None),
        (2, b"[", 10_000, None),
        (2, b"", 10_000, None),
        (2**63, b"{", 10_000, None),
    ],
    ids=[
        "the shortest",
        "up to the end",
        "beyond the end",
        "the longest",
        "too long",
        "too short",
        "no object",
        "no bytes",
        "a huge number",
    ],
)
def test_a_file_begins_like_safetensors_or_not(length: int, first: bytes, size: int, end: int | None) -> None:
    assert header_end(length.to_bytes(8, "little") + first, size, max_header_bytes=MOST) == end
