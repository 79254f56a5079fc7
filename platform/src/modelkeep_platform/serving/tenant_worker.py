"""One tenant's worker process, as the event loop sees it: loads, batches, answers, and death.

Requests wait in a queue while the worker computes; what has gathered by then goes as one batch (no timer: an idle
worker answers at once). An answer that does not match the request it is for ends the worker.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from modelkeep_platform.core.errors import DeadlineError, PlatformError, UnavailableError, UnprocessableError
from modelkeep_platform.models.values import ServableVersion
from modelkeep_platform.serving.tensors import Tensor, batch_rows
from modelkeep_platform.workers.channel_async import AsyncChannel
from modelkeep_platform.workers.errors import FrameError, WorkerDiedError
from modelkeep_platform.workers.frames import Frame
from modelkeep_platform.workers.limits import Limits
from modelkeep_platform.workers.process import start
from modelkeep_platform.workers.sandbox import Sandbox

MAX_BATCH_ROWS: Final = 4096
MAX_BATCH: Final = 64
MAX_QUEUED: Final = 1024
_MODULE: Final = "modelkeep_platform.serving.worker"

Weights = Callable[[ServableVersion], Iterator[bytes]]


@dataclass(slots=True)
class _Request:
    servable: ServableVersion
    inputs: dict[str, Tensor]
    rows: int | None
    answer: asyncio.Future[dict[str, Tensor]]


class TenantWorker:
    """Serves one tenant's models from one process.

    Args:
        limits: what the process may use.
        sandbox: what confines it.
        weights: opens a version's weights, part by part.
        loaded_bytes: how much of weights may be loaded at once; the least used go first.
    """

    def __init__(self, *, limits: Limits, sandbox: Sandbox, weights: Weights, loaded_bytes: int) -> None:
        self._weights = weights
        self._loaded_bytes = loaded_bytes
        self._start_s = limits.start_s
        self._loaded: OrderedDict[str, int] = OrderedDict()
        self._queue: deque[_Request] = deque()
        self._wake = asyncio.Event()
        self._next_id = 0
        self._process = start(_MODULE, limits=limits, sandbox=sandbox)
        self._task = asyncio.get_running_loop().create_task(self._run())
        self.alive = True
        self.used_at = 0.0

    @property
    def idle(self) -> bool:
        """Return whether nothing waits and nothing runs."""
        return not self._queue and not self._wake.is_set()

    async def infer(
        self, servable: ServableVersion, inputs: dict[str, Tensor], *, timeout_s: float
    ) -> dict[str, Tensor]:
        """Return the model's outputs.

        Raises:
            UnavailableError: the queue is full, or the process died; try again.
            DeadlineError: not in time. If the worker hangs in this very request, it is ended.
            UnprocessableError: the model cannot compute with these inputs.
        """
        if len(self._queue) >= MAX_QUEUED:
            raise UnavailableError("too many predictions wait for this tenant's worker; try again", code="overloaded")
        answer: asyncio.Future[dict[str, Tensor]] = asyncio.get_running_loop().create_future()
        self._queue.append(_Request(servable, inputs, batch_rows(servable.graph, inputs), answer))
        self._wake.set()
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError as exc:
            raise DeadlineError(f"the prediction was not ready within {timeout_s:g} s") from exc

    def end(self, error: PlatformError | None = None) -> None:
        """End the process; whatever waits fails with `error`."""
        self.alive = False
        self._task.cancel()
        self._process.kill()
        self._fail_all(error or UnavailableError("the worker was stopped; try again", code="worker_stopped"))

    async def ended(self) -> None:
        """Return when the task that speaks to the process is over and its channel is closed."""
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        channel = await AsyncChannel.open(self._process.connection)
        try:
            await self._serve(channel)
        finally:
            channel.close()
            # Transports close in the turn after they are told to.
            await asyncio.sleep(0)

    async def _serve(self, channel: AsyncChannel) -> None:
        batch: list[_Request] = []
        try:
            async with asyncio.timeout(self._start_s):
                await channel.receive()
            while True:
                await self._wake.wait()
                batch = self._take_batch()
                if batch:
                    await self._load(channel, batch[0].servable)
                    await self._compute(channel, batch)
                    batch = []
                if not self._queue:
                    self._wake.clear()
        except (WorkerDiedError, FrameError, TimeoutError) as exc:
            self.alive = False
            error = (
                self._process.death()
                if isinstance(exc, WorkerDiedError)
                else UnavailableError(
                    "the tenant's worker did not answer as it should and was ended; try again", code="worker_died"
                )
            )
            self._process.kill()
            self._fail(batch, error)
            self._fail_all(error)

    def _take_batch(self) -> list[_Request]:
        """Take the first request and those behind it that can be computed with it."""
        batch: list[_Request] = []
        rows = 0
        kept: deque[_Request] = deque()
        while self._queue and len(batch) < MAX_BATCH:
            request = self._queue.popleft()
            if request.answer.done():
                continue
            if not batch:
                batch, rows = [request], request.rows or 0
                if request.rows is None:
                    break
            elif _together(batch[0], request) and rows + (request.rows or 0) <= MAX_BATCH_ROWS:
                batch.append(request)
                rows += request.rows or 0
            else:
                kept.append(request)
        self._queue.extendleft(reversed(kept))
        return batch

    async def _load(self, channel: AsyncChannel, servable: ServableVersion) -> None:
        key = _key(servable)
        if key in self._loaded:
            self._loaded.move_to_end(key)
            return
        while self._loaded and sum(self._loaded.values()) + servable.weights_bytes > self._loaded_bytes:
            old, _ = self._loaded.popitem(last=False)
            await self._ask(channel, Frame(kind="unload", fields={"key": old}))
        await self._ask(channel, _load_frame(key, "first", servable.graph.to_json()))
        chunks = await asyncio.to_thread(self._weights, servable)
        while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
            await self._ask(channel, _load_frame(key, "more", chunk))
        answer = await self._ask(channel, _load_frame(key, "last", b""))
        if answer.kind != "loaded":
            raise FrameError("a worker could not load an admitted model")
        self._loaded[key] = servable.weights_bytes

    async def _compute(self, channel: AsyncChannel, batch: list[_Request]) -> None:
        graph = batch[0].servable.graph
        described, buffers = [], []
        for spec in graph.inputs:
            tensors = [request.inputs[spec.name] for request in batch]
            shape = tensors[0].shape
            if len(batch) > 1:
                shape = (sum(tensor.shape[0] for tensor in tensors), *shape[1:])
            described.append((spec.dtype, shape, sum(len(tensor.data) for tensor in tensors)))
            buffers += [tensor.data for tensor in tensors]
        body = buffers[0] if len(buffers) == 1 else b"".join(buffers)
        fields = {"key": _key(batch[0].servable), "inputs": described}
        answer = await self._ask(channel, Frame(kind="infer", fields=fields, buffers=[body]))
        if answer.kind == "failed":
            self._failed(channel, batch, str(answer.fields.get("code")))
            return
        self._split(batch, answer)

    def _failed(self, _channel: AsyncChannel, batch: list[_Request], code: str) -> None:
        # One bad row must not fail its neighbours: a failed batch is taken apart and asked again, one by one.
        if len(batch) > 1:
            for request in batch:
                request.rows = None
            self._queue.extendleft(reversed(batch))
            return
        if code == "out_of_memory":
            self._fail(batch, UnavailableError("the worker ran out of memory; send fewer rows", code="out_of_memory"))
            return
        self._fail(
            batch,
            UnprocessableError(
                "the model cannot compute with these inputs; check their ranges and shapes", code="inference_failed"
            ),
        )

    def _split(self, batch: list[_Request], answer: Frame) -> None:
        outputs = answer.fields["outputs"]
        names = [output.name for output in batch[0].servable.graph.outputs]
        if len(outputs) != len(names):
            raise FrameError("a worker answered with other outputs")
        results: list[dict[str, Tensor]] = [{} for _ in batch]
        offset = 0
        view = memoryview(answer.buffers[0])
        for name, (dtype, shape, length) in zip(names, outputs, strict=True):
            data = view[offset : offset + length]
            offset += length
            if len(batch) == 1:
                results[0][name] = Tensor(dtype, tuple(shape), data)
                continue
            rows = [request.rows or 0 for request in batch]
            if sum(rows) != shape[0]:
                raise FrameError("a worker answered with another number of rows")
            width, start = length // shape[0], 0
            for result, count in zip(results, rows, strict=True):
                part = data[start * width : (start + count) * width]
                result[name] = Tensor(dtype, (count, *shape[1:]), part)
                start += count
        for request, result in zip(batch, results, strict=True):
            if not request.answer.done():
                request.answer.set_result(result)

    async def _ask(self, channel: AsyncChannel, frame: Frame) -> Frame:
        self._next_id += 1
        await channel.send(replace(frame, id=self._next_id))
        answer = await channel.receive()
        if answer.id != self._next_id:
            raise FrameError("a worker answered for another request")
        return answer

    def _fail(self, batch: list[_Request], error: BaseException) -> None:
        for request in batch:
            if not request.answer.done():
                request.answer.set_exception(error)

    def _fail_all(self, error: BaseException) -> None:
        while self._queue:
            self._fail([self._queue.popleft()], error)


def _load_frame(key: str, place: str, body: bytes) -> Frame:
    return Frame(kind="load", fields={"key": key, "place": place}, buffers=[body])


def _key(servable: ServableVersion) -> str:
    return f"{servable.ref.object_id}/{servable.version}"


def _together(first: _Request, other: _Request) -> bool:
    return (
        other.rows is not None
        and _key(other.servable) == _key(first.servable)
        and all(other.inputs[name].shape[1:] == tensor.shape[1:] for name, tensor in first.inputs.items())
    )
