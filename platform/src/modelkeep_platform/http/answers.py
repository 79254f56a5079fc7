"""Answers: JSON, the one error envelope, the inference protocol's error, and the headers every answer carries."""

import logging
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
from starlette.responses import Response

from modelkeep_platform.core.errors import CallerError, ModelkeepError, PlatformError, RateLimitedError
from modelkeep_platform.core.ids import RequestId
from modelkeep_platform.http.status import status_of
from modelkeep_platform.telemetry.logs import fields

_log = logging.getLogger(__name__)

ALWAYS: Final = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))
UNACKNOWLEDGED: Final = "x-modelkeep-unacknowledged"
INTERNAL: Final = PlatformError("something went wrong on the platform; the operator finds it by the request id")


class MethodNotAllowedError(CallerError):
    """The path exists, but not with this method."""

    code = "method_not_allowed"

    def __init__(self, allowed: str) -> None:
        super().__init__(f"this path takes {allowed}")
        self.allowed = allowed


def encode(value: object) -> bytes:
    """Return `value` as JSON; dataclasses and sets become objects and arrays."""
    return msgspec.json.encode(value, order="deterministic")


def json_response(body: bytes, *, status: int, request_id: RequestId) -> Response:
    """Return JSON that is already encoded."""
    headers = {name.decode(): value.decode() for name, value in ALWAYS}
    return Response(
        body, status_code=status, media_type="application/json", headers={**headers, "x-request-id": request_id}
    )


def announced(work: Callable[[], Response], unacknowledged: Callable[[], Sequence[str]]) -> Response:
    """Do `work`; its answer names the server processes that had not seen what this thread changed.

    The change holds; those processes refuse everything until they have seen it.

    Args:
        work: answers the call.
        unacknowledged: names those processes, once; asked also when `work` raises, or the thread's next call would
            name them.
    """
    try:
        response = work()
    finally:
        behind = unacknowledged()
    if behind:
        response.headers[UNACKNOWLEDGED] = ",".join(behind)
    return response


def error_response(error: BaseException, *, request_id: RequestId, resource_metadata: str) -> Response:
    """Return the envelope of `error`; anything unexpected is logged and shown as `internal`.

    Args:
        error: what was raised.
        request_id: ties the answer to the log.
        resource_metadata: the RFC 9728 address named in a 401's WWW-Authenticate.
    """
    shown = _shown(error, request_id)
    body = {
        "error": {
            "code": shown.error_code,
            "message": shown.message,
            "request_id": request_id,
            "details": shown.details,
        }
    }
    return _refusal(shown, encode(body), request_id, resource_metadata)


def protocol_error_response(error: BaseException, *, request_id: RequestId, resource_metadata: str) -> Response:
    """Return `error` as the Open Inference Protocol wants it: one string, and the code in a header beside it.

    Args:
        error: what was raised.
        request_id: ties the answer to the log.
        resource_metadata: the RFC 9728 address named in a 401's WWW-Authenticate.
    """
    shown = _shown(error, request_id)
    response = _refusal(shown, encode({"error": shown.message}), request_id, resource_metadata)
    response.headers["x-error-code"] = shown.error_code
    return response


def code_of(error: BaseException) -> str:
    """Return the code that an error is answered with."""
    return error.error_code if isinstance(error, ModelkeepError) else INTERNAL.error_code


def _shown(error: BaseException, request_id: RequestId) -> ModelkeepError:
    shown = error if isinstance(error, ModelkeepError) else INTERNAL
    if status_of(shown) == 500:  # noqa: PLR2004 -- RFC 9110's number is the name
        # Where, and of what type, not in its words: those of a database's error hold the row.
        _log.error("a request failed", extra=fields(request_id=request_id, code=shown.error_code), exc_info=error)
    return shown


def _refusal(error: ModelkeepError, body: bytes, request_id: RequestId, resource_metadata: str) -> Response:
    status = status_of(error)
    response = json_response(body, status=status, request_id=request_id)
    if status == 401:  # noqa: PLR2004 -- RFC 9110's number is the name
        response.headers["www-authenticate"] = f'Bearer resource_metadata="{resource_metadata}"'
    if isinstance(error, RateLimitedError):
        response.headers["retry-after"] = str(error.retry_after_s)
    if isinstance(error, MethodNotAllowedError):
        response.headers["allow"] = error.allowed
    return response
