"""The serving child: what it answers, in this process and in the real one."""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import suppress

import pytest

from fakes.rooms import zeros
from fakes.serving import rows, servable, values_of
from modelkeep_platform.core.errors import UnavailableError, UnprocessableError
from modelkeep_platform.core.limits import GIB
from modelkeep_platform.models.values import ServableVersion
from modelkeep_platform.serving import worker as serving_worker
from modelkeep_platform.serving.service import ServingService
from modelkeep_platform.serving.worker import Models, _guarded
from modelkeep_platform.workers.frames import Bounds, Frame
from modelkeep_platform.workers.limits import Limits
from modelkeep_platform.workers.sandbox import ProcessSandbox

pytestmark = pytest.mark.torch
GRAPH = servable().graph.to_json()


def load(models: Models, *parts: bytes, graph: bytes = GRAPH) -> Frame:
    answer = Frame(kind="")
    sent = [("first", graph), *(("more", part) for part in parts), ("last", b"")]
    for number, (place, data) in enumerate(sent):
        frame = Frame(kind="load", id=number, fields={"key": "k", "place": place}, buffers=[data])
        answer = _guarded(models, frame)
        if answer.kind == "failed":
            break
    return answer


def infer(models: Models, data: bytes = bytes(8)) -> Frame:
    fields = {"key": "k", "inputs": [("float32", (len(data) // 8, 2), len(data))]}
    return _guarded(models, Frame(kind="infer", id=7, fields=fields, buffers=[data]))


def test_a_model_is_loaded_in_parts_and_answers() -> None:
    models = Models()
    assert load(models, zeros()[:50], zeros()[50:]).kind == "loaded"
    answer = infer(models)
    assert (answer.kind, answer.id, answer.fields) == ("answer", 7, {"outputs": [("float32", [1, 2], 8)]})
    assert answer.buffers == [bytes(8)]


@pytest.mark.parametrize(
    ("parts", "graph"),
    [((zeros()[:-1],), GRAPH), ((b"\x80\x04pickled",), GRAPH), ((zeros(),), b"{}"), ((), GRAPH)],
    ids=["torn", "a pickle", "no graph", "no weights"],
)
def test_a_model_that_cannot_be_loaded_is_not_half_there(parts: tuple[bytes, ...], graph: bytes) -> None:
    models = Models()
    answer = load(models, *parts, graph=graph)
    assert (answer.kind, answer.fields) == ("failed", {"code": "inference_failed"})
    assert infer(models).kind == "failed"
    assert load(models, zeros()).kind == "loaded"


def test_what_arrived_of_a_model_is_dropped_when_it_is_unloaded() -> None:
    models = Models()
    for place, data in (("first", GRAPH), ("more", bytes(1000))):
        _guarded(models, Frame(kind="load", fields={"key": "k", "place": place}, buffers=[data]))
    assert _guarded(models, Frame(kind="unload", id=3, fields={"key": "k"})) == Frame(kind="unloaded", id=3)
    assert models._loading == {}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), "out_of_memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 98765 bytes"),
            "out_of_memory",
        ),
        (RuntimeError("row 98765"), "inference_failed"),
        (KeyError("98765"), "inference_failed"),
    ],
    ids=["python", "torch", "runtime", "key"],
)
def test_what_goes_wrong_is_told_by_a_code_alone(monkeypatch: pytest.MonkeyPatch, error: Exception, code: str) -> None:
    def fails(*_: object) -> Frame:
        raise error

    monkeypatch.setattr(Models, "answer", fails)
    assert _guarded(Models(), Frame(kind="infer", id=5)) == Frame(kind="failed", id=5, fields={"code": code})


def test_an_answer_that_no_frame_holds_is_a_failure_and_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    models = Models()
    load(models, zeros())
    monkeypatch.setattr(serving_worker, "DEFAULT_BOUNDS", Bounds(total_bytes=15))
    assert infer(models).kind == "answer"
    assert infer(models, bytes(16)).fields == {"code": "out_of_memory"}


def test_the_real_process_serves_survives_bad_models_and_is_replaced_when_killed() -> None:
    def weights(version: ServableVersion) -> Iterator[bytes]:
        yield zeros() if version.version == 1 else b"\x80\x04pickled"

    async def main() -> None:
        service = ServingService(
            weights=weights, limits=Limits(memory_bytes=2 * GIB), sandbox=ProcessSandbox(), max_workers=1
        )
        try:
            asked = [service.infer(servable(n), rows(1, 2), timeout_s=60) for n in (1, 2, 1)]
            good, bad, other = await asyncio.gather(*asked, return_exceptions=True)
            assert isinstance(bad, UnprocessableError)
            assert bad.error_code == "model_not_loadable"
            for answer in (good, other):
                assert isinstance(answer, dict)
                assert values_of(answer) == [0, 0]
            (first,) = service._workers.values()
            os.kill(first._process.pid, signal.SIGKILL)
            with suppress(UnavailableError):
                await service.infer(servable(1), rows(1), timeout_s=60)
            assert values_of(await service.infer(servable(1), rows(1), timeout_s=60)) == [0]
            assert first._process.death().message == "the worker process ended: signal SIGKILL; try again"
        finally:
            await service.close()

    asyncio.run(main())
