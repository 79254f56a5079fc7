"""The serving port: `infer(version, tensors, deadline)`. One worker process for each tenant whose models are used.

A request that outlives its deadline while the worker computes ends the worker: it hangs. Workers that nobody used for a
while are stopped, as are the least used when there are too many.
"""

import asyncio
import time
from collections import OrderedDict
from typing import Final

from modelkeep_platform.core.errors import DeadlineError
from modelkeep_platform.core.ids import TenantId
from modelkeep_platform.models.values import ServableVersion
from modelkeep_platform.serving.tenant_worker import TenantWorker, Weights
from modelkeep_platform.serving.tensors import Tensor, check_inputs
from modelkeep_platform.workers.limits import Limits
from modelkeep_platform.workers.sandbox import Sandbox

MAX_WORKERS: Final = 32
IDLE_S: Final = 900.0


class ServingService:
    """Predicts with admitted versions.

    Args:
        weights: opens a version's weights, part by part.
        limits: what one worker may use.
        sandbox: what confines it.
        max_workers: how many processes at once.
    """

    def __init__(self, *, weights: Weights, limits: Limits, sandbox: Sandbox, max_workers: int = MAX_WORKERS) -> None:
        self._weights = weights
        self._limits = limits
        self._sandbox = sandbox
        self._max_workers = max_workers
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
            UnavailableError: the worker died or is overloaded; try again.
            DeadlineError: not in time.
        """
        check_inputs(servable.graph, inputs)
        worker = self._worker(servable.ref.owner)
        worker.used_at = time.monotonic()
        try:
            return await worker.infer(servable, inputs, timeout_s=timeout_s)
        except DeadlineError as exc:
            worker.end(exc)
            raise

    async def close(self) -> None:
        """Stop every worker."""
        while self._workers:
            _, worker = self._workers.popitem()
            worker.end()
            await worker.ended()

    def _worker(self, tenant: TenantId) -> TenantWorker:
        # INVARIANT: a worker serves models of one owner only.
        worker = self._workers.get(tenant)
        if worker is None or not worker.alive:
            self._make_room()
            worker = TenantWorker(
                limits=self._limits,
                sandbox=self._sandbox,
                weights=self._weights,
                loaded_bytes=self._limits.memory_bytes // 2,
            )
            self._workers[tenant] = worker
        self._workers.move_to_end(tenant)
        return worker

    def _make_room(self) -> None:
        now = time.monotonic()
        for tenant, worker in list(self._workers.items()):
            if not worker.alive or (worker.idle and now - worker.used_at > IDLE_S):
                self._workers.pop(tenant).end()
        while len(self._workers) >= self._max_workers:
            _, oldest = self._workers.popitem(last=False)
            oldest.end()
