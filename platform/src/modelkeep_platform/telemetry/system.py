"""The machine's clock and entropy, as the ports of `core` want them."""

import logging
import os
import threading
import time
from datetime import UTC, datetime
from typing import Final

from modelkeep_platform.telemetry.logs import fields

_NOTICED_S: Final = 2.0
_log = logging.getLogger(__name__)


class SystemClock:
    """The operating system's clock, which here never goes back.

    When the system's clock is set back, time goes on from where it was, by the steady clock, until the system's has
    caught up: what was over stays over, and a lease lasts as long as it says. When it is set forward, time follows.
    A new process begins with the system's clock; `not_before` tells it what others have reached.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ahead_s = float("-inf")  # of the steady clock
        self._set_back = False

    def now_s(self) -> int:
        """Return seconds since the Unix epoch, UTC."""
        return int(self._seconds())

    def now(self) -> datetime:
        """Return the aware UTC time."""
        return datetime.fromtimestamp(self._seconds(), UTC)

    def monotonic_s(self) -> float:
        """Return the steady clock's seconds."""
        return time.monotonic()

    def not_before(self, seconds: int) -> None:
        """Let time be at least `seconds` since the Unix epoch."""
        self._raise(seconds - time.monotonic())

    def _seconds(self) -> float:
        # In this order: a pause between the two readings makes the system's clock seem behind, never ahead.
        wall, steady = time.time(), time.monotonic()
        behind_s = self._ahead_s + steady - wall
        if behind_s < 0.0:
            self._raise(wall - steady)
        if (behind_s > _NOTICED_S) is not self._set_back:
            self._tell()
        return steady + self._ahead_s

    def _raise(self, ahead_s: float) -> None:
        with self._lock:
            self._ahead_s = max(self._ahead_s, ahead_s)

    def _tell(self) -> None:
        # Once more: a thread that was held up between the two readings sees the system's clock behind, too.
        wall, steady = time.time(), time.monotonic()
        with self._lock:
            behind_s = self._ahead_s + steady - wall
            if (behind_s > _NOTICED_S) is self._set_back:
                return
            self._set_back = not self._set_back
        if self._set_back:
            _log.warning("the system's clock was set back", extra=fields(count=round(behind_s)))
        else:
            _log.warning("the system's clock has caught up")


class SystemEntropy:
    """The operating system's cryptographic generator."""

    def random_bytes(self, count: int) -> bytes:
        """Return `count` random bytes."""
        return os.urandom(count)
