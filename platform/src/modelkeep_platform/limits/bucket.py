"""The token bucket: so many requests a minute, evenly, and so many at once. Pure: the time goes in.

Tokens come in at the rate, up to the burst, and each request takes one. So within any t seconds at most
``burst + t · per_minute / 60`` requests pass, and whoever stays below the rate is never refused.

A clock that steps back lets nothing in for the step, and filling goes on from the new time: nobody waits for the old
one. A clock that steps forward lets in the burst at most.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Self

MINUTE_S: Final = 60
LEAST_BURST: Final = 10
"""What may always come at once, within the minute's limit: a client's start is a handful of requests."""
ROUNDED: Final = 1e-9
"""Of a token, or of a second: parts that were rounded still make a whole one."""


@dataclass(frozen=True, slots=True)
class Rate:
    """How many requests.

    Args:
        per_minute: come in evenly within a minute, at least 1.
        burst: may come at once.
        per_second: `per_minute`, within a second.
    """

    per_minute: int
    burst: int
    per_second: float

    @classmethod
    @lru_cache(maxsize=1024)
    def of(cls, per_minute: int, *, burst_seconds: int) -> Self:
        """Return the rate whose burst is worth so many seconds, at least `LEAST_BURST`, and never over the minute's.

        Args:
            per_minute: requests a minute.
            burst_seconds: how many seconds' worth may come at once, 1 to 60.
        """
        worth = per_minute * burst_seconds // MINUTE_S
        return cls(per_minute, min(per_minute, max(LEAST_BURST, worth)), per_minute / MINUTE_S)


@dataclass(slots=True)
class Bucket:
    """Tokens at a time.

    Args:
        tokens: how many there are; below 0 it is owed some.
        filled_at_s: when that was so, in seconds of any one clock.
    """

    tokens: float
    filled_at_s: float

    def fill(self, rate: Rate, now_s: float, most: float) -> None:
        """Let in what came since the last time, up to `most` tokens."""
        if now_s > self.filled_at_s:
            self.tokens += (now_s - self.filled_at_s) * rate.per_second
        self.filled_at_s = now_s
        self.tokens = min(self.tokens, most)

    def left(self) -> int:
        """Return how many whole tokens there are."""
        return int(self.tokens + ROUNDED) if self.tokens > 0 else 0

    def wait_s(self, rate: Rate, wanted: float) -> float:
        """Return in how many seconds there will be `wanted` tokens, if none is taken meanwhile."""
        return max(0.0, wanted - self.tokens) / rate.per_second
