"""What is said of each request of both planes when it is over: one line of the log, and the counts.

Taken from the scope, where each plane leaves what it found out: the route's template and action, the caller, the code
of the error. Neither path nor query is written, nor anything of a body or a header.
"""

import logging
from typing import Any, Final, Protocol

from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.ids import TenantId
from modelkeep_platform.http.refusals import CALLER
from modelkeep_platform.http.status import REFUSALS
from modelkeep_platform.telemetry.logs import say

ROUTE: Final = "modelkeep.route"
ACTION: Final = "modelkeep.action"
CODE: Final = "modelkeep.code"
STATUS: Final = "modelkeep.status"
"""Keys under which a request's scope holds what is said of it."""

UNMATCHED: Final = "unmatched"
INFER: Final = "POST /v2/models/{name}/infer"
LIMITS: Final = frozenset(
    {
        *("rate_limited", "too_many_at_once", "too_many_keys", "too_many_jobs", "too_many_uploads", "slow_down"),
        *("too_many_members", "too_many_service_accounts", "too_many_policies", "storage_exhausted"),
        *("disk_full", "overloaded", "audit_unavailable", "serving_off"),
    }
)
"""Codes that mean that a limit was reached: the tenant's own, or the platform's."""

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_OK: Final = 400
_log = logging.getLogger(__name__)


class Counts(Protocol):
    """Counts requests; `telemetry.metrics.Metrics` does."""

    def request(self, route: str, status: int, seconds: float, tenant: TenantId | None) -> None:
        """Count a request."""

    def prediction(self, outcome: str) -> None:
        """Count a prediction."""

    def limited(self, code: str) -> None:
        """Count a refusal by a limit."""

    def stranger(self, status: int) -> None:
        """Count a refusal of somebody unknown."""


class Watch:
    """Writes the access line and counts.

    Args:
        counts: where to; None for a line alone.
    """

    def __init__(self, counts: Counts | None = None) -> None:
        self._counts = counts

    def saw(self, scope: Any, seconds: float) -> None:  # noqa: ANN401 -- ASGI's own type
        """Say that a request is over, `seconds` after its head was there."""
        caller, status, code = scope.get(CALLER), scope.get(STATUS, 0), scope.get(CODE, "")
        route = scope.get(ROUTE) or _page(scope)
        say(
            _log,
            "request",
            request_id=scope["request_id"],
            tenant="" if caller is None else caller.tenant,
            principal="" if caller is None else caller.principal,
            action=str(scope.get(ACTION, "")),
            route=route,
            status=status,
            duration_ms=round(seconds * 1000, 2),
            code=code,
        )
        if self._counts is None:
            return
        self._counts.request(route, status, seconds, None if caller is None else caller.tenant)
        if route == INFER:
            self._counts.prediction(_outcome(status))
        if code in LIMITS:
            self._counts.limited(code)
        if caller is None and status in REFUSALS:
            self._counts.stranger(status)


def matched(scope: Any, route: str, action: Action | object) -> None:  # noqa: ANN401 -- ASGI's own type
    """Note which route a request is for; an action that is none is not noted."""
    scope[ROUTE] = route
    if isinstance(action, Action):
        scope[ACTION] = action


def _page(scope: Any) -> str:  # noqa: ANN401 -- ASGI's own type
    # The issuer's pages: the router found one, and none of their paths has a parameter, so the path is the template.
    method = scope["method"] if scope["method"] in _METHODS else "OTHER"
    if "endpoint" in scope and not scope.get("path_params"):
        return f"{method} {scope['path']}"
    return UNMATCHED


def _outcome(status: int) -> str:
    if 0 < status < _OK:
        return "done"
    return "refused" if status in REFUSALS else "failed"
