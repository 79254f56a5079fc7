"""Serving with scripted workers: each is a task of the test's own loop at the other end of a real socket pair."""

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, cast

import pytest

from fakes.core import ACME
from fakes.rooms import small_graph
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.decisions import Decision
from modelkeep_platform.core.ids import ObjectId, TenantId
from modelkeep_platform.core.refs import Kind, ResourceRef
from modelkeep_platform.models.graph.format import parse
from modelkeep_platform.models.values import ServableVersion
from modelkeep_platform.serving import tenant_worker
from modelkeep_platform.serving.conversation import Weights
from modelkeep_platform.serving.tenant_worker import TenantWorker
from modelkeep_platform.serving.tensors import Tensor
from modelkeep_platform.workers.channel_async import AsyncChannel
from modelkeep_platform.workers.child import READY
from modelkeep_platform.workers.errors import WorkerDiedError
from modelkeep_platform.workers.frames import Frame
from modelkeep_platform.workers.limits import Limits
from modelkeep_platform.workers.process import WorkerProcess
from modelkeep_platform.workers.sandbox import ProcessSandbox

LIMITS = Limits(start_s=5.0)


def servable(
    number: int = 1,
    *,
    owner: TenantId = ACME,
    caller: TenantId | None = None,
    weights_bytes: int = 24,
    graph: dict[str, Any] | None = None,
) -> ServableVersion:
    """Return a version that takes rows of two numbers and, unless `graph` says else, gives rows of two."""
    ref = ResourceRef(owner=owner, kind=Kind.MODEL, object_id=ObjectId(f"mdl_{number}"))
    return ServableVersion(
        ref=ref,
        name="cells",
        version=number,
        alias="",
        graph=parse(json.dumps(graph or small_graph()).encode()),
        weights_bytes=weights_bytes,
        decision=Decision(
            allow=True,
            action=Action.MODEL_PREDICT,
            ref=ref,
            caller_tenant=caller or owner,
        ),
    )


def rows(*values: float) -> dict[str, Tensor]:
    """Return an input in which each value fills a row of two."""
    data = b"".join(struct.pack("<2f", value, value) for value in values)
    return {"x": Tensor("float32", (len(values), 2), data)}


def values_of(outputs: dict[str, Tensor]) -> list[float]:
    """Return the first number of each row of `y`."""
    data = bytes(outputs["y"].data)
    return [float(number) for number in struct.unpack(f"<{len(data) // 4}f", data)[::2]]


def weights_of(_version: ServableVersion) -> Iterator[bytes]:
    """Yield weights in two parts."""
    yield b"one"
    yield b"two"


class FakeWorker:
    """What a script plays with: its channel, and everything it was sent."""

    def __init__(self, channel: AsyncChannel, frames: list[Frame]) -> None:
        self.channel = channel
        self.frames = frames

    async def receive(self) -> Frame:
        frame = await self.channel.receive()
        self.frames.append(frame)
        return frame

    async def send(self, frame: Frame) -> None:
        await self.channel.send(frame)

    async def until_asked(self) -> Frame:
        """Load whatever comes; return the first inference frame."""
        while (frame := await self.receive()).kind != "infer":
            await self.send(Frame(kind=obedient(frame), id=frame.id))
        return frame


Script = Callable[[FakeWorker], Awaitable[None]]


def obedient(frame: Frame) -> str:
    """Return the kind of a good worker's answer to a frame that loads or unloads."""
    if frame.kind == "unload":
        return "unloaded"
    return "loaded" if frame.fields["place"] == "last" else "more"


def doubled(frame: Frame) -> Frame:
    """Return the answer of a model that doubles its rows."""
    (dtype, shape, size) = frame.fields["inputs"][0]
    numbers = struct.unpack(f"<{size // 4}f", bytes(frame.buffers[0]))
    data = struct.pack(f"<{len(numbers)}f", *(2 * number for number in numbers))
    return Frame(kind="answer", id=frame.id, fields={"outputs": [(dtype, list(shape), size)]}, buffers=[data])


async def doubles(worker: FakeWorker) -> None:
    """Answer every request with the double of its rows."""
    while True:
        await worker.send(doubled(await worker.until_asked()))


async def hangs(worker: FakeWorker) -> None:
    """Load, take one request and never answer it."""
    await worker.until_asked()
    await asyncio.Event().wait()


async def dies(worker: FakeWorker) -> None:
    """Load, take one request and end."""
    await worker.until_asked()


class FakeProcess:
    """A process that is a task."""

    def __init__(self, script: Script) -> None:
        self._loop = asyncio.get_running_loop()
        self.connection, theirs = socket.socketpair()
        self.frames: list[Frame] = []
        self.killed = self.reaped = False
        self._theirs = theirs
        self._task = self._loop.create_task(self._play(script, theirs))

    async def _play(self, script: Script, theirs: socket.socket) -> None:
        channel = await AsyncChannel.open(theirs)
        try:
            with suppress(WorkerDiedError):
                await channel.send(Frame(kind=READY))
                await script(FakeWorker(channel, self.frames))
        finally:
            channel.close()
            await asyncio.sleep(0)

    def alive(self) -> bool:
        return not self.killed and not self._task.done()

    def detach(self) -> socket.socket:
        return socket.socket(fileno=self.connection.detach())

    def death(self) -> WorkerDiedError:
        return WorkerDiedError("the worker process ended: signal SIGKILL; try again")

    def kill_soon(self) -> None:
        self.killed = True
        self._task.cancel()

    def kill(self) -> None:
        self.connection.close()
        self.reaped = True
        self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        self._task.cancel()
        if self._task.done():
            self._theirs.close()  # its script never began


class Processes:
    """Stands for `workers.process.start`: the n-th worker plays the n-th script, and the last script again.

    Args:
        monkeypatch: puts it in place.
        scripts: one for each worker.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *scripts: Script) -> None:
        self._scripts = list(scripts)
        self.started: list[FakeProcess] = []
        monkeypatch.setattr(tenant_worker, "start", self._start)

    def _start(self, module: str, **_options: object) -> WorkerProcess:
        assert module == "modelkeep_platform.serving.worker"
        process = FakeProcess(self._scripts[min(len(self.started), len(self._scripts) - 1)])
        self.started.append(process)
        return cast("WorkerProcess", process)

    def asked(self, number: int = 0) -> list[tuple[Any, ...]]:
        """Return what the n-th worker was asked: the kind, and the key or the shape of the first input."""
        return [
            (frame.kind, frame.fields["inputs"][0][1][0])
            if frame.kind == "infer"
            else (frame.kind, frame.fields["key"])
            for frame in self.started[number].frames
            if frame.fields.get("place") not in ("more", "last")
        ]


def new_worker(
    *, weights: Weights = weights_of, loaded_bytes: int = 1000, limits: Limits = LIMITS, **options: Any
) -> TenantWorker:
    """Make a tenant's worker."""
    return TenantWorker(limits=limits, sandbox=ProcessSandbox(), weights=weights, loaded_bytes=loaded_bytes, **options)


async def ended(*workers: TenantWorker) -> None:
    """End workers and wait for it."""
    for worker in workers:
        worker.end()
        await worker.ended()


async def together(worker: TenantWorker, requests: Sequence[dict[str, Tensor]], **options: Any) -> list[Any]:
    """Ask at once; return answers and errors."""
    version = options.pop("version", None) or servable()
    timeout_s = options.pop("timeout_s", 5.0)
    asked = (worker.infer(version, inputs, timeout_s=timeout_s) for inputs in requests)
    return await asyncio.gather(*asked, return_exceptions=True)


def run_with_worker(main: Callable[[TenantWorker], Awaitable[None]], **options: Any) -> None:
    """Run `main` with a worker, within ten seconds, and end the worker."""

    async def guarded() -> None:
        async with asyncio.timeout(10):
            worker = new_worker(**options)
            try:
                await main(worker)
            finally:
                await ended(worker)

    asyncio.run(guarded())
