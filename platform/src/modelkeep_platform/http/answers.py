"""Answers: JSON, the one error envelope, and the headers every answer carries."""

import logging
from typing import Any, Final

import msgspec
from starlette.responses import Response

from modelkeep_platform.core.errors import ModelkeepError, PlatformError, RateLimitedError
from modelkeep_platform.core.ids import RequestId
from modelkeep_platform.http.status import status_of

_log = logging.getLogger(__name__)

_HEADERS: Final = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
INTERNAL: Final = PlatformError("something went wrong on the platform; the operator finds it by the request id")


def encode(value: object) -> bytes:
    """Return `value` as JSON; dataclasses and sets become objects and arrays."""
    return msgspec.json.encode(value, order="deterministic")


def json_response(body: bytes, *, status: int, request_id: RequestId) -> Response:
    """Return JSON that is already encoded."""
    return Response(
        body, status_code=status, media_type="application/json", headers={**_HEADERS, "x-request-id": request_id}
    )


def error_response(error: BaseException, *, request_id: RequestId, resource_metadata: str) -> Response:
    """Return the envelope of `error`; anything unexpected is logged and shown as `internal`.

    Args:
        error: what was raised.
        request_id: ties the answer to the log.
        resource_metadata: the RFC 9728 address named in a 401's WWW-Authenticate.
    """
    if not isinstance(error, ModelkeepError):
        _log.error("request %s failed", request_id, exc_info=error)
        error = INTERNAL
    elif isinstance(error, PlatformError):
        _log.warning("request %s: %s: %s", request_id, error.error_code, error.message)
    status = status_of(error)
    body: dict[str, Any] = {
        "error": {
            "code": error.error_code,
            "message": error.message,
            "request_id": request_id,
            "details": error.details,
        }
    }
    response = json_response(encode(body), status=status, request_id=request_id)
    if status == 401:  # noqa: PLR2004 -- RFC 9110's number is the name
        response.headers["www-authenticate"] = f'Bearer resource_metadata="{resource_metadata}"'
    if isinstance(error, RateLimitedError):
        response.headers["retry-after"] = str(error.retry_after_s)
    return response
