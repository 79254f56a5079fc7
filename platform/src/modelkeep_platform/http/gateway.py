"""The outermost ASGI application: request ids, limits of the head, and the data plane before the router.

`/v2` goes straight to the raw data plane, which does its own limits and errors; all else to Starlette. Every answer
gets the headers that all of them carry, a refusal of somebody unknown is counted by source, and each request is a line
of the log. A refusal for too many requests waits before it leaves: who floods and waits for answers floods less. When
the disk is as good as full, what would write is refused here, before anything is read: what is left of it is kept for
the log. Reading, deleting and logging in go on, and the operator's own work.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import anyio.to_thread
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modelkeep_platform.core.errors import ModelkeepError, UnavailableError
from modelkeep_platform.core.ids import RequestId, RequestIds
from modelkeep_platform.core.ports import Entropy
from modelkeep_platform.http.answers import ALWAYS, code_of, error_response, protocol_error_response
from modelkeep_platform.http.heads import over_limits
from modelkeep_platform.http.refusals import CALLER, Notes
from modelkeep_platform.http.status import REFUSALS
from modelkeep_platform.http.watch import CODE, STATUS, Watch
from modelkeep_platform.storage.blobs import FULL

_THREADS: Final = 160
_TOO_MANY: Final = frozenset({"rate_limited", "too_many_at_once"})
_WRITES: Final = frozenset({"POST", "PUT", "PATCH"})


TOO_MANY_WAIT_S: Final = 0.2
"""Far below any Retry-After; with it, 64 connections that do not heed theirs ask 320 times a second, and not 4000."""
_GOLDEN: Final = 0.618034  # steps of it, within one, fall evenly wherever one begins and however many follow


class Gateway:
    """Dispatches by the first segment of the path.

    Args:
        management: the Starlette application.
        data_plane: the raw application of `/v2`.
        entropy: makes request ids.
        notes: counts refusals of strangers.
        on_shutdown: awaited in the server's own event loop after the last request.
        watch: told of every request when it is over.
        has_room: whether the disk takes more than the log.
        too_many_wait_s: how long refusals for too many requests wait before they leave, in seconds: each from half to
            one and a half times as long.
    """

    def __init__(
        self,
        *,
        management: ASGIApp,
        data_plane: ASGIApp,
        entropy: Entropy,
        notes: Notes,
        on_shutdown: Callable[[], Awaitable[None]],
        watch: Watch | None = None,
        has_room: Callable[[], bool] = lambda: True,
        too_many_wait_s: float = TOO_MANY_WAIT_S,
    ) -> None:
        self._too_many_wait_s = too_many_wait_s
        self._spread = 0.0
        self._management = management
        self._data_plane = data_plane
        self._request_ids = RequestIds(entropy)
        self._notes = notes
        self._on_shutdown = on_shutdown
        self._watch = watch or Watch()
        self._has_room = has_room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            message: Message = {"type": "websocket.close", "code": 1003}
            await send(message)
            return
        request_id = scope["request_id"] = self._request_ids.new()
        path: str = scope["path"]
        inference = path == "/v2" or path.startswith("/v2/")
        target = self._data_plane if inference else self._management
        refusal = over_limits(scope) or self._without_room(scope)
        if refusal is not None:
            respond = protocol_error_response if inference else error_response
            scope[CODE] = refusal.error_code
            target = respond(refusal, request_id=request_id, resource_metadata="")
        began = time.perf_counter()
        try:
            await target(scope, receive, self._outward(scope, request_id, send))
        except Exception as exc:
            # An answer that broke off: its status was sent before anything was wrong.
            scope.setdefault(CODE, code_of(exc))
            raise
        finally:
            self._watch.saw(scope, time.perf_counter() - began)

    def _without_room(self, scope: Scope) -> ModelkeepError | None:
        path = scope["path"]
        if scope["method"] not in _WRITES or not path.startswith(("/v1/", "/v2/")) or path.startswith("/v1/tenants"):
            return None
        if self._has_room():
            return None
        return UnavailableError(FULL, code="disk_full")

    def _outward(self, scope: Scope, request_id: RequestId, send: Send) -> Send:
        async def complete(message: Message) -> None:
            if message["type"] == "http.response.start":
                scope[STATUS] = message["status"]
                if message["status"] in REFUSALS and scope.get(CALLER) is None:
                    client = scope.get("client")
                    self._notes.of_stranger(client[0] if client else "", message["status"])
                if scope.get(CODE) in _TOO_MANY:
                    # No place of the tenant is held meanwhile: it was refused before it got one, or gave it back.
                    # Not all as long: who was refused together would come again together, in front of everybody.
                    self._spread = (self._spread + _GOLDEN) % 1.0
                    await asyncio.sleep(self._too_many_wait_s * (0.5 + self._spread))
                given = {name.lower() for name, _ in message["headers"]}
                extra = [(b"x-request-id", request_id.encode()), *ALWAYS]
                message["headers"] = [*message["headers"], *(one for one in extra if one[0] not in given)]
            await send(message)

        return complete

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()  # lifespan.startup
        # Calls of /v1 run in threads of the first kind, look-ups of /v2 in threads of the second, of which there would
        # be six on two cores; one tenant, held to its concurrent requests, cannot take all of them.
        anyio.to_thread.current_default_thread_limiter().total_tokens = _THREADS
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, thread_name_prefix="lookup"))
        await send({"type": "lifespan.startup.complete"})
        await receive()  # lifespan.shutdown
        await self._on_shutdown()
        await send({"type": "lifespan.shutdown.complete"})
