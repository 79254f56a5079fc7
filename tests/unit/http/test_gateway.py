"""The gateway: planes by path, limits of the head, strangers counted, the life of the server."""

import asyncio
import threading
from typing import Any

import pytest

from fakes.core import FakeClock, tenant_caller
from fakes.edge import Edge
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.errors import RateLimitedError, UnavailableError
from modelkeep_platform.http.gateway import TOO_MANY_WAIT_S
from modelkeep_platform.http.heads import MAX_HEADER_BYTES, MAX_HEADERS, MAX_TARGET_BYTES
from modelkeep_platform.http.routing import Call, Endpoint, Public
from modelkeep_platform.storage.database import Database


def busy(_call: Call) -> Any:
    raise RateLimitedError("wait", retry_after_s=1)


def down(_call: Call) -> Any:
    raise UnavailableError("later")


@pytest.fixture
def edge(database: Database, clock: FakeClock) -> Edge:
    made: dict[str, Any] = {"method": "GET", "summary": "Do it", "returns": dict[str, int]}
    edge = Edge(
        database,
        clock,
        [
            Endpoint(path="/v1/open", guard=Public("it is open"), handler=lambda _call: {}, **made),
            Endpoint(path="/v1/busy", guard=Public("it is open"), handler=busy, **made),
            Endpoint(path="/v1/down", guard=Public("it is open"), handler=down, **made),
            Endpoint(path="/v1/mine", guard=Action.MODEL_READ, handler=busy, **made),
        ],
    )
    edge.tokens.callers["t"] = tenant_caller()
    return edge


@pytest.mark.parametrize("path", ["/v1/open", "/v2/health/live", "/v2"])
@pytest.mark.parametrize(
    ("options", "status", "code"),
    [
        ({"query": b"q" * MAX_TARGET_BYTES}, 414, "target_too_long"),
        ({"headers": [("x-a", "1")] * (MAX_HEADERS + 1)}, 431, "headers_too_large"),
        ({"headers": [("x-a", "v" * MAX_HEADER_BYTES)]}, 431, "headers_too_large"),
    ],
    ids=["target", "many", "long"],
)
def test_a_head_past_the_limits_is_refused_in_the_shape_of_its_plane(
    edge: Edge, path: str, options: dict[str, Any], status: int, code: str
) -> None:
    answer = edge.call("GET", path, **options)
    assert (answer.status, answer.code) == (status, code)
    assert isinstance(answer.json()["error"], str if path.startswith("/v2") else dict)
    assert answer.asked == 0
    assert edge.noted.strangers == [("192.0.2.7", status)]


def test_a_long_path_is_measured_as_it_was_sent(edge: Edge) -> None:
    assert edge.call("GET", "/v1/" + "é" * (MAX_TARGET_BYTES // 2)).status == 414


def test_a_head_at_the_limits_is_served(edge: Edge) -> None:
    assert edge.call("GET", "/v1/open", headers=[("x-a", "1")] * MAX_HEADERS).status == 200


@pytest.mark.parametrize(
    ("path", "token", "counted"),
    [
        ("/v1/open", None, []),
        ("/v1/busy", None, [429]),
        ("/v1/down", None, []),
        ("/v1/nothing", None, [404]),
        ("/v1/mine", None, [401]),
        ("/v1/mine", "junk", [401]),
        ("/v1/mine", "t", []),
        ("/v2/models/m", None, [401]),
        ("/v2/models/m", "junk", [401]),
        ("/v2/nothing", None, [404]),
    ],
)
def test_refusals_of_strangers_are_counted_and_no_others(
    edge: Edge, path: str, token: str | None, counted: list[int]
) -> None:
    edge.call("GET", path, token=token)
    assert edge.noted.strangers == [("192.0.2.7", status) for status in counted]


def test_a_connection_without_an_address_is_counted_too(edge: Edge) -> None:
    edge.call("GET", "/v1/mine", client=None)
    assert edge.noted.strangers == [("", 401)]


def exchange(edge: Edge, kind: str, *messages: dict[str, Any]) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []
    waiting = list(messages)

    async def receive() -> dict[str, Any]:
        return waiting.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(edge.app({"type": kind, "path": "/", "headers": []}, receive, send))
    return sent


def test_a_websocket_is_closed(edge: Edge) -> None:
    assert exchange(edge, "websocket") == [{"type": "websocket.close", "code": 1003}]


def test_workers_are_closed_when_the_server_stops(edge: Edge) -> None:
    sent = exchange(edge, "lifespan", {"type": "lifespan.startup"}, {"type": "lifespan.shutdown"})
    assert [message["type"] for message in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert edge.closed == 1


def test_look_ups_of_a_tenant_that_all_wait_leave_threads_for_the_next(edge: Edge) -> None:
    """A tenant has 64 requests under way by default: all of them wait in a thread, and one of another is served."""
    went: list[str] = []

    async def serve() -> None:
        over = threading.Event()

        async def look_ups() -> None:
            waiting = [asyncio.create_task(asyncio.to_thread(over.wait)) for _ in range(64)]
            await asyncio.wait_for(asyncio.to_thread(went.append, "the next"), timeout=20)
            over.set()
            await asyncio.gather(*waiting)

        messages = iter(["lifespan.startup", "lifespan.shutdown"])

        async def receive() -> dict[str, Any]:
            kind = next(messages)
            if kind == "lifespan.shutdown":
                try:
                    await look_ups()
                finally:
                    over.set()
            return {"type": kind}

        async def send(_message: Any) -> None:
            return None

        await edge.app({"type": "lifespan", "path": "/", "headers": []}, receive, send)

    asyncio.run(serve())
    assert went == ["the next"]


def test_the_data_plane_says_that_it_lives_and_what_it_is(edge: Edge) -> None:
    assert edge.call("GET", "/v2/health/live").body == b'{"live":true}'
    assert edge.call("GET", "/v2/health/ready").body == b'{"ready":true}'
    assert edge.call("GET", "/v2").json()["name"] == "modelkeep"


@pytest.mark.parametrize(
    ("path", "waits"),
    [("/v1/busy", True), ("/v1/open", False), ("/v1/down", False)],
    ids=str,
)
def test_refusals_for_too_many_requests_wait_before_they_leave_and_not_all_as_long(
    edge: Edge, path: str, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    sleep, here = asyncio.sleep, threading.get_ident()

    async def sleeping(seconds: float) -> None:
        # A server that another test left running sleeps in its own thread.
        if threading.get_ident() == here:
            slept.append(seconds)
            seconds = 0
        await sleep(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleeping)
    for _ in range(64):
        edge.call("GET", path)
    assert len(slept) == (64 if waits else 0)
    # Who was refused together comes again one after the other: in each eighth of the time, about an eighth of them.
    parts = [int(8 * (seconds / TOO_MANY_WAIT_S - 0.5)) for seconds in slept]
    assert not waits or all(7 <= parts.count(part) <= 9 for part in range(8))
