"""Turns in one event loop: one piece a round, each tenant in its turn, and nobody waits who is alone."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from fakes.core import ACME, GLOBEX, FakeClock
from modelkeep_platform.core.ids import TenantId
from modelkeep_platform.limits.turns import CROWD_S, Turns

INITECH = TenantId("initech")


class Loop:
    """Pieces as they are begun, with the round of the loop in which each was."""

    def __init__(self, clock: FakeClock) -> None:
        self.turns = Turns(clock=clock)
        self.begun: list[tuple[TenantId, int]] = []
        self.round = 0
        self.counting = True

    async def piece(self, tenant: TenantId) -> None:
        await self.turns.next(tenant)
        self.begun.append((tenant, self.round))

    def count(self) -> None:
        self.round += 1
        if self.counting:
            asyncio.get_running_loop().call_soon(self.count)

    def run(self, story: Coroutine[Any, Any, None]) -> None:
        async def counted() -> None:
            self.count()
            await story
            self.counting = False

        asyncio.run(asyncio.wait_for(counted(), timeout=10))


@pytest.fixture
def loop(clock: FakeClock) -> Loop:
    return Loop(clock)


def test_a_tenant_that_is_alone_is_not_held_up(loop: Loop) -> None:
    async def story() -> None:
        await asyncio.gather(*(loop.piece(ACME) for _ in range(50)))

    loop.run(story())
    assert len({at for _, at in loop.begun}) == 1


def test_beside_a_flood_the_next_tenant_waits_for_one_piece_and_not_for_all(loop: Loop) -> None:
    async def story() -> None:
        await asyncio.gather(loop.piece(GLOBEX), *(loop.piece(ACME) for _ in range(50)), loop.piece(GLOBEX))

    loop.run(story())
    order = [tenant for tenant, _ in loop.begun]
    assert order.count(ACME) == 50
    assert [at for at, tenant in enumerate(order) if tenant == GLOBEX][-1] <= 3
    rounds = [at for _, at in loop.begun]
    assert len(set(rounds)) >= 50, "one piece a round"


def test_those_who_wait_come_one_after_the_other(loop: Loop) -> None:
    async def story() -> None:
        await loop.piece(INITECH)
        await asyncio.gather(*(loop.piece(tenant) for tenant in [ACME] * 10 + [GLOBEX] * 5))

    loop.run(story())
    order = [tenant for tenant, _ in loop.begun]
    assert order.index(GLOBEX) <= 3
    fair = order[order.index(GLOBEX) :][:9]
    assert fair.count(GLOBEX) == 5
    assert order.count(ACME) == 10


def test_a_while_after_the_others_have_gone_a_tenant_is_alone_again(loop: Loop, clock: FakeClock) -> None:
    async def story() -> None:
        await loop.piece(GLOBEX)
        await loop.piece(ACME)
        clock.advance(CROWD_S / 2)
        await asyncio.gather(*(loop.piece(ACME) for _ in range(5)))
        assert len({at for _, at in loop.begun[-5:]}) >= 4
        await asyncio.sleep(0.01)
        clock.advance(CROWD_S / 2)
        await asyncio.gather(*(loop.piece(ACME) for _ in range(5)))

    loop.run(story())
    assert len({at for _, at in loop.begun[-5:]}) == 1


def test_whoever_has_gone_takes_no_turn_and_holds_up_nobody(loop: Loop) -> None:
    async def story() -> None:
        await loop.piece(GLOBEX)
        waiting = [asyncio.ensure_future(loop.piece(ACME)) for _ in range(10)]
        await asyncio.sleep(0)
        for one in waiting[1:9]:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await loop.piece(GLOBEX)

    loop.run(story())
    order = [tenant for tenant, _ in loop.begun]
    assert order[0] == order[-1] == GLOBEX
    assert 2 <= order.count(ACME) <= 4
    assert not loop.turns._waiting
