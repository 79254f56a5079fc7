"""Whether a caller may go on: requests a minute and at once, of its tenant and of itself."""

import asyncio
from collections.abc import Callable, Collection

from modelkeep_platform.core.callers import Caller
from modelkeep_platform.core.errors import RateLimitedError
from modelkeep_platform.core.limits import TenantLimits
from modelkeep_platform.core.ports import Clock, LimitSource
from modelkeep_platform.limits.bucket import MINUTE_S, Rate
from modelkeep_platform.limits.places import Place, Places, Wanted
from modelkeep_platform.limits.rates import Asked, Rates, Standing
from modelkeep_platform.limits.turns import Turns
from modelkeep_platform.storage.database import Database


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
        process_id: this server process's name, unique on the database.
        others: returns the names of the other server processes that are alive.
    """

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        limits: LimitSource,
        process_id: str,
        others: Callable[[], Collection[str]],
    ) -> None:
        self._limits = limits
        self._rates = Rates(database=database, clock=clock, processes=lambda: 1 + len(others()))
        self._turns = Turns(clock=clock)
        self._places = Places(database=database, clock=clock, process_id=process_id, others=others)

    def start(self) -> None:
        """Begin sharing with other processes."""
        self._places.start()

    def close(self) -> None:
        """Leave to the other processes what this one held."""
        self._places.close()

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

    @property
    def under_way(self) -> int:
        """Return how many requests hold a place in this process."""
        return self._places.filled

    async def place(self, caller: Caller) -> Place:
        """Return places of the tenant and of the account for a request that is under way, to be left with its block.

        Raises:
            RateLimitedError: all are taken.
        """
        limits = self._limits.last_known(caller.tenant)
        wanted = (
            Wanted(_account(caller), limits.principal_concurrent_requests, "this account"),
            Wanted(caller.tenant, limits.concurrent_requests, "this tenant"),
        )
        while (place := self._places.take(wanted)) is None:
            await asyncio.to_thread(self._places.lease, wanted)
        return place


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
