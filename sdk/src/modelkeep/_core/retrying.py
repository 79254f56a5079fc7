"""When a request is tried again, and how long is waited: 408, 429, 5xx, broken connections; jitter; `Retry-After`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from modelkeep._core.answers import error_of, retry_after_s
from modelkeep._core.flows import Flow, Repeat, Request, Response, exchange, sleep
from modelkeep.errors import ConnectionFailedError

_ANY: Final = frozenset({408, 429, 502, 503, 504})
_REFUSED: Final = frozenset({429, 503})
_BASE_S: Final = 0.25
_CAP_S: Final = 8.0
MAX_RETRY_AFTER_S: Final = 60.0
_UNFINISHED: Final = "idempotency_unfinished"


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrying:
    """Sends requests, again where that is safe.

    Attributes:
        retries: how often a request is repeated after the first attempt.
        random: returns a number in [0, 1).
        now_s: returns seconds since the epoch.
    """

    retries: int
    random: Callable[[], float]
    now_s: Callable[[], float]

    def send(self, request: Request) -> Flow[Response]:
        """Exchange `request`, repeating it where that is safe; an unsuccessful answer is returned, not raised.

        Raises:
            ConnectionFailedError: there was no answer, in the last attempt.
            ProtocolError: an answer breaks the protocol; it is not tried again.
        """
        refused: Response | None = None
        for attempt in range(self.retries + 1):
            last = attempt == self.retries
            try:
                response = yield from exchange(request)
            except ConnectionFailedError as exc:
                if last or (exc.sent and request.repeat is Repeat.UNSENT):
                    raise
                yield from sleep(self._backoff_s(attempt))
                continue
            if attempt > 0 and _is_unfinished(response):
                # Our own earlier attempt holds the key: it is still running, or the server was cut short.
                response = response if refused is None else refused
                wait_s: float | None = self._backoff_s(attempt)
            else:
                wait_s = self._wait_s(request, response, attempt)
                refused = response
            if wait_s is None or last:
                return response
            yield from sleep(wait_s)
        raise AssertionError("the last attempt returns or raises")

    def _wait_s(self, request: Request, response: Response, attempt: int) -> float | None:
        wanted = _REFUSED if request.repeat is Repeat.UNSENT else _ANY
        # A failed POST keeps its idempotency key at the server: repeating it cannot succeed.
        if response.status not in wanted and not (
            response.status == 500 and request.method != "POST"  # noqa: PLR2004 -- RFC 9110's number is the name
        ):
            return None
        asked_s = retry_after_s(response, now_s=self.now_s())
        if asked_s is None:
            return self._backoff_s(attempt)
        return None if asked_s > MAX_RETRY_AFTER_S else asked_s + _BASE_S * self.random()

    def _backoff_s(self, attempt: int) -> float:
        ceiling: float = min(_CAP_S, _BASE_S * 2**attempt)
        return ceiling * (0.5 + 0.5 * self.random())


def _is_unfinished(response: Response) -> bool:
    return response.status == 409 and error_of(response).code == _UNFINISHED  # noqa: PLR2004
