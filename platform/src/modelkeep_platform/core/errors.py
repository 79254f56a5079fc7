"""The tree of errors, by whose fault they are.

Every error has a stable `code`; `http` and `rpc` map codes to status numbers, nothing else does.
Messages are lower case, without a full stop, put the caller's input in backticks and say what to do.
They never hold secrets, paths, row values or internal types.
"""

from collections.abc import Mapping
from typing import ClassVar, TypeAlias

Details: TypeAlias = Mapping[str, object]


class ModelkeepError(Exception):
    """Base of every error the platform raises on purpose.

    Args:
        message: what went wrong and what to do about it, safe to show to the caller.
        code: a more specific stable code than the class's own.
        details: JSON-ready facts that a program may act on.

    Attributes:
        recorded: whether the audit log has it, so that nobody notes it again.
    """

    code: ClassVar[str] = "internal"

    def __init__(self, message: str, *, code: str | None = None, details: Details | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.error_code = code or type(self).code
        self.details: Details = dict(details or {})
        self.recorded = False


class CallerError(ModelkeepError):
    """The call was wrong; repeating it unchanged will fail again."""

    code = "bad_request"


class MalformedError(CallerError):
    """The bytes are not what the protocol says: not JSON, a wrong type, a missing field (400)."""

    code = "malformed"


class UnauthenticatedError(CallerError):
    """No credential, or one that does not verify (401)."""

    code = "unauthenticated"


class ForbiddenError(CallerError):
    """The caller is known and the object is visible, but policy denies the action (403)."""

    code = "forbidden"


class NotFoundError(CallerError):
    """There is no such object, or the caller may not know that there is (404)."""

    code = "not_found"


class ConflictError(CallerError):
    """The state does not allow it: a name is taken, an upload is complete (409)."""

    code = "conflict"


class TooLargeError(CallerError):
    """More bytes than the limit (413)."""

    code = "too_large"


class UnprocessableError(CallerError):
    """Well-formed, but refused for what it says: an operation, a cell, a parameter (422)."""

    code = "unprocessable"


class BudgetError(CallerError):
    """The privacy budget does not allow the job; nothing was spent (409)."""

    code = "budget_exceeded"


class RateLimitedError(CallerError):
    """Too many calls; `retry_after_s` says when to try again (429)."""

    code = "rate_limited"

    def __init__(self, message: str, *, retry_after_s: int, code: str | None = None) -> None:
        super().__init__(message, code=code, details={"retry_after_s": retry_after_s})
        self.retry_after_s = retry_after_s


class PlatformError(ModelkeepError):
    """The platform could not do it; the call itself may be fine."""

    code = "internal"


class UnavailableError(PlatformError):
    """A part is down or starting: try again later (503)."""

    code = "unavailable"


class DeadlineError(PlatformError):
    """The work did not finish in the time allowed (504)."""

    code = "deadline_exceeded"


class IntegrityError(PlatformError):
    """Stored or received bytes do not authenticate; nothing of them was used (500)."""

    code = "integrity"
