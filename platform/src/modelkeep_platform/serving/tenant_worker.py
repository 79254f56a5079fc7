"""One tenant's worker process, as the event loop sees it: who waits, what goes together, and death.

Requests wait in a queue while the worker computes; what has gathered by then goes as one batch (no timer: an idle
worker answers at once). Only requests of one calling tenant share a batch: no answer can depend on another tenant's
rows. A model that cannot be loaded or computed fails its own requests and no others. A worker that nobody used for a
while ends itself. What is said with the process is in `conversation`.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from modelkeep_platform.core.errors import DeadlineError, ModelkeepError, TooLargeError, UnavailableError
from modelkeep_platform.core.limits import MIB
from modelkeep_platform.models.values import ServableVersion
from modelkeep_platform.serving.conversation import ComputeError, Conversation, LoadError, Weights, key_of
from modelkeep_platform.serving.tensors import Tensor, batch_rows
from modelkeep_platform.workers.channel_async import AsyncChannel
from modelkeep_platform.workers.errors import FrameError, WorkerDiedError, WorkerTimeoutError
from modelkeep_platform.workers.frames import DEFAULT_BOUNDS
from modelkeep_platform.workers.limits import Limits
from modelkeep_platform.workers.process import start
from modelkeep_platform.workers.sandbox import Sandbox

MAX_BATCH_ROWS: Final = 4096
MAX_BATCH_BYTES: Final = 32 * MIB
MAX_BATCH: Final = 64
MAX_QUEUED: Final = 1024
MAX_QUEUED_GUEST: Final = 256
MAX_QUEUED_BYTES: Final = 256 * MIB
# INVARIANT: the owner of the models finds the other half, whatever all tenants that hold its grants do together.
MAX_QUEUED_GUESTS: Final = MAX_QUEUED // 2
MAX_QUEUED_GUESTS_BYTES: Final = MAX_QUEUED_BYTES // 2
HANG_S: Final = 5.0
IDLE_S: Final = 900.0
_MODULE: Final = "modelkeep_platform.serving.worker"

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Request:
    servable: ServableVersion
    inputs: dict[str, Tensor]
    rows: int | None
    size_bytes: int
    until_s: float
    answer: asyncio.Future[dict[str, Tensor]]


class TenantWorker:
    """Serves one tenant's models from one process.

    Args:
        limits: what the process may use.
        sandbox: what confines it.
        weights: opens a version's weights, part by part.
        loaded_bytes: how much of weights may be loaded at once; the least used go first.
        hang_s: seconds that a batch may compute when all its requests have given up; then the worker hangs.
        idle_s: seconds without a request after which it ends itself.
    """

    def __init__(
        self,
        *,
        limits: Limits,
        sandbox: Sandbox,
        weights: Weights,
        loaded_bytes: int,
        hang_s: float = HANG_S,
        idle_s: float = IDLE_S,
    ) -> None:
        self._weights = weights
        self._loaded_bytes = loaded_bytes
        self._start_s, self._hang_s, self._idle_s = limits.start_s, hang_s, idle_s
        self._queue: deque[_Request] = deque()
        self._held_bytes = self._guests_bytes = 0
        self._batch: list[_Request] = []
        self._wake: asyncio.Future[None] | None = None
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._over = False
        self._loop = asyncio.get_running_loop()
        self._process = start(_MODULE, limits=limits, sandbox=sandbox)
        self._task = self._loop.create_task(self._run())
        self._task.add_done_callback(self._reap)

    @property
    def alive(self) -> bool:
        """Return whether it takes requests: it was not ended, and its process runs."""
        # The channel tells that the process has ended, but a turn of the loop later: an idle one is asked for in the
        # kernel, so that no request is given to the dead. While a batch runs, its answer or its end is under way.
        return not self._over and (bool(self._batch) or self._process.alive())

    @property
    def idle(self) -> bool:
        """Return whether nothing waits and nothing runs."""
        return not self._queue and not self._batch

    @property
    def waiting(self) -> int:
        """Return how many requests wait behind the batch that runs."""
        return len(self._queue)

    async def infer(
        self, servable: ServableVersion, inputs: dict[str, Tensor], *, timeout_s: float
    ) -> dict[str, Tensor]:
        """Return the model's outputs.

        Raises:
            TooLargeError: more bytes than one frame to the worker holds.
            UnavailableError: the queue or the guests' half of it is full, or the process died; try again.
            DeadlineError: not in time. The worker goes on for those behind, and is ended if it hangs.
            UnprocessableError: the model cannot be loaded, or not compute with these inputs.
        """
        request = _Request(
            servable=servable,
            inputs=inputs,
            rows=batch_rows(servable.graph, inputs),
            size_bytes=sum(len(tensor.data) for tensor in inputs.values()),
            until_s=self._loop.time() + timeout_s,
            answer=self._loop.create_future(),
        )
        self._check_room(request)
        self._hold(request, request.size_bytes)
        self._queue.append(request)
        self._quiet.clear()
        self._rouse()
        late = self._loop.call_later(timeout_s, _expire, request, timeout_s)
        try:
            return await request.answer
        except BaseException:
            # Not `remove` alone: its error for what was taken out before writes out the whole request, inputs included.
            if request in self._queue:
                self._queue.remove(request)
            raise
        finally:
            late.cancel()
            self._hold(request, -request.size_bytes)

    def end(self, error: ModelkeepError | None = None) -> None:
        """End the process; whatever waits or runs fails with `error`. May be called again."""
        if self._over:
            return
        died = None if self._process.alive() else self._process.death()
        self._give_up(error or died or _stopped())
        self._process.kill_soon()
        self._task.cancel()

    async def drained(self) -> None:
        """Return when nothing waits and nothing runs."""
        await self._quiet.wait()

    async def ended(self) -> None:
        """Return when the task that speaks to the process is over, its channel closed and the process reaped."""
        await asyncio.wait([self._task])
        await self._reaping

    def _reap(self, task: asyncio.Task[None]) -> None:
        # In a thread: the kernel may take its time to free gigabytes. The task may have been cancelled before it began.
        del task
        self._reaping = self._loop.run_in_executor(None, self._process.kill)

    def _check_room(self, request: _Request) -> None:
        if self._over:
            raise _stopped()
        if request.size_bytes > DEFAULT_BOUNDS.total_bytes:
            raise TooLargeError("the inputs are larger than a prediction may be; send fewer rows")
        if (
            len(self._queue) >= MAX_QUEUED
            or (_is_guest(request) and self._guests_full(request))
            or (self._held_bytes and self._held_bytes + request.size_bytes > MAX_QUEUED_BYTES)
        ):
            raise UnavailableError("too many predictions wait for this tenant's worker; try again", code="overloaded")

    def _guests_full(self, request: _Request) -> bool:
        guests = [_caller(other) for other in self._queue if _is_guest(other)]
        return (
            len(guests) >= MAX_QUEUED_GUESTS
            or guests.count(_caller(request)) >= MAX_QUEUED_GUEST
            or self._guests_bytes + request.size_bytes > MAX_QUEUED_GUESTS_BYTES
        )

    def _hold(self, request: _Request, size_bytes: int) -> None:
        self._held_bytes += size_bytes
        if _is_guest(request):
            self._guests_bytes += size_bytes

    async def _run(self) -> None:
        error: ModelkeepError = _stopped()
        try:
            channel = await AsyncChannel.open(self._process.detach(), on_lost=self._rouse)
            worker = Conversation(channel, weights=self._weights, loaded_bytes=self._loaded_bytes, load_s=self._start_s)
            try:
                await worker.begin()
                await self._serve(worker)
            finally:
                channel.close()
        except WorkerDiedError:
            self._over = True
            error = await asyncio.to_thread(self._process.death)
        except (FrameError, WorkerTimeoutError):
            error = _mistrusted()
        except Exception as exc:  # noqa: BLE001 -- the task's edge: whatever it is, nobody may wait for ever
            _log.error("a tenant's worker was ended after a %s", type(exc).__name__)
            error = _mistrusted()
        finally:
            self._give_up(error)
        # Transports close in the turn after they are told to.
        await asyncio.sleep(0)

    async def _serve(self, worker: Conversation) -> None:
        while self._queue or await self._roused():
            self._batch = self._take_batch()
            if self._batch:
                try:
                    await worker.load(self._batch[0].servable)
                    await self._compute(worker, self._batch)
                except LoadError as exc:
                    _fail(self._batch, exc.error)
                self._batch = []
            if not self._queue:
                self._quiet.set()

    async def _roused(self) -> bool:
        """Wait for something to do; False when nobody came for long, or the process ended."""
        self._wake = self._loop.create_future()
        over = self._loop.call_later(self._idle_s, self._rouse)
        try:
            await self._wake
        finally:
            over.cancel()
            self._wake = None
        return bool(self._queue)

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _take_batch(self) -> list[_Request]:
        """Take the first request and those behind it that can be computed with it."""
        batch: list[_Request] = []
        rows = size = 0
        kept: deque[_Request] = deque()
        while self._queue and len(batch) < MAX_BATCH:
            request = self._queue.popleft()
            if request.answer.done():
                continue
            count = request.rows or 0
            if not batch:
                batch, rows, size = [request], count, request.size_bytes
                if request.rows is None:
                    break
            elif (
                _together(batch[0], request)
                and rows + count <= MAX_BATCH_ROWS
                and size + request.size_bytes <= MAX_BATCH_BYTES
            ):
                batch.append(request)
                rows, size = rows + count, size + request.size_bytes
            else:
                kept.append(request)
        self._queue.extendleft(reversed(kept))
        return batch

    async def _compute(self, worker: Conversation, batch: list[_Request]) -> None:
        left_s = max(request.until_s for request in batch) - self._loop.time()
        asked = [request.inputs for request in batch]
        try:
            results = await worker.compute(batch[0].servable, asked, limit_s=max(self._hang_s, left_s))
        except ComputeError as exc:
            self._apart_or(batch, exc.error)
            return
        for request, result in zip(batch, results, strict=True):
            if not request.answer.done():
                request.answer.set_result(result)

    def _apart_or(self, batch: list[_Request], error: ModelkeepError) -> None:
        # One bad row must not fail its neighbours: a failed batch is taken apart and asked again, one by one.
        if len(batch) == 1:
            _fail(batch, error)
            return
        for request in batch:
            request.rows = None
        self._queue.extendleft(reversed([request for request in batch if not request.answer.done()]))

    def _give_up(self, error: ModelkeepError) -> None:
        self._over = True
        _fail(self._batch, error)
        _fail(self._queue, error)
        self._batch = []
        self._queue.clear()
        self._quiet.set()


def _expire(request: _Request, timeout_s: float) -> None:
    _fail([request], DeadlineError(f"the prediction was not ready within {timeout_s:g} s"))


def _fail(requests: Iterable[_Request], error: ModelkeepError) -> None:
    for request in requests:
        if not request.answer.done():
            request.answer.set_exception(error)


def _stopped() -> UnavailableError:
    return UnavailableError("the worker was stopped; try again", code="worker_stopped")


def _mistrusted() -> UnavailableError:
    return UnavailableError(
        "the tenant's worker did not answer as it should and was ended; try again", code="worker_died"
    )


def _caller(request: _Request) -> str | None:
    return request.servable.decision.caller_tenant


def _is_guest(request: _Request) -> bool:
    return _caller(request) != request.servable.ref.owner


def _together(first: _Request, other: _Request) -> bool:
    # INVARIANT: rows of two tenants are never in one batch, whatever a model does to the rows of a batch.
    return (
        other.rows is not None
        and _caller(other) == _caller(first)
        and key_of(other.servable) == key_of(first.servable)
        and all(other.inputs[name].shape[1:] == tensor.shape[1:] for name, tensor in first.inputs.items())
    )
