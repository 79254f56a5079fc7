"""Tenants take turns in one event loop: a flood that is answered does not stand in front of everybody else.

A loop runs everything that is ready before it looks for new requests. Sixty requests of one tenant that became ready
together are sixty that the next tenant's waits for, however few it sends itself. So what a request computes in the loop
is begun in turn: one piece a round of the loop, of each tenant that waits one after the other, and between two rounds
the loop looks what has come. A tenant that is alone is not held up. Used by the event loop alone.
"""

import asyncio
from collections import OrderedDict, deque
from typing import Final

from modelkeep_platform.core.ids import TenantId
from modelkeep_platform.core.ports import Clock

CROWD_S: Final = 1.0
"""How long tenants take turns after another one than before has come."""


class Turns:
    """Gives turns.

    Args:
        clock: tells when a tenant is alone again.
    """

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._last: TenantId | None = None
        self._crowded_until_s = float("-inf")
        self._waiting: OrderedDict[TenantId, deque[asyncio.Future[None]]] = OrderedDict()
        self._begun = False

    async def next(self, tenant: TenantId) -> None:
        """Return when it is the tenant's turn to compute a piece."""
        if not self._crowded(tenant):
            return
        loop = asyncio.get_running_loop()
        if not self._begun:
            self._begin(loop)
            return
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.setdefault(tenant, deque()).append(turn)
        await turn

    def _crowded(self, tenant: TenantId) -> bool:
        now_s = self._clock.monotonic_s()
        if tenant != self._last:
            if self._last is not None:
                self._crowded_until_s = now_s + CROWD_S
            self._last = tenant
        return self._begun or now_s < self._crowded_until_s

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        # INVARIANT: while anybody waits, a piece was begun and the next round is planned.
        self._begun = True
        loop.call_soon(self._round, loop)

    def _round(self, loop: asyncio.AbstractEventLoop) -> None:
        self._begun = False
        while self._waiting and not self._begun:
            tenant, turns = self._waiting.popitem(last=False)
            turn = turns.popleft()
            if turns:
                self._waiting[tenant] = turns
            if not turn.done():  # whoever waited may have gone
                turn.set_result(None)
                self._begin(loop)
