"""JSON from strangers: the strict reader agrees with Python's on what is strict, and nothing else ever escapes."""

import json
import math
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep._core import strictjson as sdk
from modelkeep.errors import ProtocolError
from modelkeep_platform.core import strictjson
from modelkeep_platform.core.errors import CallerError, MalformedError
from modelkeep_platform.http.v2_json import parse_request

SOON_S = 2.0
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=5),
    max_leaves=30,
)
PIECES = st.sampled_from(
    [
        *(
            b"{",
            b"}",
            b"[",
            b"]",
            b'"',
            b":",
            b",",
            b"\\",
            b"\\u",
            b"d800",
            b"1e999",
            b"NaN",
            b"-",
            b"0",
            b"true",
            b"null",
        ),
        *(
            b'"a":1',
            b'"a"',
            b"\xff",
            b"\xc3\xa9",
            b"\x00",
            b" ",
            b"\n",
            b'"inputs"',
            b'"data"',
            b'"shape"',
            b"Infinity",
        ),
    ]
)
JUNK = st.lists(PIECES, max_size=30).map(b"".join) | st.binary(max_size=200)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    return type(one) is type(other) and one == other


@given(VALUES)
def test_what_is_strict_is_read_as_python_reads_it(value: Any) -> None:
    text = json.dumps(value).encode()
    assert same(strictjson.loads(text), json.loads(text))
    assert same(sdk.loads(text), json.loads(text))
    strictjson.check_structure(text, max_depth=64)


@given(JUNK)
@settings(max_examples=500)
def test_junk_is_refused_or_is_what_python_reads(junk: bytes) -> None:
    try:
        value = strictjson.loads(junk)
    except MalformedError:
        return
    assert same(value, json.loads(junk))


@given(JUNK)
@settings(max_examples=500)
def test_the_sdk_reads_no_more_than_the_server(junk: bytes) -> None:
    try:
        value = sdk.loads(junk)
    except ProtocolError:
        return
    assert same(value, json.loads(junk))


@given(st.integers(1, 3000), st.sampled_from([b"[", b'{"a":']))
def test_depth_is_refused_before_anything_recurses(depth: int, opening: bytes) -> None:
    text = opening * depth + b"1" + (b"]" if opening == b"[" else b"}") * depth
    if depth <= 64:
        strictjson.loads(text)
        return
    with pytest.raises(MalformedError, match="deeper"):
        strictjson.loads(text)


ENDLESS = [
    pytest.param(b'"' + b'\\"' * 20_000, id="escaped quotes"),
    pytest.param(b'["' + b'\\"' * 20_000 + b"\\", id="and a backslash"),
    pytest.param(b'{"a":"' + b"\\\\" * 20_000, id="escaped backslashes"),
]


@pytest.mark.parametrize("text", ENDLESS)
def test_a_string_that_never_ends_is_refused_soon(text: bytes) -> None:
    """To look for its end from each of its escaped quotes took minutes: of one request, and of the whole server."""
    began = time.process_time()
    with pytest.raises(MalformedError):
        strictjson.loads(text)
    with pytest.raises(ProtocolError):
        sdk.loads(text)
    strictjson.check_structure(text, max_depth=64)
    assert time.process_time() - began < SOON_S


TENSOR = st.fixed_dictionaries(
    {
        "name": TEXT,
        "shape": st.lists(st.integers(-2, 5), max_size=4) | st.just([2**62, 2**62]) | TEXT,
        "datatype": st.sampled_from(["FP32", "INT64", "BOOL", "FP16", "BYTES", "nonsense", ""]),
        "data": VALUES | st.lists(st.floats(allow_nan=False), max_size=6) | st.lists(st.integers(), max_size=6),
    }
)


@given(st.fixed_dictionaries({"inputs": st.lists(TENSOR, max_size=3) | VALUES}), st.booleans())
@settings(max_examples=300)
def test_an_inference_request_is_taken_or_refused_with_words(document: Any, twice: bool) -> None:
    body = json.dumps(document).encode()
    if twice:
        body = body[:-1] + b',"inputs":[]}'
    try:
        request = parse_request(body)
    except CallerError:
        return
    assert not twice, "a name that occurs twice was taken"
    for tensor in request.inputs.values():
        assert all(size >= 0 for size in tensor.shape)
        assert math.prod(tensor.shape) * 8 >= len(tensor.data)


@given(JUNK)
@settings(max_examples=300)
def test_junk_is_no_inference_request(junk: bytes) -> None:
    try:
        parse_request(junk)
    except CallerError:
        return
    assert isinstance(json.loads(junk)["inputs"], list)


_NAMES = st.sampled_from(["inputs", "id", "parameters", "outputs", "name", "shape", "datatype", "data", "x"])
_TEXTS = st.sampled_from(['"x"', '"FP32"', '""', '"i\\u0064"', '"a\\"b"', '"\\""'])


def _object(pairs: list[tuple[str, str]]) -> str:
    return "{" + ",".join(f'"{name}":{value}' for name, value in pairs) + "}"


@st.composite
def _envelopes(draw: st.DrawFn) -> bytes:
    """Draw an inference request as text, with members left out, repeated, escaped and out of place."""
    more = st.lists(
        st.tuples(_NAMES, _TEXTS | st.sampled_from(["[1]", "[]", "{}", '{"a":1,"a":2}', '{"a":"b"}'])), max_size=2
    )
    tensor = [
        ("name", draw(_TEXTS)),
        ("shape", "[1]"),
        ("datatype", '"FP32"'),
        ("data", draw(st.sampled_from(["[1]", '["1"]', "[[1]]"]))),
    ]
    outer = [("inputs", "[" + _object(draw(st.permutations(tensor + draw(more)))) + "]")]
    if draw(st.booleans()):
        outer.append(("id", draw(_TEXTS)))
    return _object(draw(st.permutations(outer + draw(more)))).encode()


@given(_envelopes())
@settings(max_examples=600)
def test_no_request_is_taken_that_names_anything_twice(text: bytes) -> None:
    try:
        parse_request(text)
    except CallerError:
        return
    strictjson.check_structure(text, max_depth=8)
