"""Whether a caller may go on: requests a minute of its tenant and of itself, and how many of its tenant at once."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from modelkeep_platform.core.callers import Caller
from modelkeep_platform.core.errors import RateLimitedError
from modelkeep_platform.core.ids import TenantId
from modelkeep_platform.core.ports import Clock
from modelkeep_platform.limits.windows import WINDOW_S, Standing, Windows
from modelkeep_platform.storage.database import Database

_SOON_S: Final = 1


class RequestLimitError(RateLimitedError):
    """The minute's requests are used up; `standing` says when it begins anew."""

    def __init__(self, message: str, *, standing: Standing) -> None:
        super().__init__(message, retry_after_s=max(1, standing.reset_s))
        self.standing = standing


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What one tenant may use.

    Args:
        tenant_requests: requests a minute of a whole tenant.
        principal_requests: requests a minute of one member or service account.
        concurrent: requests of a tenant that are under way at once, in one server process.
    """

    tenant_requests: int
    principal_requests: int
    concurrent: int


class RequestLimits:
    """Counts requests.

    Args:
        database: shares counts between server processes.
        clock: cuts minutes.
        allowance: what one tenant may use.
        processes: how many server processes are alive.
    """

    def __init__(self, *, database: Database, clock: Clock, allowance: Allowance, processes: Callable[[], int]) -> None:
        def windows(limit: int) -> Windows:
            return Windows(database=database, clock=clock, limit=limit, processes=processes)

        self._tenants = windows(allowance.tenant_requests)
        self._principals = windows(allowance.principal_requests)
        self._concurrent = allowance.concurrent
        self._running: dict[TenantId, int] = {}
        self._lock = threading.Lock()

    def admit_now(self, caller: Caller) -> Standing | None:
        """Count a request from memory; None when the database must be asked (`admit`, in a thread).

        Raises:
            RequestLimitError: the minute's requests are used up.
        """
        own = self._principals.take(_principal(caller))
        if own is None:
            return None
        if not own.allowed:
            raise _refusal("this account", own)
        tenant = self._tenants.take(caller.tenant)
        if tenant is None:
            return None
        if not tenant.allowed:
            raise _refusal("this tenant", tenant)
        return min(own, tenant, key=lambda standing: standing.remaining)

    def admit(self, caller: Caller) -> Standing:
        """Count a request, taking leases where needed.

        Raises:
            RequestLimitError: the minute's requests are used up.
        """
        while True:
            standing = self.admit_now(caller)
            if standing is not None:
                return standing
            self._principals.lease(_principal(caller))
            self._tenants.lease(caller.tenant)

    @contextmanager
    def slot(self, caller: Caller) -> Iterator[None]:
        """Hold one of the tenant's places for a request that is under way.

        Raises:
            RateLimitedError: all are taken.
        """
        with self._lock:
            running = self._running.get(caller.tenant, 0)
            if running >= self._concurrent:
                raise RateLimitedError(
                    f"{self._concurrent} requests of this tenant are under way; send fewer at once",
                    retry_after_s=_SOON_S,
                    code="too_many_at_once",
                )
            self._running[caller.tenant] = running + 1
        try:
            yield
        finally:
            with self._lock:
                left = self._running[caller.tenant] - 1
                if left:
                    self._running[caller.tenant] = left
                else:
                    del self._running[caller.tenant]


def headers(standing: Standing) -> dict[str, str]:
    """Return the RateLimit fields (draft-ietf-httpapi-ratelimit-headers-10)."""
    return {
        "ratelimit-policy": f'"requests";q={standing.limit};w={WINDOW_S}',
        "ratelimit": f'"requests";r={standing.remaining};t={standing.reset_s}',
    }


def _principal(caller: Caller) -> str:
    return f"{caller.tenant}/{caller.principal}"


def _refusal(who: str, standing: Standing) -> RequestLimitError:
    return RequestLimitError(
        f"{who} has made its {standing.limit} requests of this minute; wait {standing.reset_s} s", standing=standing
    )
