"""One tenant's worker: batches while busy, gives each its own rows back, and nobody waits for ever."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from fakes.core import GLOBEX
from fakes.rooms import small_graph
from fakes.serving import (
    LIMITS,
    FakeWorker,
    Processes,
    Script,
    dies,
    doubled,
    doubles,
    ended,
    hangs,
    new_worker,
    obedient,
    rows,
    servable,
    together,
    values_of,
    weights_of,
)
from modelkeep_platform.core.errors import (
    DeadlineError,
    IntegrityError,
    ModelkeepError,
    TooLargeError,
    UnavailableError,
    UnprocessableError,
)
from modelkeep_platform.models.values import ServableVersion
from modelkeep_platform.serving import tenant_worker
from modelkeep_platform.serving.tenant_worker import MAX_QUEUED, MAX_QUEUED_GUEST, TenantWorker
from modelkeep_platform.serving.tensors import Tensor
from modelkeep_platform.workers.errors import WorkerDiedError
from modelkeep_platform.workers.frames import PREFIX_BYTES, Frame
from modelkeep_platform.workers.limits import Limits

Main = Callable[[TenantWorker], Awaitable[None]]


def run(main: Main, **options: Any) -> None:
    """Run `main` with a worker, within ten seconds, and end the worker."""

    async def guarded() -> None:
        async with asyncio.timeout(10):
            worker = new_worker(**options)
            try:
                await main(worker)
            finally:
                await ended(worker)

    asyncio.run(guarded())


def gated(gate: asyncio.Event) -> Script:
    """Answer the first request when the gate opens, the others at once."""

    async def script(worker: FakeWorker) -> None:
        frame = await worker.until_asked()
        await gate.wait()
        await worker.send(doubled(frame))
        await doubles(worker)

    return script


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def busy(worker: TenantWorker, processes: Processes) -> asyncio.Task[dict[str, Tensor]]:
    """Send one request and return when the worker computes it."""
    task = asyncio.create_task(worker.infer(servable(), rows(100), timeout_s=5))
    for _ in range(2000):
        if any(frame.kind == "infer" for frame in processes.started[0].frames):
            break
        await asyncio.sleep(0.001)
    return task


def test_an_idle_worker_answers_at_once_and_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes(monkeypatch, doubles)

    async def main(worker: TenantWorker) -> None:
        for value in (1.0, 2.0):
            assert values_of(await worker.infer(servable(), rows(value), timeout_s=5)) == [2 * value]
        assert worker.idle

    run(main)
    assert processes.asked() == [("load", "mdl_1/1"), ("infer", 1), ("infer", 1)]


def test_what_gathers_while_it_is_busy_goes_as_one_batch_and_comes_back_split(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = asyncio.Event()
    processes = Processes(monkeypatch, gated(gate))

    async def main(worker: TenantWorker) -> None:
        first = await busy(worker, processes)
        others = asyncio.create_task(together(worker, [rows(1, 2), rows(3), rows(4, 5, 6)]))
        await turns()
        assert not worker.idle
        gate.set()
        assert values_of(await first) == [200]
        assert [values_of(answer) for answer in await others] == [[2, 4], [6], [8, 10, 12]]

    run(main)
    assert processes.asked() == [("load", "mdl_1/1"), ("infer", 1), ("infer", 6)]


@pytest.mark.parametrize(
    ("name", "limit", "batches"),
    [("MAX_BATCH", 2, [2, 1]), ("MAX_BATCH_ROWS", 2, [2, 1]), ("MAX_BATCH_BYTES", 16, [2, 1])],
)
def test_a_batch_is_bounded(monkeypatch: pytest.MonkeyPatch, name: str, limit: int, batches: list[int]) -> None:
    gate = asyncio.Event()
    processes = Processes(monkeypatch, gated(gate))
    monkeypatch.setattr(tenant_worker, name, limit)

    async def main(worker: TenantWorker) -> None:
        first = await busy(worker, processes)
        others = asyncio.create_task(together(worker, [rows(1), rows(2), rows(3)]))
        await turns()
        gate.set()
        await first
        assert [values_of(answer) for answer in await others] == [[2], [4], [6]]

    run(main)
    assert [shape for kind, shape in processes.asked()[2:]] == batches


def fixed() -> dict[str, Any]:
    graph = small_graph()
    for tensor in (*graph["inputs"], *graph["outputs"]):
        tensor["shape"] = [1, 2]
    return graph


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(servable(2), id="another model"),
        pytest.param(servable(1, caller=GLOBEX), id="a caller of another tenant"),
        pytest.param(servable(1, graph=fixed()), id="a fixed first dimension"),
    ],
)
def test_what_does_not_belong_together_is_not_batched(monkeypatch: pytest.MonkeyPatch, other: ServableVersion) -> None:
    gate = asyncio.Event()
    processes = Processes(monkeypatch, gated(gate))

    async def main(worker: TenantWorker) -> None:
        first = await busy(worker, processes)
        waiting = [
            asyncio.create_task(worker.infer(version, rows(1), timeout_s=5))
            for version in (servable(), other, servable())
        ]
        await turns()
        gate.set()
        await first
        assert [values_of(answer) for answer in await asyncio.gather(*waiting)] == [[2], [2], [2]]

    run(main)
    assert [shape for kind, shape in processes.asked() if kind == "infer"] == [1, 2, 1]


def test_one_bad_row_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = asyncio.Event()

    async def script(worker: FakeWorker) -> None:
        await worker.send(doubled(await worker.until_asked()))
        while True:
            frame = await worker.until_asked()
            await gate.wait()
            bad = b"\x00\x00\x40\x40" in bytes(frame.buffers[0])  # 3.0
            failed = Frame(kind="failed", id=frame.id, fields={"code": "inference_failed"})
            await worker.send(failed if bad else doubled(frame))

    processes = Processes(monkeypatch, script)

    async def main(worker: TenantWorker) -> None:
        assert values_of(await worker.infer(servable(), rows(1), timeout_s=5)) == [2]
        first = asyncio.create_task(worker.infer(servable(), rows(9), timeout_s=5))
        await turns()
        others = asyncio.create_task(together(worker, [rows(1), rows(3), rows(5)]))
        await turns()
        gate.set()
        assert values_of(await first) == [18]
        good, bad, other = await others
        assert [values_of(good), values_of(other)] == [[2], [10]]
        assert isinstance(bad, UnprocessableError)
        assert bad.error_code == "inference_failed"
        assert worker.alive

    run(main)
    assert [shape for kind, shape in processes.asked() if kind == "infer"] == [1, 1, 3, 1, 1, 1]


def test_a_worker_out_of_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(worker: FakeWorker) -> None:
        frame = await worker.until_asked()
        await worker.send(Frame(kind="failed", id=frame.id, fields={"code": "out_of_memory", "row": "98765"}))
        await doubles(worker)

    Processes(monkeypatch, script)

    async def main(worker: TenantWorker) -> None:
        with pytest.raises(UnavailableError) as caught:
            await worker.infer(servable(), rows(1), timeout_s=5)
        assert caught.value.error_code == "out_of_memory"
        assert "98765" not in str(caught.value)
        assert values_of(await worker.infer(servable(), rows(1), timeout_s=5)) == [2]

    run(main)


# --- time -----------------------------------------------------------------------------------------


def test_a_worker_that_hangs_is_ended_and_so_is_everybodys_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes(monkeypatch, hangs)

    async def main(worker: TenantWorker) -> None:
        first = asyncio.create_task(worker.infer(servable(), rows(1), timeout_s=0.05))
        await turns()
        behind = asyncio.create_task(worker.infer(servable(), rows(2), timeout_s=5))
        with pytest.raises(DeadlineError) as late:
            await first
        assert late.value.error_code == "deadline_exceeded"
        with pytest.raises(UnavailableError) as caught:
            await behind
        assert caught.value.error_code == "worker_died"
        assert not worker.alive
        await worker.ended()

    run(main, hang_s=0.05)
    assert processes.started[0].reaped


def test_the_deadline_of_a_waiting_request_ends_nothing_but_its_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = asyncio.Event()
    processes = Processes(monkeypatch, gated(gate))

    async def main(worker: TenantWorker) -> None:
        first = await busy(worker, processes)
        (late,) = await together(worker, [rows(1)], timeout_s=0.01)
        assert isinstance(late, DeadlineError)
        gate.set()
        assert values_of(await first) == [200]
        assert worker.alive

    run(main)
    assert [kind for kind, _ in processes.asked()] == ["load", "infer"]


def test_a_request_may_compute_until_its_own_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = asyncio.Event()
    processes = Processes(monkeypatch, gated(gate))

    async def main(worker: TenantWorker) -> None:
        first = await busy(worker, processes)
        await asyncio.sleep(0.03)
        gate.set()
        assert values_of(await first) == [200]

    run(main, hang_s=0.001)


def test_a_model_that_loads_longer_than_its_caller_waits_is_there_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = asyncio.Event()

    async def script(worker: FakeWorker) -> None:
        while (frame := await worker.receive()).fields["place"] != "last":
            await worker.send(Frame(kind="more", id=frame.id))
        await gate.wait()
        await worker.send(Frame(kind="loaded", id=frame.id))
        await doubles(worker)

    processes = Processes(monkeypatch, script)

    async def main(worker: TenantWorker) -> None:
        with pytest.raises(DeadlineError):
            await worker.infer(servable(), rows(1), timeout_s=0.05)
        gate.set()
        assert values_of(await worker.infer(servable(), rows(2), timeout_s=5)) == [4]

    run(main, hang_s=0.001)
    assert [kind for kind, _ in processes.asked()].count("load") == 1


def test_a_worker_that_does_not_begin_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(self: object, script: Script, theirs: Any) -> None:
        with theirs:
            await asyncio.Event().wait()

    processes = Processes(monkeypatch, doubles)
    monkeypatch.setattr("fakes.serving.FakeProcess._play", silent)

    async def main(worker: TenantWorker) -> None:
        with pytest.raises(UnavailableError) as caught:
            await worker.infer(servable(), rows(1), timeout_s=5)
        assert caught.value.error_code == "worker_died"

    run(main, limits=Limits(start_s=0.05))
    assert processes.started[0].reaped


def test_a_worker_that_nobody_uses_ends_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes(monkeypatch, doubles)

    async def main(worker: TenantWorker) -> None:
        await worker.infer(servable(), rows(1), timeout_s=5)
        await worker.ended()
        assert not worker.alive
        with pytest.raises(UnavailableError) as caught:
            await worker.infer(servable(), rows(1), timeout_s=5)
        assert caught.value.error_code == "worker_stopped"

    run(main, idle_s=0.02)
    assert processes.started[0].reaped


# --- leaving, room, death --------------------------------------------------------------------------


def test_a_request_whose_caller_left_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = asyncio.Event()
    processes = Processes(monkeypatch, gated(gate))

    async def main(worker: TenantWorker) -> None:
        first = await busy(worker, processes)
        left = asyncio.create_task(worker.infer(servable(), rows(1), timeout_s=5))
        await turns()
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        gate.set()
        await first
        assert values_of(await worker.infer(servable(), rows(3), timeout_s=5)) == [6]

    run(main)
    assert [shape for kind, shape in processes.asked() if kind == "infer"] == [1, 1]


def test_the_caller_of_a_running_request_may_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = asyncio.Event()
    processes = Processes(monkeypatch, gated(gate))

    async def main(worker: TenantWorker) -> None:
        first = await busy(worker, processes)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        gate.set()
        assert values_of(await worker.infer(servable(), rows(3), timeout_s=5)) == [6]

    run(main)


def test_a_full_queue_refuses_and_guests_leave_room_for_the_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = asyncio.Event()
    processes = Processes(monkeypatch, gated(gate))
    guest = servable(caller=GLOBEX)

    async def main(worker: TenantWorker) -> None:
        first = await busy(worker, processes)
        guests = [asyncio.create_task(worker.infer(guest, rows(1), timeout_s=8)) for _ in range(MAX_QUEUED_GUEST)]
        await turns(2)
        with pytest.raises(UnavailableError) as refused:
            await worker.infer(guest, rows(1), timeout_s=8)
        assert refused.value.error_code == "overloaded"
        own = asyncio.create_task(together(worker, [rows(1)] * (MAX_QUEUED - MAX_QUEUED_GUEST), timeout_s=8))
        await turns(2)
        with pytest.raises(UnavailableError) as caught:
            await worker.infer(servable(), rows(1), timeout_s=8)
        assert caught.value.error_code == "overloaded"
        gate.set()
        await first
        assert {tuple(values_of(answer)) for answer in [*await asyncio.gather(*guests), *await own]} == {(2,)}

    run(main)


def test_a_callers_place_is_free_when_it_left(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = asyncio.Event()
    processes = Processes(monkeypatch, gated(gate))
    monkeypatch.setattr(tenant_worker, "MAX_QUEUED", 1)

    async def main(worker: TenantWorker) -> None:
        first = await busy(worker, processes)
        for _ in range(3):
            (late,) = await together(worker, [rows(1)], timeout_s=0.001)
            assert isinstance(late, DeadlineError)
        gate.set()
        await first
        assert values_of(await worker.infer(servable(), rows(3), timeout_s=5)) == [6]

    run(main)


def test_the_bytes_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = asyncio.Event()
    processes = Processes(monkeypatch, gated(gate))
    monkeypatch.setattr(tenant_worker, "MAX_QUEUED_BYTES", 24)

    async def main(worker: TenantWorker) -> None:
        first = await busy(worker, processes)
        fits, too_much = await together(worker, [rows(1, 2), rows(3)], timeout_s=0.05)
        assert isinstance(fits, DeadlineError)
        assert too_much.error_code == "overloaded"
        gate.set()
        await first

    run(main)


def test_one_request_is_no_larger_than_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    Processes(monkeypatch, doubles)

    class Huge(bytes):
        def __len__(self) -> int:
            return 2**29

    async def main(worker: TenantWorker) -> None:
        with pytest.raises(TooLargeError):
            await worker.infer(servable(), {"x": Tensor("float32", (2**26, 2), Huge())}, timeout_s=5)
        assert worker.idle

    run(main)


def test_a_death_fails_what_runs_and_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes(monkeypatch, dies)

    async def main(worker: TenantWorker) -> None:
        answers = await together(worker, [rows(1), rows(2)], version=servable(graph=fixed() | {}))
        assert [type(answer) for answer in answers] == [WorkerDiedError] * 2
        assert answers[0].error_code == "worker_died"
        assert not worker.alive
        await worker.ended()

    run(main)
    assert processes.started[0].reaped


def test_ending_fails_what_runs_and_what_waits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes(monkeypatch, hangs)

    async def main(worker: TenantWorker) -> None:
        first = await busy(worker, processes)
        others = asyncio.create_task(together(worker, [rows(1)]))
        await turns()
        worker.end()
        worker.end()
        for answer in [*await asyncio.gather(first, return_exceptions=True), *await others]:
            assert isinstance(answer, UnavailableError)
            assert answer.error_code == "worker_stopped"

    run(main)
    assert processes.started[0].killed


def test_ending_before_anything_began_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes(monkeypatch, doubles)

    async def main(worker: TenantWorker) -> None:
        pass

    run(main)
    assert processes.started[0].reaped


# --- loading ---------------------------------------------------------------------------------------


def test_the_least_used_weights_are_unloaded_when_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes(monkeypatch, doubles)

    async def main(worker: TenantWorker) -> None:
        for number in (1, 2, 1, 3):
            await worker.infer(servable(number, weights_bytes=40), rows(1), timeout_s=5)

    run(main, loaded_bytes=100)
    assert [asked for asked in processes.asked() if asked[0] != "infer"] == [
        ("load", "mdl_1/1"),
        ("load", "mdl_2/2"),
        ("unload", "mdl_2/2"),
        ("load", "mdl_3/3"),
    ]


def refused_key(_version: ServableVersion) -> Iterator[bytes]:
    raise IntegrityError("the sealed bytes do not authenticate")


def torn(_version: ServableVersion) -> Iterator[bytes]:
    yield b"one"
    raise IntegrityError("the sealed bytes do not authenticate")


def lost_disk(_version: ServableVersion) -> Iterator[bytes]:
    yield b"one"
    raise OSError(5, "Input/output error", "/var/lib/modelkeep/98765")


@pytest.mark.parametrize(
    ("weights", "code"),
    [(refused_key, "integrity"), (torn, "integrity"), (lost_disk, "weights_unreadable")],
    ids=["before the first part", "in the middle", "a foreign error"],
)
def test_weights_that_cannot_be_opened_fail_their_own_requests_only(
    monkeypatch: pytest.MonkeyPatch, weights: Callable[[ServableVersion], Iterator[bytes]], code: str
) -> None:
    processes = Processes(monkeypatch, doubles)
    broken = True

    def sometimes(version: ServableVersion) -> Iterator[bytes]:
        return weights(version) if broken and version.version == 1 else weights_of(version)

    async def main(worker: TenantWorker) -> None:
        nonlocal broken
        answers = await asyncio.gather(
            *(worker.infer(servable(number), rows(3), timeout_s=5) for number in (1, 2, 1)), return_exceptions=True
        )
        assert [isinstance(answer, ModelkeepError) for answer in answers] == [True, False, True]
        for answer in (answers[0], answers[2]):
            assert isinstance(answer, ModelkeepError)
            assert answer.error_code == code
            assert "98765" not in str(answer)
        broken = False
        assert values_of(await worker.infer(servable(1), rows(3), timeout_s=5)) == [6]
        assert worker.alive

    run(main, weights=sometimes)
    assert processes.asked()[:2] == [("load", "mdl_1/1"), ("unload", "mdl_1/1")]


@pytest.mark.parametrize("place", ["first", "more", "last"])
@pytest.mark.parametrize(
    ("said", "code"),
    [("out_of_memory", "out_of_memory"), ("inference_failed", "model_not_loadable"), ("x", "model_not_loadable")],
)
def test_a_worker_that_cannot_load_a_model_fails_its_requests_only(
    monkeypatch: pytest.MonkeyPatch, place: str, said: str, code: str
) -> None:
    async def script(worker: FakeWorker) -> None:
        while (frame := await worker.receive()).fields["place"] != place:
            await worker.send(Frame(kind="more", id=frame.id))
        await worker.send(Frame(kind="failed", id=frame.id, fields={"code": said}))
        await doubles(worker)

    processes = Processes(monkeypatch, script)

    async def main(worker: TenantWorker) -> None:
        (error,) = await together(worker, [rows(1)])
        assert error.error_code == code
        assert values_of(await worker.infer(servable(), rows(3), timeout_s=5)) == [6]

    run(main)
    assert [asked[0] for asked in processes.asked()] == ["load", "unload", "load", "infer"]


@pytest.mark.parametrize("stage", ["load", "unload", "infer"])
def test_an_answer_of_another_kind_ends_the_worker(monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    async def script(worker: FakeWorker) -> None:
        while True:
            frame = await worker.receive()
            if frame.kind == stage:
                await worker.send(Frame(kind="exec", id=frame.id))
            else:
                await worker.send(doubled(frame) if frame.kind == "infer" else Frame(kind=obedient(frame), id=frame.id))

    Processes(monkeypatch, script)

    async def main(worker: TenantWorker) -> None:
        asked = [worker.infer(servable(number, weights_bytes=60), rows(1), timeout_s=5) for number in (1, 2)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(answers[-1], UnavailableError)
        assert answers[-1].error_code == "worker_died"
        assert not worker.alive

    run(main, loaded_bytes=100)


# --- wrong answers ---------------------------------------------------------------------------------

GOOD = ("float32", [1, 2], 8)
EIGHT = b"12345678"


def answers(*outputs: Any, buffers: tuple[bytes, ...] = (EIGHT,), shift: int = 0, **fields: Any) -> Script:
    async def script(worker: FakeWorker) -> None:
        frame = await worker.until_asked()
        said = {"outputs": list(outputs), **fields}
        await worker.send(Frame(kind="answer", id=frame.id + shift, fields=said, buffers=buffers))
        await asyncio.Event().wait()

    return script


async def sends_garbage(worker: FakeWorker) -> None:
    await worker.until_asked()
    worker.channel._writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    await asyncio.Event().wait()


async def announces_too_much(worker: FakeWorker) -> None:
    await worker.until_asked()
    worker.channel._writer.write((2**31).to_bytes(PREFIX_BYTES, "big"))
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(answers(GOOD, shift=1), id="for the next request"),
        pytest.param(answers(GOOD, shift=-1), id="for an earlier request"),
        pytest.param(answers(), id="no outputs"),
        pytest.param(answers(GOOD, GOOD, buffers=(EIGHT * 2,)), id="an output more"),
        pytest.param(answers(GOOD, buffers=()), id="no buffer"),
        pytest.param(answers(GOOD, buffers=(EIGHT, EIGHT)), id="two buffers"),
        pytest.param(answers(GOOD, buffers=(EIGHT[:7],)), id="too few bytes"),
        pytest.param(answers(GOOD, buffers=(EIGHT + b"9",)), id="too many bytes"),
        pytest.param(answers(("float32", [1, 2], 4)), id="a size that does not fit"),
        pytest.param(answers(("float32", [-1, -2], 8)), id="negative sizes"),
        pytest.param(answers(("float32", [1] * 17, 4)), id="too many dimensions"),
        pytest.param(answers(("float32", [2**40, 2**40], 8)), id="more than there is"),
        pytest.param(answers("float32"), id="not described"),
        pytest.param(answers(GOOD, extra=1), id="a field more"),
        pytest.param(sends_garbage, id="not a frame"),
        pytest.param(announces_too_much, id="an oversized frame"),
    ],
)
def test_an_answer_that_contradicts_itself_ends_the_worker(monkeypatch: pytest.MonkeyPatch, script: Script) -> None:
    processes = Processes(monkeypatch, script)

    async def main(worker: TenantWorker) -> None:
        (error,) = await together(worker, [rows(1)])
        assert isinstance(error, UnavailableError)
        assert error.error_code == "worker_died"
        assert not worker.alive
        await worker.ended()

    run(main)
    assert processes.started[0].reaped


@pytest.mark.parametrize(
    "output",
    [("float64", [1, 1], 8), ("int64", [1], 8), ("float32", [1, 2, 1], 8), ("float16", [4], 8)],
    ids=["dtype", "rank", "more dimensions", "an unknown dtype"],
)
def test_outputs_other_than_the_graphs_fail_the_request_and_not_the_worker(
    monkeypatch: pytest.MonkeyPatch, output: Any
) -> None:
    Processes(monkeypatch, answers(output))

    async def main(worker: TenantWorker) -> None:
        (error,) = await together(worker, [rows(1)])
        assert isinstance(error, UnprocessableError)
        assert error.error_code == "output_mismatch"
        assert worker.alive

    run(main)


def test_a_batch_with_another_number_of_rows_is_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(worker: FakeWorker) -> None:
        while True:
            frame = await worker.until_asked()
            wide = frame.fields["inputs"][0][1][0] > 1
            one_row = Frame(kind="answer", id=frame.id, fields={"outputs": [GOOD]}, buffers=[EIGHT])
            await worker.send(one_row if wide else doubled(frame))

    Processes(monkeypatch, script)

    async def main(worker: TenantWorker) -> None:
        got = await together(worker, [rows(1), rows(2)])
        assert [values_of(answer) for answer in got] == [[2], [4]]

    run(main)


def test_a_first_frame_that_is_not_ready_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fakes.serving.READY", "fault")
    Processes(monkeypatch, doubles)

    async def main(worker: TenantWorker) -> None:
        (error,) = await together(worker, [rows(1)])
        assert error.error_code == "worker_died"

    run(main)


def test_whatever_goes_wrong_in_the_task_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes(monkeypatch, doubles)

    def bug(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(tenant_worker, "cut_outputs", bug)

    async def main(worker: TenantWorker) -> None:
        got = await together(worker, [rows(1), rows(2)])
        assert [answer.error_code for answer in got] == ["worker_died"] * 2

    run(main, limits=LIMITS)
    assert processes.started[0].reaped
