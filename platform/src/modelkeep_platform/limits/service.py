"""Whether a caller may go on: requests a minute and at once, of its tenant and of itself."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from modelkeep_platform.core.callers import Caller
from modelkeep_platform.core.errors import RateLimitedError
from modelkeep_platform.core.limits import TenantLimits
from modelkeep_platform.core.ports import Clock, LimitSource
from modelkeep_platform.limits.bucket import MINUTE_S, Rate
from modelkeep_platform.limits.rates import Asked, Rates, Standing
from modelkeep_platform.limits.turns import Turns
from modelkeep_platform.storage.database import Database

_SOON_S: Final = 1


class RequestLimitError(RateLimitedError):
    """Requests come faster than they may; `standing` says when the next one may."""

    def __init__(self, message: str, *, standing: Standing) -> None:
        super().__init__(message, retry_after_s=standing.wait_s)
        self.standing = standing


class RequestLimits:
    """Counts requests.

    Args:
        database: shares counts between server processes.
        clock: lets requests come in evenly.
        limits: says what each tenant may use.
        processes: how many server processes are alive.
    """

    def __init__(self, *, database: Database, clock: Clock, limits: LimitSource, processes: Callable[[], int]) -> None:
        self._limits = limits
        self._rates = Rates(database=database, clock=clock, processes=processes)
        self._turns = Turns(clock=clock)
        self._running: dict[str, int] = {}
        self._lock = threading.Lock()

    def admit_now(self, caller: Caller) -> Standing | None:
        """Count a request from memory; None when the database must be asked (`admit`, in a thread).

        Raises:
            RequestLimitError: the caller or its tenant asks faster than it may; neither is charged.
        """
        limits = self._limits.cached(caller.tenant)
        return None if limits is None else self._admit(caller, _asked(caller, limits))

    def admit(self, caller: Caller) -> Standing:
        """Count a request, taking leases where needed.

        Raises:
            RequestLimitError: the caller or its tenant asks faster than it may; neither is charged.
        """
        asked = _asked(caller, self._limits.of(caller.tenant))
        while True:
            standing = self._admit(caller, asked)
            if standing is not None:
                return standing
            self._rates.lease(asked)

    def _admit(self, caller: Caller, asked: Asked) -> Standing | None:
        standing = self._rates.take(asked)
        if standing is None or standing.allowed:
            return standing
        who, rate = "this tenant" if standing.key == caller.tenant else "this account", standing.rate
        raise RequestLimitError(
            f"{who} may make {rate.per_minute} requests a minute, {rate.burst} of them at once; "
            f"wait {standing.wait_s} s",
            standing=standing,
        )

    async def turn(self, caller: Caller) -> None:
        """Return when it is the turn of the caller's tenant to compute in the event loop."""
        await self._turns.next(caller.tenant)

    @contextmanager
    def slot(self, caller: Caller) -> Iterator[None]:
        """Hold one of the places of the tenant and of the account for a request that is under way.

        Raises:
            RateLimitedError: all are taken.
        """
        limits = self._limits.last_known(caller.tenant)
        places = (
            (_account(caller), limits.principal_concurrent_requests, "this account"),
            (caller.tenant, limits.concurrent_requests, "this tenant"),
        )
        running = self._running
        with self._lock:
            for key, most, who in places:
                if running.get(key, 0) >= most:
                    raise RateLimitedError(
                        f"{running[key]} requests of {who} are under way; send fewer at once",
                        retry_after_s=_SOON_S,
                        code="too_many_at_once",
                    )
            for key, _, _ in places:
                running[key] = running.get(key, 0) + 1
        try:
            yield
        finally:
            with self._lock:
                for key, _, _ in places:
                    if running[key] > 1:
                        running[key] -= 1
                    else:
                        del running[key]


def headers(standing: Standing) -> dict[str, str]:
    """Return the RateLimit fields (draft-ietf-httpapi-ratelimit-headers-10).

    `q` and `w` say the rate, `r` how many requests may come at once now, and `t` in how many seconds one more may.
    """
    return {
        "ratelimit-policy": f'"requests";q={standing.rate.per_minute};w={MINUTE_S}',
        "ratelimit": f'"requests";r={standing.remaining};t={standing.wait_s}',
    }


def _account(caller: Caller) -> str:
    return f"{caller.tenant}/{caller.principal}"


def _asked(caller: Caller, limits: TenantLimits) -> Asked:
    burst_seconds = limits.burst_seconds
    return (
        (
            _account(caller),
            Rate.of(limits.principal_requests_per_minute, burst_seconds=burst_seconds),
        ),
        (caller.tenant, Rate.of(limits.requests_per_minute, burst_seconds=burst_seconds)),
    )
