"""Bodies: bounded in bytes and time before anything looks at them, as long as declared, without an encoding."""

import asyncio
import tracemalloc
from collections.abc import Sequence

import pytest

from fakes.core import FakeClock, tenant_caller
from fakes.edge import GONE, STALL, Edge
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.errors import CallerError, DeadlineError, MalformedError, ModelkeepError, TooLargeError
from modelkeep_platform.http.bodies import content_encoding, read_body, read_raw
from modelkeep_platform.http.routing import Endpoint
from modelkeep_platform.http.status import status_of
from modelkeep_platform.storage.database import Database

LIMIT = 10


class Sender:
    """Gives messages one by one and counts them."""

    def __init__(self, chunks: Sequence[bytes]) -> None:
        self.chunks = list(chunks)
        self.given = 0

    async def __call__(self) -> dict[str, object]:
        self.given += 1
        chunk = self.chunks.pop(0) if self.chunks else b""
        if chunk == STALL:
            await asyncio.Event().wait()
        if chunk == GONE:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": chunk, "more_body": bool(self.chunks)}


def read(chunks: Sequence[bytes], *headers: tuple[bytes, bytes], timeout_s: float = 60.0) -> tuple[bytes, int]:
    sender = Sender(chunks)
    body = asyncio.run(read_body(headers, sender, limit_bytes=LIMIT, timeout_s=timeout_s))
    return body, sender.given


def refusal(
    chunks: Sequence[bytes], *headers: tuple[bytes, bytes], timeout_s: float = 60.0
) -> tuple[ModelkeepError, int]:
    sender = Sender(chunks)
    with pytest.raises(ModelkeepError) as caught:
        asyncio.run(read_body(headers, sender, limit_bytes=LIMIT, timeout_s=timeout_s))
    return caught.value, sender.given


def length(value: bytes | int) -> tuple[bytes, bytes]:
    return b"content-length", str(value).encode() if isinstance(value, int) else value


@pytest.mark.parametrize("chunks", [[b"0123456789"], [b"01234", b"56789"], [b"", b"0123456789", b""]])
def test_a_body_up_to_the_limit_is_whole(chunks: list[bytes]) -> None:
    assert read(chunks)[0] == b"0123456789"
    assert read(chunks, length(10))[0] == b"0123456789"
    assert read([])[0] == b""


def test_a_declared_length_past_the_limit_is_refused_before_anything_is_read() -> None:
    for declared in (11, 10**12, b"9" * 5000, b"0" * 5000 + b"11"):
        error, given = refusal([b"x"], length(declared))
        assert (type(error), error.details, given) == (TooLargeError, {"limit_bytes": LIMIT}, 0)


def test_a_chunked_body_past_the_limit_is_refused_before_the_rest_is_read() -> None:
    error, given = refusal([b"012345", b"6789x", b"more", b"and more"])
    assert (type(error), given) == (TooLargeError, 2)


def test_an_endless_body_takes_no_memory() -> None:
    tracemalloc.start()
    with pytest.raises(TooLargeError):
        asyncio.run(read_raw([], Sender([b"x" * 1000] * 2000), limit_bytes=50_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 500_000


def test_a_slow_body_is_refused_when_its_time_is_over() -> None:
    error, given = refusal([b"01", STALL], timeout_s=0.01)
    assert (type(error), error.error_code, status_of(error), given) == (DeadlineError, "body_timeout", 408, 2)


@pytest.mark.parametrize("declared", [b"", b"-1", b"+5", b"5.0", b"0x5", b" 5", b"5 5", b"5,5", b"\xb2"])
def test_a_content_length_that_is_no_number_is_refused(declared: bytes) -> None:
    error, given = refusal([b"01234"], length(declared))
    assert (type(error), error.error_code, given) == (MalformedError, "invalid_length", 0)


def test_two_content_lengths_are_refused_unless_they_are_one() -> None:
    error, _ = refusal([b"01234"], length(5), length(6))
    assert error.error_code == "invalid_length"
    assert read([b"01234"], length(5), length(5))[0] == b"01234"


def test_a_body_that_is_not_as_long_as_declared_is_refused() -> None:
    shorter, _ = refusal([b"0123"], length(5))
    assert (shorter.error_code, status_of(shorter)) == ("invalid_length", 400)
    longer, given = refusal([b"012", b"345", b"6"], length(5))
    assert (longer.error_code, given) == ("invalid_length", 2)


@pytest.mark.parametrize("encoding", [b"gzip", b"GZIP", b"br", b"identity, gzip", b"x"])
def test_an_encoded_body_is_refused_unread(encoding: bytes) -> None:
    error, given = refusal([b"x"], (b"content-encoding", encoding))
    assert (error.error_code, status_of(error), given) == ("encoding_refused", 415, 0)


def test_an_encoding_in_a_second_header_is_seen() -> None:
    headers = [(b"content-encoding", b"identity"), (b"content-encoding", b"gzip")]
    assert content_encoding(headers) == b"identity, gzip"
    assert refusal([b"x"], *headers)[0].error_code == "encoding_refused"
    assert read([b"x"], (b"content-encoding", b" Identity "))[0] == b"x"


def test_a_client_that_goes_away_is_no_error_of_the_platform() -> None:
    error, _ = refusal([b"01", GONE])
    assert isinstance(error, CallerError)


@pytest.fixture
def edge(database: Database, clock: FakeClock) -> Edge:
    endpoint = Endpoint(
        method="POST",
        path="/v1/things",
        guard=Action.MODEL_CREATE,
        handler=lambda call: call.body,
        summary="Make a thing",
        body=dict[str, int],
        returns=dict[str, int],
        limit_bytes=LIMIT,
    )
    edge = Edge(database, clock, [endpoint], body_timeout_s=0.01)
    edge.tokens.callers["t"] = tenant_caller()
    return edge


def test_nobody_unknown_is_listened_to(edge: Edge) -> None:
    answer = edge.call("POST", "/v1/things", body=[b"x" * 100] * 100)
    assert (answer.status, answer.asked) == (401, 0)


def test_refusals_of_a_body_reach_the_caller_and_its_log(edge: Edge) -> None:
    route = "POST /v1/things"
    cases: list[tuple[list[bytes], list[tuple[str, str]], int, str]] = [
        ([b"x" * 11], [], 413, "too_large"),
        ([b"{"], [("content-length", "99")], 413, "too_large"),
        ([b"{", STALL], [], 408, "body_timeout"),
        ([b"{}"], [("content-encoding", "gzip")], 415, "encoding_refused"),
        ([b"{}"], [("content-length", "3")], 400, "invalid_length"),
        ([b"{"], [], 400, "invalid_json"),
        ([b'{"a":"b"}'], [], 400, "invalid_body"),
    ]
    for body, headers, status, code in cases:
        answer = edge.call("POST", "/v1/things", token="t", body=body, headers=headers)
        assert (answer.status, answer.code) == (status, code)
    assert edge.noted.callers == [("model:create", code, route) for _, _, _, code in cases]
    assert edge.noted.strangers == []
