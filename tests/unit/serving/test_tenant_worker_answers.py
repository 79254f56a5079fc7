"""What one tenant's worker is given to load and what it answers: what is wrong fails its own requests, or ends it."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fakes.serving import (
    LIMITS,
    FakeWorker,
    Processes,
    Script,
    doubled,
    doubles,
    obedient,
    rows,
    run_with_worker,
    servable,
    together,
    values_of,
    weights_of,
)
from modelkeep_platform.core.errors import (
    IntegrityError,
    ModelkeepError,
    UnavailableError,
    UnprocessableError,
)
from modelkeep_platform.models.values import ServableVersion
from modelkeep_platform.serving import conversation
from modelkeep_platform.serving.tenant_worker import TenantWorker
from modelkeep_platform.workers.frames import PREFIX_BYTES, Frame

# --- loading ---------------------------------------------------------------------------------------


def test_the_least_used_weights_are_unloaded_when_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes(monkeypatch, doubles)

    async def main(worker: TenantWorker) -> None:
        for number in (1, 2, 1, 3):
            await worker.infer(servable(number, weights_bytes=40), rows(1), timeout_s=5)

    run_with_worker(main, loaded_bytes=100)
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

    run_with_worker(main, weights=sometimes)
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

    run_with_worker(main)
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

    run_with_worker(main, loaded_bytes=100)


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
    worker.channel._transport.write(b"HTTP/1.1 200 OK\r\n\r\n")
    await asyncio.Event().wait()


async def announces_too_much(worker: FakeWorker) -> None:
    await worker.until_asked()
    worker.channel._transport.write((2**31).to_bytes(PREFIX_BYTES, "big"))
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

    run_with_worker(main)
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

    run_with_worker(main)


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

    run_with_worker(main)


def test_a_first_frame_that_is_not_ready_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fakes.serving.READY", "fault")
    Processes(monkeypatch, doubles)

    async def main(worker: TenantWorker) -> None:
        (error,) = await together(worker, [rows(1)])
        assert error.error_code == "worker_died"

    run_with_worker(main)


def test_whatever_goes_wrong_in_the_task_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes(monkeypatch, doubles)

    def bug(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(conversation, "cut_outputs", bug)

    async def main(worker: TenantWorker) -> None:
        got = await together(worker, [rows(1), rows(2)])
        assert [answer.error_code for answer in got] == ["worker_died"] * 2

    run_with_worker(main, limits=LIMITS)
    assert processes.started[0].reaped
