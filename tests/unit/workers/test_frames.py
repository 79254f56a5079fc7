import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep_platform.workers.errors import FrameError
from modelkeep_platform.workers.frames import Bounds, Frame, encode, header_length, parse_header


class Wanted(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    count: int


def parse(data: bytes, bounds: Bounds) -> Frame:
    length = header_length(data[:4], bounds)
    header = parse_header(data[4 : 4 + length], bounds)
    at, buffers = 4 + length, []
    for size in header.sizes:
        buffers.append(data[at : at + size])
        at += size
    assert at == len(data)
    return header.frame(buffers)


@given(
    kind=st.text(min_size=1, max_size=32),
    number=st.integers(min_value=0, max_value=2**63 - 1),
    fields=st.dictionaries(st.text(max_size=8), st.integers(-(2**63), 2**64 - 1) | st.text() | st.booleans()),
    buffers=st.lists(st.binary(max_size=64), max_size=5),
)
def test_what_is_encoded_comes_back(kind: str, number: int, fields: dict[str, object], buffers: list[bytes]) -> None:
    frame = Frame(kind=kind, id=number, fields=fields, buffers=buffers)
    assert parse(b"".join(encode(frame)), Bounds()) == frame


def test_the_bytes_of_a_frame_are_as_documented() -> None:
    pieces = encode(Frame(kind="k", id=7, fields={"a": 1}, buffers=[b"xy"]))
    assert pieces == [bytes([0, 0, 0, 10]) + b"\x94\xa1k\x07\x91\x02\x81\xa1a\x01", b"xy"]


@given(st.binary(max_size=200))
def test_any_bytes_are_a_header_or_a_frame_error(raw: bytes) -> None:
    try:
        header = parse_header(raw, Bounds(total_bytes=100, buffers=2))
    except FrameError:
        return
    assert sum(header.sizes) <= 100
    assert len(header.sizes) <= 2


@pytest.mark.parametrize(
    "prefix",
    [
        pytest.param(b"\0\0\0\0", id="empty"),
        pytest.param(b"\xff\xff\xff\xff", id="huge"),
        pytest.param(b"\0\0\0", id="short"),
        pytest.param((11).to_bytes(4, "big"), id="one-more"),
    ],
)
def test_an_impossible_length_is_refused(prefix: bytes) -> None:
    with pytest.raises(FrameError) as caught:
        header_length(prefix, Bounds(header_bytes=10))
    assert caught.value.error_code == "worker_protocol"


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(["k", 0, [5, 6], {}], id="buffers-past-the-total"),
        pytest.param(["k", 0, [1, 1, 1], {}], id="too-many-buffers"),
        pytest.param(["k", 0, [-1], {}], id="negative-size"),
        pytest.param(["k", -1, [], {}], id="negative-id"),
        pytest.param(["", 0, [], {}], id="no-kind"),
        pytest.param(["k" * 33, 0, [], {}], id="long-kind"),
        pytest.param(["k", 0, []], id="no-fields"),
        pytest.param(["k", 0, [], {}, 1], id="one-field-more"),
        pytest.param(["k", 0, [2**64 - 1], {}], id="overflow"),
        pytest.param({"kind": "k"}, id="map"),
    ],
)
def test_a_header_past_the_bounds_is_refused(header: object) -> None:
    with pytest.raises(FrameError):
        parse_header(msgspec.msgpack.encode(header), Bounds(total_bytes=10, buffers=2))


def test_a_deeply_nested_header_is_refused_without_exhausting_the_stack() -> None:
    raw = b"\x94\xa1k\x00\x90\x81\xa1a" + b"\x91" * 500_000 + b"\xc0"
    with pytest.raises(FrameError):
        parse_header(raw)


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(Frame(kind="k", buffers=[b"12345678901"]), id="buffers"),
        pytest.param(Frame(kind="k", fields={"a": "x" * 100}), id="header"),
    ],
)
def test_nothing_past_the_bounds_is_sent(frame: Frame) -> None:
    with pytest.raises(FrameError):
        encode(frame, Bounds(total_bytes=10, header_bytes=50))


def test_fields_are_read_as_a_type() -> None:
    frame = Frame(kind="k", fields={"name": "a", "count": 3})
    assert frame.read(Wanted) == Wanted(name="a", count=3)


@pytest.mark.parametrize("fields", [{"name": "a"}, {"name": "a", "count": "3"}, {"name": "a", "count": 1, "more": 2}])
def test_fields_of_another_type_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(FrameError):
        Frame(kind="k", fields=fields).read(Wanted)
