"""Whether the server should get requests: epoch fresh, log accepting, root key usable, disk not full.

The caller learns that it is not ready and nothing else; the reason is for the operator, in the log, when it changes. A
look is kept for a second, so that a flood of questions costs nothing.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from modelkeep_platform.core.errors import ModelkeepError, UnavailableError
from modelkeep_platform.core.ports import Clock
from modelkeep_platform.telemetry.logs import fields

_KEPT_S: Final = 1.0
_log = logging.getLogger(__name__)


class Health:
    """Looks at what a request needs.

    Args:
        checks: by reason; each raises, or returns false, when it does not hold.
        clock: tells how old the last look is.
    """

    def __init__(self, checks: Mapping[str, Callable[[], object]], *, clock: Clock) -> None:
        self._checks = checks
        self._clock = clock
        self._lock = threading.Lock()
        self._looked_at = float("-inf")
        self._reasons: tuple[str, ...] = ()

    def ready(self) -> None:
        """Return when the server should get requests.

        Raises:
            UnavailableError: it should not; the reason is in the log.
        """
        if self.reasons():
            message = "the server is not ready; its log says why"
            raise UnavailableError(message, code="not_ready")

    def reasons(self) -> tuple[str, ...]:
        """Return what does not hold."""
        with self._lock:
            now = self._clock.monotonic_s()
            if now - self._looked_at >= _KEPT_S:
                found = tuple(reason for reason, check in self._checks.items() if not _holds(check))
                if found != self._reasons:
                    _say(found)
                self._looked_at, self._reasons = now, found
            return self._reasons


def _holds(check: Callable[[], object]) -> bool:
    try:
        return check() is not False
    except (ModelkeepError, SQLAlchemyError, OSError):
        return False


def _say(reasons: tuple[str, ...]) -> None:
    if reasons:
        _log.error("the server is not ready", extra=fields(reason=", ".join(reasons)))
    else:
        _log.warning("the server is ready again")
