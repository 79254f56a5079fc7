"""The outermost ASGI application: request ids, limits of the head, and the data plane before the router.

`/v2` goes straight to the raw data plane, which does its own limits and errors; all else to Starlette. Every answer
gets the headers that all of them carry, and a refusal of somebody unknown is counted by source.
"""

from collections.abc import Awaitable, Callable
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modelkeep_platform.core.ids import RequestId, new_object_id
from modelkeep_platform.core.ports import Entropy
from modelkeep_platform.http.answers import ALWAYS, error_response, protocol_error_response
from modelkeep_platform.http.heads import over_limits
from modelkeep_platform.http.refusals import CALLER, Notes

_REFUSALS: Final = range(400, 500)


class Gateway:
    """Dispatches by the first segment of the path.

    Args:
        management: the Starlette application.
        data_plane: the raw application of `/v2`.
        entropy: makes request ids.
        notes: counts refusals of strangers.
        on_shutdown: awaited in the server's own event loop after the last request.
    """

    def __init__(
        self,
        *,
        management: ASGIApp,
        data_plane: ASGIApp,
        entropy: Entropy,
        notes: Notes,
        on_shutdown: Callable[[], Awaitable[None]],
    ) -> None:
        self._management = management
        self._data_plane = data_plane
        self._entropy = entropy
        self._notes = notes
        self._on_shutdown = on_shutdown

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            message: Message = {"type": "websocket.close", "code": 1003}
            await send(message)
            return
        request_id = scope["request_id"] = RequestId(new_object_id(self._entropy, "req"))
        path: str = scope["path"]
        inference = path == "/v2" or path.startswith("/v2/")
        target = self._data_plane if inference else self._management
        refusal = over_limits(scope)
        if refusal is not None:
            respond = protocol_error_response if inference else error_response
            target = respond(refusal, request_id=request_id, resource_metadata="")
        await target(scope, receive, self._outward(scope, request_id, send))

    def _outward(self, scope: Scope, request_id: RequestId, send: Send) -> Send:
        async def complete(message: Message) -> None:
            if message["type"] == "http.response.start":
                if message["status"] in _REFUSALS and scope.get(CALLER) is None:
                    client = scope.get("client")
                    self._notes.of_stranger(client[0] if client else "", message["status"])
                given = {name.lower() for name, _ in message["headers"]}
                extra = [(b"x-request-id", request_id.encode()), *ALWAYS]
                message["headers"] = [*message["headers"], *(one for one in extra if one[0] not in given)]
            await send(message)

        return complete

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()  # lifespan.startup
        await send({"type": "lifespan.startup.complete"})
        await receive()  # lifespan.shutdown
        await self._on_shutdown()
        await send({"type": "lifespan.shutdown.complete"})
