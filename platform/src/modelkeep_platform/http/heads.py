"""Bounds what stands before a body: path, query and headers, before anything is made of them.

`connection` bounds the same while it arrives; here it is refused in the documented shape, whatever server runs the
application.
"""

from typing import Final

from starlette.types import Scope

from modelkeep_platform.core.errors import ModelkeepError, TooLargeError

MAX_TARGET_BYTES: Final = 8 * 1024
MAX_HEADERS: Final = 100
MAX_HEADER_BYTES: Final = 32 * 1024


def over_limits(scope: Scope) -> ModelkeepError | None:
    """Return why the head of a request is refused, or None."""
    if len(scope.get("raw_path") or scope["path"]) + len(scope["query_string"]) > MAX_TARGET_BYTES:
        return TooLargeError(f"the path and query are longer than {MAX_TARGET_BYTES} bytes", code="target_too_long")
    headers = scope["headers"]
    if len(headers) > MAX_HEADERS or sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES:
        return TooLargeError(
            f"a request has at most {MAX_HEADERS} headers of {MAX_HEADER_BYTES} bytes together",
            code="headers_too_large",
        )
    return None
