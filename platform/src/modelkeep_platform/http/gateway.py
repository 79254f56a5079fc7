"""The outermost ASGI application: request ids, and the data plane before the router.

`/v2` goes straight to the raw data plane, which does its own limits and errors; all else to Starlette.
"""

from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modelkeep_platform.core.ids import RequestId, new_object_id
from modelkeep_platform.core.ports import Entropy


class Gateway:
    """Dispatches by the first segment of the path.

    Args:
        management: the Starlette application.
        data_plane: the raw application of `/v2`.
        entropy: makes request ids.
        on_shutdown: awaited in the server's own event loop after the last request.
    """

    def __init__(
        self,
        *,
        management: ASGIApp,
        data_plane: ASGIApp,
        entropy: Entropy,
        on_shutdown: Callable[[], Awaitable[None]],
    ) -> None:
        self._management = management
        self._data_plane = data_plane
        self._entropy = entropy
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
        scope["request_id"] = RequestId(new_object_id(self._entropy, "req"))
        path: str = scope["path"]
        target = self._data_plane if path == "/v2" or path.startswith("/v2/") else self._management
        await target(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()  # lifespan.startup
        await send({"type": "lifespan.startup.complete"})
        await receive()  # lifespan.shutdown
        await self._on_shutdown()
        await send({"type": "lifespan.shutdown.complete"})
