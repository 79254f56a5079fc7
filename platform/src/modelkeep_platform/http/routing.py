"""Endpoints: each is declared with its action or with the reason it is public; neither, and it cannot be.

An endpoint's handler is synchronous and runs in a thread. It gets a `Call` and returns a value, which becomes
JSON, or a Starlette response. Bodies are read under a limit before anything is parsed; the caller is
authenticated before the body is read.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import Caller, OperatorCaller, TenantCaller
from modelkeep_platform.core.errors import ForbiddenError, MalformedError, UnauthenticatedError
from modelkeep_platform.core.ids import RequestId
from modelkeep_platform.core.limits import DEFAULT_PAGE, MAX_JSON_BYTES
from modelkeep_platform.storage.pages import PageRequest, not_ours


@dataclass(frozen=True, slots=True)
class Public:
    """Marks an endpoint that needs no token, and says why it may be so."""

    reason: str


@dataclass(frozen=True, slots=True)
class Authenticated:
    """Marks an endpoint that any verified caller may use, and says why no action decides it."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request, as handlers see it."""

    request_id: RequestId
    source: str
    caller: Caller | None
    path: Mapping[str, str]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Any
    raw: bytes

    @property
    def tenant_caller(self) -> TenantCaller:
        """Return the caller, who must be of a tenant.

        Raises:
            ForbiddenError: an operator asked for something that only tenants have.
        """
        if isinstance(self.caller, TenantCaller):
            return self.caller
        raise ForbiddenError("this belongs to tenants; an operator has no access to it", code="operator_forbidden")

    @property
    def operator(self) -> OperatorCaller:
        """Return the caller, who must be an operator.

        Raises:
            ForbiddenError: a tenant's principal asked for an operator's work.
        """
        if isinstance(self.caller, OperatorCaller):
            return self.caller
        raise ForbiddenError("only the platform's operator may do this", code="operator_only")

    @property
    def any_caller(self) -> Caller:
        """Return the caller, of either kind."""
        if self.caller is None:
            raise UnauthenticatedError("log in first", code="token_missing")
        return self.caller

    @property
    def page(self) -> PageRequest:
        """Return the page asked for by `limit` and `cursor`."""
        limit, cursor = self.integer("limit"), self.query.get("cursor")
        if cursor is not None and not _CURSOR.match(cursor):
            raise not_ours()
        return PageRequest(limit=DEFAULT_PAGE if limit is None else limit, cursor=cursor)

    def integer(self, name: str) -> int | None:
        """Return the query parameter `name` as a number, or None when it is absent.

        Raises:
            MalformedError: it is not a decimal number.
        """
        text = self.query.get(name)
        return None if text is None else decimal(text, name)


MAX_QUERY_CHARS: Final = 512
_CURSOR: Final = re.compile(r"(?:[A-Za-z0-9_-]{4})*(?:[A-Za-z0-9_-]{2}==|[A-Za-z0-9_-]{3}=)?\Z")
_MAX_DIGITS: Final = 15
_INT64: Final = 1 << 63


def decimal(text: str, what: str) -> int:
    """Return the decimal number `text`.

    Raises:
        MalformedError: it is not 1 to 15 ASCII digits.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise MalformedError(f"`{what}` is a decimal number", code="invalid_parameter")
    return int(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One method of one path.

    Args:
        method: the HTTP method.
        path: Starlette's path template.
        guard: the action that decides the call, or the reason why none does.
        handler: called in a thread.
        summary: an imperative sentence, for the reference.
        body: the msgspec type of the JSON body; None when there is no body; `bytes` for a raw one.
        returns: the type of the JSON answer; None for an empty one.
        status: the status of success.
        query: names of the query parameters it takes.
        limit_bytes: the largest accepted body.
        replayable: whether the answer may be kept for an `Idempotency-Key`; false when it holds a secret.
        media_type: of the answer, when it is not JSON.
        refuses: statuses of refusals beyond those that its shape implies, for the reference.
    """

    method: str
    path: str
    guard: Action | Public | Authenticated
    handler: Callable[[Call], Any]
    summary: str
    body: Any = None
    returns: Any = None
    status: int = 200
    query: tuple[str, ...] = ()
    limit_bytes: int = MAX_JSON_BYTES
    replayable: bool = True
    media_type: str = "application/json"
    refuses: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.guard, Action | Public | Authenticated):
            raise TypeError(f"{self.method} {self.path} is registered without an action or a reason")
        if not isinstance(self.guard, Action) and not self.guard.reason.strip():
            raise TypeError(f"{self.method} {self.path} is registered without saying why no action decides it")


def parse_body(value: object, wanted: Any) -> Any:  # noqa: ANN401 -- any msgspec type
    """Convert parsed strict JSON to the endpoint's type.

    Raises:
        MalformedError: a field is missing, unknown or of another type; the message names the place. Or an integer has
            more than 64 bits, which neither the database nor a JSON writer takes.
    """
    _refuse_wide(value)
    try:
        return msgspec.convert(value, wanted, strict=True)
    except msgspec.ValidationError as exc:
        raise MalformedError(f"the body is not what is wanted here: {_lower(str(exc))}", code="invalid_body") from exc


def _refuse_wide(value: object) -> None:
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            pending += item.values()
        elif isinstance(item, list):
            pending += item
        elif isinstance(item, int) and not -_INT64 <= item < _INT64:
            raise MalformedError("an integer in the body has more than 64 bits", code="invalid_body")


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
