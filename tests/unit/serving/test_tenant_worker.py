"""One tenant's worker: batches while busy, gives each its own rows back, and nobody waits for ever."""

import asyncio
from typing import Any

import pytest

from fakes.core import GLOBEX
from fakes.rooms import small_graph
from fakes.serving import (
    FakeWorker,
    Processes,
    Script,
    dies,
    doubled,
    doubles,
    hangs,
    rows,
    run_with_worker,
    servable,
    together,
    values_of,
)
from modelkeep_platform.core.errors import (
    DeadlineError,
    TooLargeError,
    UnavailableError,
    UnprocessableError,
)
from modelkeep_platform.core.ids import TenantId
from modelkeep_platform.models.values import ServableVersion
from modelkeep_platform.serving import tenant_worker
from modelkeep_platform.serving.tenant_worker import MAX_QUEUED, MAX_QUEUED_GUEST, TenantWorker
from modelkeep_platform.serving.tensors import Tensor
from modelkeep_platform.workers.errors import WorkerDiedError
from modelkeep_platform.workers.frames import Frame
from modelkeep_platform.workers.limits import Limits


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

    run_with_worker(main)
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

    run_with_worker(main)
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

    run_with_worker(main)
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

    run_with_worker(main)
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

    run_with_worker(main)
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

    run_with_worker(main)


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

    run_with_worker(main, hang_s=0.05)
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

    run_with_worker(main)
    assert [kind for kind, _ in processes.asked()] == ["load", "infer"]


def test_a_request_may_compute_until_its_own_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = asyncio.Event()
    processes = Processes(monkeypatch, gated(gate))

    async def main(worker: TenantWorker) -> None:
        first = await busy(worker, processes)
        await asyncio.sleep(0.03)
        gate.set()
        assert values_of(await first) == [200]

    run_with_worker(main, hang_s=0.001)


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

    run_with_worker(main, hang_s=0.001)
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

    run_with_worker(main, limits=Limits(start_s=0.05))
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

    run_with_worker(main, idle_s=0.02)
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

    run_with_worker(main)
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

    run_with_worker(main)


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

    run_with_worker(main)


def test_all_guests_together_leave_half_of_the_places_to_the_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = asyncio.Event()
    processes = Processes(monkeypatch, gated(gate))
    monkeypatch.setattr(tenant_worker, "MAX_QUEUED_GUEST", 3)
    monkeypatch.setattr(tenant_worker, "MAX_QUEUED_GUESTS", 5)
    monkeypatch.setattr(tenant_worker, "MAX_QUEUED", 10)

    async def main(worker: TenantWorker) -> None:
        first = await busy(worker, processes)
        crowd = [servable(caller=TenantId(f"guest-{number % 3}")) for number in range(9)]
        guests = [asyncio.create_task(worker.infer(guest, rows(1), timeout_s=8)) for guest in crowd]
        await turns(2)
        assert worker.waiting == 5
        own = asyncio.create_task(together(worker, [rows(1)] * 6, timeout_s=8))
        await turns(2)
        assert worker.waiting == 10
        gate.set()
        await first
        answers = [*await asyncio.gather(*guests, return_exceptions=True), *await own]
        refused = [answer for answer in answers if isinstance(answer, UnavailableError)]
        assert [error.error_code for error in refused] == ["overloaded"] * 5
        assert await worker.infer(servable(caller=GLOBEX), rows(1), timeout_s=5)

    run_with_worker(main)


def test_all_guests_together_leave_half_of_the_bytes_to_the_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = asyncio.Event()
    processes = Processes(monkeypatch, gated(gate))
    monkeypatch.setattr(tenant_worker, "MAX_QUEUED_BYTES", 848)
    monkeypatch.setattr(tenant_worker, "MAX_QUEUED_GUESTS_BYTES", 24)
    one, other = servable(caller=GLOBEX), servable(caller=TenantId("another"))

    async def main(worker: TenantWorker) -> None:
        first = await busy(worker, processes)
        guest = asyncio.create_task(worker.infer(one, rows(1, 2), timeout_s=8))
        await turns(2)
        (refused,) = await together(worker, [rows(1, 2)], version=other, timeout_s=8)
        assert refused.error_code == "overloaded"
        own = asyncio.create_task(worker.infer(servable(), rows(1, 2), timeout_s=8))
        await turns(2)
        assert worker.waiting == 2
        gate.set()
        assert [len(values_of(answer)) for answer in await asyncio.gather(first, guest, own)] == [1, 2, 2]
        (answer,) = await together(worker, [rows(1, 2, 3)], version=other)
        assert len(values_of(answer)) == 3, "what was answered holds nothing"

    run_with_worker(main)


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

    run_with_worker(main)


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

    run_with_worker(main)


def test_one_request_is_no_larger_than_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    Processes(monkeypatch, doubles)

    class Huge(bytes):
        def __len__(self) -> int:
            return 2**29

    async def main(worker: TenantWorker) -> None:
        with pytest.raises(TooLargeError):
            await worker.infer(servable(), {"x": Tensor("float32", (2**26, 2), Huge())}, timeout_s=5)
        assert worker.idle

    run_with_worker(main)


def test_a_death_fails_what_runs_and_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes(monkeypatch, dies)

    async def main(worker: TenantWorker) -> None:
        answers = await together(worker, [rows(1), rows(2)], version=servable(graph=fixed() | {}))
        assert [type(answer) for answer in answers] == [WorkerDiedError] * 2
        assert answers[0].error_code == "worker_died"
        assert not worker.alive
        await worker.ended()

    run_with_worker(main)
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

    run_with_worker(main)
    assert processes.started[0].killed


def test_ending_before_anything_began_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes(monkeypatch, doubles)

    async def main(worker: TenantWorker) -> None:
        pass

    run_with_worker(main)
    assert processes.started[0].reaped
