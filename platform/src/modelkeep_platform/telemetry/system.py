"""The machine's clock and entropy, as the ports of `core` want them."""

import os
import time
from datetime import UTC, datetime


class SystemClock:
    """The operating system's clock."""

    def now_s(self) -> int:
        """Return seconds since the Unix epoch, UTC."""
        return int(time.time())

    def now(self) -> datetime:
        """Return the aware UTC time."""
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        """Return the steady clock's seconds."""
        return time.monotonic()


class SystemEntropy:
    """The operating system's cryptographic generator."""

    def random_bytes(self, count: int) -> bytes:
        """Return `count` random bytes."""
        return os.urandom(count)
