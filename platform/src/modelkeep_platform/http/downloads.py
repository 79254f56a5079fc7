"""Answers that are sent part by part, as fast as they are read and no slower than a deadline allows."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

from starlette.concurrency import iterate_in_threadpool
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from modelkeep_platform.core.errors import DeadlineError
from modelkeep_platform.core.limits import KIB

READ_TIMEOUT_S: Final = 60.0
_PIECE: Final = 256 * KIB


class Download(StreamingResponse):
    """Bytes in parts; ends when nobody reads on.

    Args:
        parts: the bytes.
        headers: of the answer.

    Attributes:
        held: what the request holds until the last part is sent: its tenant's place among the requests under way.
        read_timeout_s: how long 256 KiB may take to be read, in seconds.
    """

    held: AbstractContextManager[Any, Any] = nullcontext()
    read_timeout_s = READ_TIMEOUT_S

    def __init__(self, parts: Iterator[bytes], *, headers: Mapping[str, str]) -> None:
        super().__init__((), media_type="application/octet-stream", headers=headers)
        self._parts = iterate_in_threadpool(parts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it.

        Raises:
            DeadlineError: it is read too slowly; what was sent is all there is.
        """
        with self.held:
            await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        """Send it, in pieces for which a deadline means something."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for part in self._parts:
            for at in range(0, len(part), _PIECE):
                await self._send(send, part[at : at + _PIECE], more=True)
        await self._send(send, b"", more=False)

    async def _send(self, send: Send, piece: bytes, *, more: bool) -> None:
        try:
            async with asyncio.timeout(self.read_timeout_s):
                await send({"type": "http.response.body", "body": piece, "more_body": more})
        except TimeoutError as exc:
            raise DeadlineError("the answer was not read in time; ask for it again", code="answer_timeout") from exc
