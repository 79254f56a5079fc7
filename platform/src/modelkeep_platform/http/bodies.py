"""Reads request bodies under a limit, in bytes and in time, before anything looks at them."""

import asyncio
from typing import Final

from starlette.requests import ClientDisconnect, Request

from modelkeep_platform.core.errors import DeadlineError, MalformedError, TooLargeError

BODY_TIMEOUT_S: Final = 60.0


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """Return the whole body.

    Raises:
        TooLargeError: more than `limit_bytes`, declared or sent; nothing more is read.
        MalformedError: a Content-Length that is no number, an encoding, or a client that went away.
        DeadlineError: it did not arrive within a minute.
    """
    declared = request.headers.get("content-length")
    if declared is not None:
        if not (declared.isascii() and declared.isdigit()):
            raise MalformedError("the Content-Length is not a number")
        if int(declared) > limit_bytes:
            raise _too_large(limit_bytes)
    if request.headers.get("content-encoding", "identity") != "identity":
        raise MalformedError("send the body without a Content-Encoding", code="encoding_refused")
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit_bytes:
                    raise _too_large(limit_bytes)
                chunks.append(chunk)
    except TimeoutError as exc:
        raise DeadlineError("the body did not arrive in time; send smaller parts", code="body_timeout") from exc
    except ClientDisconnect as exc:
        raise MalformedError("the connection closed before the body was whole") from exc
    return b"".join(chunks)


def _too_large(limit_bytes: int) -> TooLargeError:
    return TooLargeError(
        f"the body is larger than the limit of {limit_bytes} bytes", details={"limit_bytes": limit_bytes}
    )
