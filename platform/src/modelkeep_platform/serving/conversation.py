"""What is said with one worker process: begin, load and unload models, compute a batch.

An answer that does not match what was asked ends the conversation, and with it the worker; a model that cannot be
loaded or computed is said so, and the worker goes on. The models that are loaded are kept by when they were used last.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

from modelkeep_platform.core.errors import ModelkeepError, UnavailableError, UnprocessableError
from modelkeep_platform.models.values import ServableVersion
from modelkeep_platform.serving.tensors import OutputError, Tensor, cut_outputs
from modelkeep_platform.workers.channel_async import AsyncChannel
from modelkeep_platform.workers.child import READY
from modelkeep_platform.workers.errors import FrameError
from modelkeep_platform.workers.frames import Buffer, Frame

Weights = Callable[[ServableVersion], Iterator[bytes]]
"""Opens a version's weights, part by part."""

_Read = TypeVar("_Read")

_OUT_OF_MEMORY: Final = "out_of_memory"

_log = logging.getLogger(__name__)


class _ModelFailedError(Exception):
    """The worker itself is fine.

    Args:
        error: what the model's callers are told.
    """

    def __init__(self, error: ModelkeepError) -> None:
        super().__init__()
        self.error = error


class LoadError(_ModelFailedError):
    """The model cannot be loaded."""


class ComputeError(_ModelFailedError):
    """The model cannot compute with these inputs, or with these together."""


class Conversation:
    """Speaks with one worker process, one question after another.

    Every method raises `WorkerError` or `WorkerTimeoutError` when the process is gone, answered too late or answered
    what it was not asked; then nothing more can be said.

    Args:
        channel: the platform's end.
        weights: opens a version's weights.
        loaded_bytes: how much of weights may be loaded at once; the least used go first.
        load_s: how long the process may take to begin, and for each step of loading, in seconds.
    """

    def __init__(self, channel: AsyncChannel, *, weights: Weights, loaded_bytes: int, load_s: float) -> None:
        self._channel = channel
        self._weights = weights
        self._loaded_bytes = loaded_bytes
        self._load_s = load_s
        self._loaded: OrderedDict[str, int] = OrderedDict()
        self._next_id = 0
        self._loop = asyncio.get_running_loop()

    async def begin(self) -> None:
        """Wait until the process has loaded what it needs."""
        if (await self._within(self._load_s)).kind != READY:
            raise FrameError("a worker did not begin as it should")

    async def load(self, servable: ServableVersion) -> None:
        """Load a version, if it is not loaded.

        Raises:
            LoadError: it cannot be loaded.
        """
        key = key_of(servable)
        if key in self._loaded:
            self._loaded.move_to_end(key)
            return
        while self._loaded and sum(self._loaded.values()) + servable.weights_bytes > self._loaded_bytes:
            old, _ = self._loaded.popitem(last=False)
            await self._unload(old)
        try:
            await self._send_model(key, servable)
        except LoadError:
            # What arrived of it must not stay in the worker's memory.
            await self._unload(key)
            raise
        self._loaded[key] = servable.weights_bytes

    async def compute(
        self, servable: ServableVersion, batch: Sequence[Mapping[str, Tensor]], *, limit_s: float
    ) -> list[dict[str, Tensor]]:
        """Return the outputs of each of a batch's inputs; the version is loaded.

        Args:
            servable: the version.
            batch: inputs by name; of several, the first dimension is rows.
            limit_s: how long it may take, in seconds.

        Raises:
            ComputeError: the model cannot compute them, or gave other outputs than it declares.
        """
        graph, rows = servable.graph, None
        if len(batch) > 1:
            rows = [inputs[graph.inputs[0].name].shape[0] for inputs in batch]
        described, buffers = [], []
        for spec in graph.inputs:
            tensors = [inputs[spec.name] for inputs in batch]
            shape = tensors[0].shape if rows is None else (sum(rows), *tensors[0].shape[1:])
            described.append((spec.dtype, shape, sum(len(tensor.data) for tensor in tensors)))
            buffers += [tensor.data for tensor in tensors]
        body = buffers[0] if len(buffers) == 1 else b"".join(buffers)
        answer = await self._ask("infer", {"key": key_of(servable), "inputs": described}, [body], limit_s=limit_s)
        if answer.kind == "failed":
            raise ComputeError(_not_computed(str(answer.fields.get("code"))))
        if answer.kind != "answer":
            raise _not_asked()
        try:
            return cut_outputs(graph, answer, rows)
        except OutputError as exc:
            raise ComputeError(exc) from exc

    async def _send_model(self, key: str, servable: ServableVersion) -> None:
        await self._step(key, "first", servable.graph.to_json())
        chunks = await _read(lambda: self._weights(servable))
        while (chunk := await _read(lambda: next(chunks, None))) is not None:
            await self._step(key, "more", chunk)
        await self._step(key, "last", b"")

    async def _step(self, key: str, place: str, body: bytes) -> None:
        answer = await self._ask("load", {"key": key, "place": place}, [body], limit_s=self._load_s)
        if answer.kind == "failed":
            raise LoadError(_not_loaded(str(answer.fields.get("code"))))
        if answer.kind != ("loaded" if place == "last" else "more"):
            raise _not_asked()

    async def _unload(self, key: str) -> None:
        if (await self._ask("unload", {"key": key}, limit_s=self._load_s)).kind != "unloaded":
            raise _not_asked()

    async def _ask(
        self, kind: str, fields: Mapping[str, Any], buffers: Sequence[Buffer] = (), *, limit_s: float
    ) -> Frame:
        self._next_id += 1
        answer = await self._within(limit_s, Frame(kind=kind, id=self._next_id, fields=fields, buffers=buffers))
        if answer.id != self._next_id:
            raise FrameError("a worker answered for another request")
        return answer

    async def _within(self, limit_s: float, asked: Frame | None = None) -> Frame:
        late = self._loop.call_later(limit_s, self._channel.expire)
        try:
            if asked is not None:
                await self._channel.send(asked)
            return await self._channel.receive()
        finally:
            late.cancel()


def key_of(servable: ServableVersion) -> str:
    """Return what a worker knows a version by."""
    return f"{servable.ref.object_id}/{servable.version}"


async def _read(work: Callable[[], _Read]) -> _Read:
    """Read weights in a thread; what goes wrong there is not the worker's doing."""
    try:
        return await asyncio.to_thread(work)
    except ModelkeepError as exc:
        raise LoadError(exc) from exc
    except Exception as exc:
        # The type alone: a foreign message may hold a path.
        _log.error("weights could not be read: %s", type(exc).__name__)
        error = UnavailableError("the model's weights could not be read; try again", code="weights_unreadable")
        raise LoadError(error) from exc


def _not_loaded(code: str) -> ModelkeepError:
    if code == _OUT_OF_MEMORY:
        return UnavailableError("the model does not fit into the worker's memory", code="out_of_memory")
    return UnprocessableError("the model cannot be loaded; upload it again", code="model_not_loadable")


def _not_computed(code: str) -> ModelkeepError:
    if code == _OUT_OF_MEMORY:
        return UnavailableError("the worker ran out of memory; send fewer rows", code="out_of_memory")
    return UnprocessableError(
        "the model cannot compute with these inputs; check their ranges and shapes", code="inference_failed"
    )


def _not_asked() -> FrameError:
    return FrameError("a worker answered what was not asked")
