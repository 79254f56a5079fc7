"""The two drivers: they perform the commands of flows, one blocking, one awaited, and nothing else.

What they guarantee for both: no redirect is followed, no cookie is kept, no compressed answer is taken, an answer is
read up to its bound and no further, and every error of the HTTP library becomes one of ours.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from http.cookiejar import DefaultCookiePolicy
from typing import Any, Final, TypeVar

import httpx

from modelkeep._core.flows import Command, Flow, Request, Response, Sink, Sleep
from modelkeep._version import __version__
from modelkeep.errors import ConnectionFailedError, ModelkeepError, ProtocolError, TimeoutError  # noqa: A004

T = TypeVar("T")
_MAX_ERROR_BYTES: Final = 1024 * 1024
_SLOWEST_BYTES_PER_S: Final = 16 * 1024
_USER_AGENT: Final = f"modelkeep-python/{__version__}"
_NOT_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)


class Body:
    """Takes an answer's body, bounded in bytes and in time.

    Args:
        request: says the bound and where the bytes go.
        status: of the answer.
        headers: of the answer.
        timeout_s: how long the body may take, beyond what its bytes take at 16 KiB/s.
    """

    def __init__(self, request: Request, status: int, headers: Mapping[str, str], timeout_s: float) -> None:
        self._status = status
        self._headers = {name.lower(): value for name, value in headers.items()}
        self._success = 200 <= status < 300  # noqa: PLR2004 -- RFC 9110's classes of status
        self._limit = request.max_bytes if self._success else _MAX_ERROR_BYTES
        self._sink: Sink | None = request.sink() if request.sink is not None and self._success else None
        self._chunks: list[bytes] = []
        self._size = 0
        self._timeout_s = timeout_s
        self._started = time.monotonic()
        if 300 <= status < 400:  # noqa: PLR2004
            raise ProtocolError("the server answered with a redirect, which is never followed; check the address")
        if self._headers.get("content-encoding", "identity") != "identity":
            raise ProtocolError("the server sent a compressed answer, which was not asked for")
        declared = self._headers.get("content-length", "")
        if declared.isdigit() and int(declared[:18]) > self._limit:
            raise self._too_large()

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes.

        Raises:
            ProtocolError: more bytes than the bound.
            TimeoutError: they trickle.
        """
        self._size += len(chunk)
        if self._size > self._limit:
            raise self._too_large()
        if time.monotonic() - self._started > self._timeout_s + self._size / _SLOWEST_BYTES_PER_S:
            raise TimeoutError("the server's answer did not arrive in time")
        if self._sink is None:
            self._chunks.append(chunk)
        else:
            self._sink.write(chunk)

    def finish(self) -> Response:
        """Return the whole answer."""
        return Response(status=self._status, headers=self._headers, body=b"".join(self._chunks))

    def _too_large(self) -> ProtocolError:
        return ProtocolError(f"the server's answer is larger than the bound of {self._limit} bytes")


def mapped(error: Exception) -> ModelkeepError:
    """Return our error for one of the HTTP library's.

    The library's own text is left out: it may quote the server's.
    """
    sent = not isinstance(error, _NOT_SENT)
    if isinstance(error, httpx.TimeoutException):
        return TimeoutError("the server did not answer in time; try again, or pass a longer `timeout`", sent=sent)
    if isinstance(error, httpx.ConnectError):
        certificate = isinstance(_root_cause(error), ssl.SSLError)
        reason = "its certificate does not verify" if certificate else "nothing answers there"
        return ConnectionFailedError(f"the server cannot be reached: {reason}; check the address", sent=sent)
    if isinstance(error, httpx.ProxyError):
        return ConnectionFailedError("the proxy refused the connection; check the proxy settings", sent=sent)
    if isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError):
        return ConnectionFailedError("the connection broke before the answer was whole; try again", sent=sent)
    return ProtocolError("the server cannot be spoken to as it should; check the address")


def _root_cause(error: BaseException) -> BaseException:
    seen = 0
    while (inner := error.__cause__ or error.__context__) is not None and seen < 10:  # noqa: PLR2004 -- no endless chain
        error, seen = inner, seen + 1
    return error


class SyncDriver:
    """Performs flows with `httpx.Client`; may be shared by threads.

    Args:
        timeout_s: for connecting, and for each read and write.
        trust_env: whether proxies from the environment are used.
        ca_file: PEM certificates to trust instead of the usual ones.
        transport: replaces the network, for tests.
    """

    def __init__(
        self, *, timeout_s: float, trust_env: bool, ca_file: str | None, transport: httpx.BaseTransport | None
    ) -> None:
        self._timeout_s = timeout_s
        self._options = _options(timeout_s, trust_env=trust_env, ca_file=ca_file)
        self._transport = transport
        self._client: httpx.Client | None = None
        self._lock = threading.Lock()
        self._closed = False
        self.sleep: Callable[[float], object] = time.sleep

    def run(self, flow: Flow[T]) -> T:
        """Perform `flow` and return its result."""
        with closing(flow):
            try:
                command = next(flow)
                while True:
                    try:
                        answer = self._perform(command)
                    except ModelkeepError as exc:
                        command = flow.throw(exc)
                    else:
                        command = flow.send(answer)
            except StopIteration as stop:
                result: T = stop.value
                return result

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            client, self._client, self._closed = self._client, None, True
        if client is not None:
            client.close()

    def _perform(self, command: Command) -> Response | None:
        if isinstance(command, Sleep):
            self.sleep(command.seconds)
            return None
        try:
            with self._open().stream(
                command.method, command.url, headers=dict(command.headers), content=command.content
            ) as answer:
                body = Body(command, answer.status_code, answer.headers, self._timeout_s)
                for chunk in answer.iter_raw():
                    body.feed(chunk)
                return body.finish()
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as exc:
            raise mapped(exc) from exc

    def _open(self) -> httpx.Client:
        with self._lock:
            if self._closed:
                raise ModelkeepError("this client was closed; make another")
            if self._client is None:
                self._client = httpx.Client(transport=self._transport, **self._options)
                _refuse_cookies(self._client)
            return self._client


class AsyncDriver:
    """Performs flows with `httpx.AsyncClient`; belongs to one event loop. Arguments as for `SyncDriver`."""

    def __init__(
        self, *, timeout_s: float, trust_env: bool, ca_file: str | None, transport: httpx.AsyncBaseTransport | None
    ) -> None:
        self._timeout_s = timeout_s
        self._options = _options(timeout_s, trust_env=trust_env, ca_file=ca_file)
        self._transport = transport
        self._client: httpx.AsyncClient | None = None
        self._closed = False
        self.sleep: Callable[[float], Any] = asyncio.sleep

    async def run(self, flow: Flow[T]) -> T:
        """Perform `flow` and return its result."""
        with closing(flow):
            try:
                command = next(flow)
                while True:
                    try:
                        answer = await self._perform(command)
                    except ModelkeepError as exc:
                        command = flow.throw(exc)
                    else:
                        command = flow.send(answer)
            except StopIteration as stop:
                result: T = stop.value
                return result

    async def close(self) -> None:
        """Close the connections."""
        client, self._client, self._closed = self._client, None, True
        if client is not None:
            await client.aclose()

    async def _perform(self, command: Command) -> Response | None:
        if isinstance(command, Sleep):
            await self.sleep(command.seconds)
            return None
        try:
            async with self._open().stream(
                command.method, command.url, headers=dict(command.headers), content=command.content
            ) as answer:
                body = Body(command, answer.status_code, answer.headers, self._timeout_s)
                async for chunk in answer.aiter_raw():
                    body.feed(chunk)
                return body.finish()
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as exc:
            raise mapped(exc) from exc

    def _open(self) -> httpx.AsyncClient:
        if self._closed:
            raise ModelkeepError("this client was closed; make another")
        if self._client is None:
            self._client = httpx.AsyncClient(transport=self._transport, **self._options)
            _refuse_cookies(self._client)
        return self._client


def _options(timeout_s: float, *, trust_env: bool, ca_file: str | None) -> dict[str, Any]:
    return {
        "timeout": httpx.Timeout(timeout_s, connect=min(timeout_s, 10.0)),
        "follow_redirects": False,
        "trust_env": trust_env,
        "verify": True if ca_file is None else ssl.create_default_context(cafile=ca_file),
        "headers": {"user-agent": _USER_AGENT, "accept-encoding": "identity"},
    }


def _refuse_cookies(client: httpx.Client | httpx.AsyncClient) -> None:
    client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))
