"""What the machine gives, as ports: the time and random bytes. Injected, so that tests decide both."""

from datetime import datetime
from typing import Protocol


class Clock(Protocol):
    """The time, injected so that tests decide it. It never goes back while a process runs."""

    def now_s(self) -> int:
        """Return seconds since the Unix epoch, UTC."""

    def now(self) -> datetime:
        """Return the aware UTC time."""

    def monotonic_s(self) -> float:
        """Return a steady clock's seconds, for time-outs and leases within one process."""


class Entropy(Protocol):
    """Random bytes from a cryptographic source."""

    def random_bytes(self, count: int) -> bytes:
        """Return `count` random bytes."""
