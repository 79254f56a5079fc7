"""A connection's head has a bound in bytes and in time; what keeps within is served as ever."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn

from modelkeep_platform.http import connection
from modelkeep_platform.http.connection import HEAD_BYTES, BoundedProtocol, JoinedWrites

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bytes]]
REQUEST = b"POST /a HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\n\r\nabc"


async def _app(scope: Any, receive: Any, send: Any) -> None:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    answer = scope["path"].encode() + b":" + str(len(body)).encode()
    headers = [(b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


def talk(conversation: Talk) -> bytes:
    """Hold a conversation with a server of one connection."""

    async def run() -> bytes:
        config = uvicorn.Config(_app, http=BoundedProtocol, ws="none", lifespan="off", log_config=None)
        config.load()
        server = uvicorn.Server(config)
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(
            lambda: BoundedProtocol(config=config, server_state=server.server_state, app_state={}), "127.0.0.1", 0
        )
        host, port = listener.sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(host, port)
        try:
            async with asyncio.timeout(20):
                return await conversation(reader, writer)
        finally:
            writer.close()
            listener.close()
            await asyncio.gather(*server.server_state.tasks, return_exceptions=True)

    return asyncio.run(run())


async def _answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return head.partition(b"\r\n")[0] + b" " + await reader.readexactly(size)


def test_requests_on_one_connection_are_served_whatever_their_pieces() -> None:
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        answers = []
        for cut in (0, 1, 20, len(REQUEST) - 2):
            writer.write(REQUEST[:cut])
            await writer.drain()
            writer.write(REQUEST[cut:])
            answers.append(await _answer(reader))
        writer.write(REQUEST * 2)
        answers += [await _answer(reader), await _answer(reader)]
        return b"|".join(set(answers))

    assert talk(conversation) == b"HTTP/1.1 200 OK /a:3"


def test_a_large_body_is_not_a_large_head() -> None:
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"POST /b HTTP/1.1\r\nhost: h\r\ncontent-length: 300000\r\n\r\n")
        for _ in range(30):
            writer.write(b"x" * 10_000)
            await writer.drain()
        return await _answer(reader)

    assert talk(conversation) == b"HTTP/1.1 200 OK /b:300000"


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        pytest.param(b"GET /", b"a" * 4096, id="path"),
        pytest.param(b"GET / HTTP/1.1\r\nhost: h\r\nx: ", b"a" * 4096, id="one-header"),
        pytest.param(b"GET / HTTP/1.1\r\nhost: h\r\n", b"x: y\r\n" * 700, id="many-headers"),
    ],
)
def test_a_head_without_end_ends_the_connection(start: bytes, piece: bytes) -> None:
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        sent = len(start)
        writer.write(start)
        try:
            while sent < 40 * HEAD_BYTES:
                writer.write(piece)
                await writer.drain()
                sent += len(piece)
            return await reader.read()
        except ConnectionError:
            return b"closed"

    assert talk(conversation) in {b"", b"closed"}


@pytest.mark.parametrize("start", [b"", b"GET / HTTP/1.1\r\nhost: "], ids=["silent", "half"])
def test_a_head_that_does_not_come_ends_the_connection(start: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.02)

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(start)
        return await reader.read()

    assert talk(conversation) == b""


def test_a_second_head_has_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.05)

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(REQUEST)
        first = await _answer(reader)
        writer.write(b"GET / HTTP/1.1\r\n")
        return first + b"|" + await reader.read()

    assert talk(conversation) == b"HTTP/1.1 200 OK /a:3|"


class Sent(asyncio.Transport):
    """Notes what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, bytes]] = []

    def write(self, data: Any) -> None:
        self.calls.append(("write", bytes(data)))

    def writelines(self, list_of_data: Any) -> None:
        self.calls.append(("writelines", b"|".join(list_of_data)))

    def close(self) -> None:
        self.calls.append(("close", b""))

    def abort(self) -> None:
        self.calls.append(("abort", b""))


def test_head_and_body_leave_together_and_nothing_stays_behind() -> None:
    async def run() -> None:
        sent = Sent()
        joined = JoinedWrites(sent, asyncio.get_running_loop())
        joined.write(b"head")
        assert sent.calls == []
        joined.write(b"body")
        joined.write(b"more")
        assert sent.calls == [("writelines", b"head|body")]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert sent.calls[1:] == [("write", b"more")]
        joined.write(b"last")
        joined.close()
        assert sent.calls[2:] == [("write", b"last"), ("close", b"")]
        joined.write(b"dropped")
        joined.abort()
        await asyncio.sleep(0)
        assert sent.calls[4:] == [("abort", b"")]

    asyncio.run(run())
