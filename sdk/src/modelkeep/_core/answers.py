"""From an HTTP answer to JSON or to the typed error it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from modelkeep._core import strictjson
from modelkeep._core.flows import Response
from modelkeep.errors import (
    APIError,
    AuthenticationError,
    BudgetExceededError,
    ConflictError,
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
    ProtocolError,
    RateLimitedError,
    ServerError,
)

_BY_STATUS: Mapping[int, type[APIError]] = {
    401: AuthenticationError,
    403: ForbiddenError,
    404: NotFoundError,
    408: ServerError,
    409: ConflictError,
    429: RateLimitedError,
}
_BUDGET = frozenset({"budget_exceeded", "budget_frozen"})


def is_success(response: Response) -> bool:
    """Return whether the status is 2xx."""
    return 200 <= response.status < 300  # noqa: PLR2004 -- RFC 9110's classes of status


def json_of(response: Response) -> Any:  # noqa: ANN401 -- any JSON value
    """Return the JSON of a successful answer.

    Raises:
        ProtocolError: it is not declared as JSON, or is not strict JSON.
    """
    if media_type(response) != "application/json":
        raise ProtocolError("the server answered with something that is not JSON; is the address that of a platform?")
    return strictjson.loads(response.body)


def text_of(response: Response) -> str:
    """Return the text of a successful answer.

    Raises:
        ProtocolError: it is not declared as plain text in UTF-8.
    """
    if media_type(response) != "text/plain":
        raise ProtocolError("the server answered with something that is not plain text")
    try:
        return response.body.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise ProtocolError("the server's text is not UTF-8") from exc


def media_type(response: Response) -> str:
    """Return the content type without its parameters."""
    return response.headers.get("content-type", "").partition(";")[0].strip().lower()


def error_of(response: Response) -> APIError:
    """Return the typed error that an unsuccessful answer stands for; a broken body still gives one."""
    code, message, details = "", "", dict[str, Any]()
    request_id = response.headers.get("x-request-id", "")
    try:
        body = json_of(response)
    except ProtocolError:
        body = None
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict):
        code = _text(error.get("code"))
        message = _text(error.get("message"))
        request_id = _text(error.get("request_id")) or request_id
        found = error.get("details")
        details = dict(found) if isinstance(found, dict) else {}
    elif isinstance(error, str):  # the Open Inference Protocol's form: one string; our code stands in a header
        message = error
        code = response.headers.get("x-error-code", "")
    wait_s = retry_after_s(response)
    if wait_s is not None:
        details.setdefault("retry_after_s", wait_s)
    kind = BudgetExceededError if code in _BUDGET else _kind(response.status)
    return kind(
        message or f"the server answered with status {response.status}",
        code=code or _DEFAULT_CODES.get(kind, "unknown"),
        status=response.status,
        request_id=request_id,
        details=details,
    )


_DEFAULT_CODES: Mapping[type[APIError], str] = {
    AuthenticationError: "unauthenticated",
    ForbiddenError: "forbidden",
    NotFoundError: "not_found",
    ConflictError: "conflict",
    InvalidRequestError: "bad_request",
    RateLimitedError: "rate_limited",
    ServerError: "internal",
}


def retry_after_s(response: Response, *, now_s: float | None = None) -> float | None:
    """Return how long the server asks to wait, from seconds or an HTTP date; None when it does not ask."""
    text = response.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit() and len(text) <= 9:  # noqa: PLR2004 -- thirty years
        return float(text)
    if not text or now_s is None:
        return None
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now_s)
    except (ValueError, TypeError, OverflowError):
        return None


def _kind(status: int) -> type[APIError]:
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    return InvalidRequestError if 400 <= status < 500 else ServerError  # noqa: PLR2004


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
