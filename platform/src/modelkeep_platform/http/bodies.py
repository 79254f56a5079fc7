"""Reads request bodies under a limit, in bytes and in time, before anything looks at them."""

import asyncio
from collections.abc import Iterable
from typing import Final, TypeAlias

from starlette.types import Receive

from modelkeep_platform.core.errors import DeadlineError, MalformedError, TooLargeError

BODY_TIMEOUT_S: Final = 60.0
IDENTITY: Final = b"identity"
_LENGTH_DIGITS: Final = 15

Headers: TypeAlias = Iterable[tuple[bytes, bytes]]


async def read_body(
    headers: Headers, receive: Receive, *, limit_bytes: int, timeout_s: float = BODY_TIMEOUT_S
) -> bytes:
    """Return the whole body, which no Content-Encoding may have.

    Raises:
        TooLargeError: more than `limit_bytes`, declared or sent; nothing more is read.
        MalformedError: encoded, not as long as declared, or the client went away.
        DeadlineError: it did not arrive within `timeout_s` seconds.
    """
    headers = list(headers)
    if content_encoding(headers) != IDENTITY:
        raise MalformedError("send the body without a Content-Encoding", code="encoding_refused")
    return await read_raw(headers, receive, limit_bytes=limit_bytes, timeout_s=timeout_s)


async def read_raw(headers: Headers, receive: Receive, *, limit_bytes: int, timeout_s: float = BODY_TIMEOUT_S) -> bytes:
    """Return the whole body as it was sent, whatever its Content-Encoding.

    Raises:
        TooLargeError: more than `limit_bytes`, declared or sent; nothing more is read.
        MalformedError: not as long as declared, or the client went away.
        DeadlineError: it did not arrive within `timeout_s` seconds.
    """
    declared = _declared(headers)
    if declared is not None and declared > limit_bytes:
        raise _too_large(limit_bytes)
    chunks: list[bytes] = []
    size, more = 0, True
    try:
        async with asyncio.timeout(timeout_s):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise MalformedError("the connection closed before the body was whole")
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > limit_bytes:
                    raise _too_large(limit_bytes)
                if declared is not None and size > declared:
                    raise _length("there is more of it")
                chunks.append(chunk)
                more = message.get("more_body", False)
    except TimeoutError as exc:
        raise DeadlineError("the body did not arrive in time; send less at once", code="body_timeout") from exc
    if declared is not None and size != declared:
        raise _length("there is less of it")
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def content_encoding(headers: Headers) -> bytes:
    """Return the Content-Encoding in lower case; `identity` when there is none."""
    found = [value.strip().lower() for name, value in headers if name == b"content-encoding"]
    return b", ".join(found) or IDENTITY


def _declared(headers: Headers) -> int | None:
    found = {value for name, value in headers if name == b"content-length"}
    if not found:
        return None
    # Two different lengths are what request smuggling is made of.
    if len(found) > 1 or not all(value.isdigit() for value in found):
        raise _length("it is not one number")
    digits = found.pop().lstrip(b"0")
    return int(digits or b"0") if len(digits) <= _LENGTH_DIGITS else 10**_LENGTH_DIGITS


def _length(what: str) -> MalformedError:
    return MalformedError(f"the Content-Length is not that of the body: {what}", code="invalid_length")


def _too_large(limit_bytes: int) -> TooLargeError:
    return TooLargeError(
        f"the body is larger than the limit of {limit_bytes} bytes; send less at once",
        details={"limit_bytes": limit_bytes},
    )
