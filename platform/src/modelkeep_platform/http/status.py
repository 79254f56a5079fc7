"""The one table from errors to HTTP status, and what is a refusal."""

from typing import Final

from modelkeep_platform.core.errors import (
    BudgetError,
    CallerError,
    ConflictError,
    DeadlineError,
    ForbiddenError,
    MalformedError,
    ModelkeepError,
    NotFoundError,
    RateLimitedError,
    TooLargeError,
    UnauthenticatedError,
    UnavailableError,
    UnprocessableError,
)

REFUSALS: Final = range(400, 500)
"""Statuses of what the caller may not do, or did wrong."""

_BY_CODE: Final = {
    "method_not_allowed": 405,
    "answer_timeout": 408,
    "body_timeout": 408,
    "target_too_long": 414,
    "encoding_refused": 415,
    "headers_too_large": 431,
}
_BY_CLASS: Final[tuple[tuple[type[ModelkeepError], int], ...]] = (
    (MalformedError, 400),
    (UnauthenticatedError, 401),
    (ForbiddenError, 403),
    (NotFoundError, 404),
    (ConflictError, 409),
    (BudgetError, 409),
    (TooLargeError, 413),
    (UnprocessableError, 422),
    (RateLimitedError, 429),
    (UnavailableError, 503),
    (DeadlineError, 504),
)


def status_of(error: ModelkeepError) -> int:
    """Return the status of an error: by its code where one is listed, else by its class, else 400 or 500."""
    if error.error_code in _BY_CODE:
        return _BY_CODE[error.error_code]
    for kind, status in _BY_CLASS:
        if isinstance(error, kind):
            return status
    return 400 if isinstance(error, CallerError) else 500
