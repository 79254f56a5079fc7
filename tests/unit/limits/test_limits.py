"""Requests a minute and at once: counted in memory by one process, by leases among several, never past the limit."""

import pytest

from fakes.core import ACME, GLOBEX, FakeClock, tenant_caller
from modelkeep_platform.core.errors import RateLimitedError
from modelkeep_platform.limits.service import Allowance, RequestLimitError, RequestLimits, headers
from modelkeep_platform.limits.windows import WINDOW_S, Standing, Windows
from modelkeep_platform.storage.database import Database

ME, OTHER = tenant_caller(ACME), tenant_caller(GLOBEX)


def limits(
    database: Database, clock: FakeClock, *, tenant: int = 5, principal: int = 5, at_once: int = 2
) -> RequestLimits:
    allowance = Allowance(tenant_requests=tenant, principal_requests=principal, concurrent=at_once)
    return RequestLimits(database=database, clock=clock, allowance=allowance, processes=lambda: 1)


def test_a_minute_allows_the_limit_and_the_next_begins_anew(database: Database, clock: FakeClock) -> None:
    room = limits(database, clock)
    left = [room.admit(ME).remaining for _ in range(5)]
    assert left == [4, 3, 2, 1, 0]
    with pytest.raises(RequestLimitError) as caught:
        room.admit(ME)
    assert caught.value.error_code == "rate_limited"
    assert 1 <= caught.value.retry_after_s <= WINDOW_S
    assert room.admit(OTHER).remaining == 4
    clock.advance(WINDOW_S)
    assert room.admit(ME).remaining == 4


def test_an_account_cannot_use_up_its_whole_tenant(database: Database, clock: FakeClock) -> None:
    room = limits(database, clock, tenant=5, principal=2)
    first, second = tenant_caller(ACME), tenant_caller(ACME, name="another")
    for _ in range(2):
        room.admit(first)
    with pytest.raises(RequestLimitError, match="this account"):
        room.admit(first)
    assert room.admit(second).allowed


def test_a_tenant_is_stopped_whoever_of_it_asks(database: Database, clock: FakeClock) -> None:
    room = limits(database, clock, tenant=3, principal=3)
    for name in ("a", "b", "c"):
        room.admit(tenant_caller(ACME, name=name))
    with pytest.raises(RequestLimitError, match="this tenant"):
        room.admit(tenant_caller(ACME, name="d"))


def test_places_at_once_are_given_back_also_after_an_error(database: Database, clock: FakeClock) -> None:
    room = limits(database, clock)
    with room.slot(ME), room.slot(ME):
        with pytest.raises(RateLimitedError) as caught, room.slot(ME):
            pass
        assert caught.value.error_code == "too_many_at_once"
        with room.slot(OTHER):
            pass
    with pytest.raises(LookupError), room.slot(ME):
        raise LookupError
    with room.slot(ME), room.slot(ME):
        pass


def test_the_fields_say_policy_and_standing() -> None:
    shown = headers(Standing(limit=60, remaining=7, reset_s=12, allowed=True))
    assert shown == {"ratelimit-policy": '"requests";q=60;w=60', "ratelimit": '"requests";r=7;t=12'}


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_several_processes_allow_the_limit_and_no_more(database: Database, clock: FakeClock, processes: int) -> None:
    limit = 1000
    counters = [
        Windows(database=database, clock=clock, limit=limit, processes=lambda: processes) for _ in range(processes)
    ]

    def ask(counter: Windows) -> bool:
        while (standing := counter.take("acme")) is None:
            counter.lease("acme")
        return standing.allowed

    # All traffic reaches one process first: what it may is not a part of the limit, but nearly all of it.
    allowed = sum(ask(counters[0]) for _ in range(limit))
    assert allowed == limit
    clock.advance(WINDOW_S)
    allowed = sum(ask(counter) for _ in range(limit) for counter in counters)
    assert limit * 0.9 <= allowed <= limit


def test_a_second_process_that_appears_finds_what_the_first_used(database: Database, clock: FakeClock) -> None:
    alive = [1]
    first, second = (Windows(database=database, clock=clock, limit=100, processes=lambda: alive[0]) for _ in range(2))
    for _ in range(60):
        assert first.take("acme") is not None
    alive[0] = 2

    def ask(counter: Windows) -> bool:
        while (standing := counter.take("acme")) is None:
            counter.lease("acme")
        return standing.allowed

    assert ask(first)
    more = sum(ask(counter) for _ in range(100) for counter in (first, second))
    assert 30 <= more <= 39
