"""Requests a minute and at once, of a tenant and of each of its accounts: who is refused, with what, and who is not."""

import asyncio

import pytest

from fakes.core import ACME, GLOBEX, FakeClock, FakeLimits, tenant_caller
from modelkeep_platform.core.callers import TenantCaller
from modelkeep_platform.core.errors import RateLimitedError
from modelkeep_platform.core.limits import TenantLimits
from modelkeep_platform.limits.bucket import Rate
from modelkeep_platform.limits.places import Place
from modelkeep_platform.limits.rates import Standing
from modelkeep_platform.limits.service import RequestLimitError, RequestLimits, headers
from modelkeep_platform.storage.database import Database

ME, OTHER = tenant_caller(ACME), tenant_caller(GLOBEX)


def limits(
    database: Database, clock: FakeClock, *, tenant: int = 5, principal: int = 5, at_once: int = 2
) -> RequestLimits:
    said = FakeLimits(requests_per_minute=tenant, principal_requests_per_minute=principal, concurrent_requests=at_once)
    return RequestLimits(database=database, clock=clock, limits=said, process_id="here", others=frozenset)


def place(room: RequestLimits, caller: TenantCaller) -> Place:
    return asyncio.run(room.place(caller))


def test_the_burst_may_come_at_once_and_the_rest_comes_in_evenly(database: Database, clock: FakeClock) -> None:
    room = limits(database, clock)
    left = [room.admit(ME).remaining for _ in range(5)]
    assert left == [4, 3, 2, 1, 0]
    with pytest.raises(RequestLimitError) as caught:
        room.admit(ME)
    assert (caught.value.error_code, caught.value.retry_after_s) == ("rate_limited", 12)
    assert caught.value.message == "this account may make 5 requests a minute, 5 of them at once; wait 12 s"
    assert room.admit(OTHER).remaining == 4
    clock.advance(11)
    with pytest.raises(RequestLimitError) as caught:
        room.admit(ME)
    assert caught.value.retry_after_s == 1
    clock.advance(1)
    assert room.admit(ME).remaining == 0
    clock.advance(3600)
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


def test_an_account_cannot_take_every_place_of_its_tenant(database: Database, clock: FakeClock) -> None:
    said = FakeLimits(concurrent_requests=3, principal_concurrent_requests=2)
    room = RequestLimits(database=database, clock=clock, limits=said, process_id="here", others=frozenset)
    first, second = tenant_caller(ACME), tenant_caller(ACME, name="another")
    with place(room, first), place(room, first):
        with pytest.raises(RateLimitedError, match="this account may have 2 requests") as caught, place(room, first):
            pytest.fail("a third place")
        assert caught.value.error_code == "too_many_at_once"
        with (
            place(room, second),
            pytest.raises(RateLimitedError, match="this tenant may have 3 requests"),
            place(room, second),
        ):
            pytest.fail("a fourth place")
    assert room.under_way == 0


def test_places_at_once_are_given_back_also_after_an_error(database: Database, clock: FakeClock) -> None:
    room = limits(database, clock)
    with place(room, ME), place(room, ME):
        with pytest.raises(RateLimitedError) as caught, place(room, ME):
            pass
        assert caught.value.error_code == "too_many_at_once"
        with place(room, OTHER):
            pass
    with pytest.raises(LookupError), place(room, ME):
        raise LookupError
    with place(room, ME), place(room, ME):
        pass


def test_the_fields_say_rate_and_standing() -> None:
    standing = Standing("t", Rate.of(60, burst_seconds=3), remaining=7, wait_s=1, allowed=True)
    shown = headers(standing)
    assert shown == {"ratelimit-policy": '"requests";q=60;w=60', "ratelimit": '"requests";r=7;t=1'}


def test_a_refused_account_costs_its_tenant_nothing(database: Database, clock: FakeClock) -> None:
    room = limits(database, clock, tenant=5, principal=2)
    for _ in range(2):
        room.admit(ME)
    for _ in range(10):
        with pytest.raises(RequestLimitError, match="this account"):
            room.admit(ME)
    assert [room.admit(tenant_caller(ACME, name=name)).remaining for name in ("a", "b")] == [1, 1]


def test_what_is_not_known_in_this_epoch_is_looked_up_in_a_thread(database: Database, clock: FakeClock) -> None:
    said = FakeLimits()
    room = RequestLimits(database=database, clock=clock, limits=said, process_id="here", others=frozenset)
    assert room.admit_now(ME) is not None
    said.known = False
    assert room.admit_now(ME) is None
    assert room.admit(ME).allowed


def test_another_limit_holds_for_the_next_request(database: Database, clock: FakeClock) -> None:
    said = FakeLimits()
    room = RequestLimits(database=database, clock=clock, limits=said, process_id="here", others=frozenset)
    room.admit(ME)
    said.own[ACME] = TenantLimits(requests_per_minute=1, concurrent_requests=1)
    with place(room, ME):
        with pytest.raises(RateLimitedError), place(room, ME):
            pass
        with place(room, OTHER), place(room, OTHER):
            pass
    room.admit(ME)
    with pytest.raises(RequestLimitError, match="this tenant may make 1 requests a minute"):
        room.admit(ME)
    del said.own[ACME]
    clock.advance(0.01)
    assert room.admit(ME).allowed
