"""The serving port: `infer(version, tensors, deadline)`. One worker process for each tenant whose models are used.

A worker that hangs is ended. Workers that nobody used for a while are stopped; when there are too many, the one
that has been idle longest makes room, and a busy one never does.
"""

import asyncio
from collections import OrderedDict
from contextlib import suppress
from typing import Final

from modelkeep_platform.core.errors import UnavailableError
from modelkeep_platform.core.ids import TenantId
from modelkeep_platform.core.limits import GIB
from modelkeep_platform.models.values import ServableVersion
from modelkeep_platform.serving.conversation import Weights
from modelkeep_platform.serving.tenant_worker import HANG_S, IDLE_S, TenantWorker
from modelkeep_platform.serving.tensors import Tensor, check_inputs
from modelkeep_platform.workers.limits import Limits
from modelkeep_platform.workers.sandbox import Sandbox

MAX_WORKERS: Final = 32
DRAIN_S: Final = 5.0
_TORCH_BYTES: Final = GIB


class ServingService:
    """Predicts with admitted versions.

    Args:
        weights: opens a version's weights, part by part.
        limits: what one worker may use.
        sandbox: what confines it.
        max_workers: how many processes at once.
        hang_s: see `TenantWorker`.
        idle_s: see `TenantWorker`.
    """

    def __init__(
        self,
        *,
        weights: Weights,
        limits: Limits,
        sandbox: Sandbox,
        max_workers: int = MAX_WORKERS,
        hang_s: float = HANG_S,
        idle_s: float = IDLE_S,
    ) -> None:
        self._weights = weights
        self._limits = limits
        self._sandbox = sandbox
        self._max_workers = max_workers
        self._hang_s, self._idle_s = hang_s, idle_s
        self._closing = False
        self._workers: OrderedDict[TenantId, TenantWorker] = OrderedDict()

    async def infer(
        self, servable: ServableVersion, inputs: dict[str, Tensor], *, timeout_s: float
    ) -> dict[str, Tensor]:
        """Return the outputs of one prediction.

        Args:
            servable: the version, as the caller was allowed to use it.
            inputs: by name; dtypes and shapes as the graph declares.
            timeout_s: how long it may take, in seconds, loading included.

        Raises:
            UnprocessableError: the inputs are not those of the model, or it cannot compute with them.
            UnavailableError: the worker died or is overloaded, or the server is stopping; try again.
            DeadlineError: not in time.
        """
        check_inputs(servable.graph, inputs)
        return await self._worker(servable.ref.owner).infer(servable, inputs, timeout_s=timeout_s)

    @property
    def waiting(self) -> int:
        """Return how many predictions wait for a worker."""
        return sum(worker.waiting for worker in list(self._workers.values()))

    @property
    def alive(self) -> int:
        """Return how many workers are alive."""
        return sum(worker.alive for worker in list(self._workers.values()))

    async def close(self, *, limit_s: float = DRAIN_S) -> None:
        """Take nothing more, let what waits and runs finish for `limit_s` seconds, and stop every worker."""
        self._closing = True
        workers = list(self._workers.values())
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await asyncio.gather(*(worker.drained() for worker in workers))
        for worker in workers:
            worker.end()
        await asyncio.gather(*(worker.ended() for worker in workers))
        self._workers.clear()

    def _worker(self, tenant: TenantId) -> TenantWorker:
        # INVARIANT: a worker serves models of one owner only.
        if self._closing:
            raise UnavailableError("the server is stopping; try again later", code="stopping")
        worker = self._workers.get(tenant)
        if worker is None or not worker.alive:
            self._make_room()
            worker = TenantWorker(
                limits=self._limits,
                sandbox=self._sandbox,
                weights=self._weights,
                # While a model is loaded its weights are there twice.
                loaded_bytes=max(self._limits.memory_bytes - _TORCH_BYTES, 0) // 2,
                hang_s=self._hang_s,
                idle_s=self._idle_s,
            )
            self._workers[tenant] = worker
        self._workers.move_to_end(tenant)
        return worker

    def _make_room(self) -> None:
        for tenant, worker in list(self._workers.items()):
            if not worker.alive:
                self._workers.pop(tenant).end()
        if len(self._workers) < self._max_workers:
            return
        # INVARIANT: no tenant's running predictions are lost because another tenant began.
        oldest = next((tenant for tenant, worker in self._workers.items() if worker.idle), None)
        if oldest is None:
            raise UnavailableError("all workers are busy; try again", code="overloaded")
        self._workers.pop(oldest).end()
