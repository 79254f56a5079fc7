"""Each segment is charged before it runs; whatever ends a job, what it ran stays charged and the rest returns."""

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa

from fakes.core import tenant_caller
from fakes.rooms import (
    ScriptedRunner,
    TrainingRoom,
    ask,
    cells,
    finish,
    hear_brief,
    honest,
    send_checkpoint,
    training_spec,
    zeros,
)
from fakes.storage import writing
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.errors import IntegrityError
from modelkeep_platform.core.ids import ObjectId
from modelkeep_platform.core.sealing import Purpose
from modelkeep_platform.jobs.queue import Lease
from modelkeep_platform.storage.pages import PageRequest
from modelkeep_platform.storage.tables.jobs import jobs
from modelkeep_platform.training.faults import FAULTS
from modelkeep_platform.training.run import segment_steps
from modelkeep_platform.workers.channel_sync import SyncChannel
from modelkeep_platform.workers.frames import Frame

ME = tenant_caller()


def charged_steps(room: TrainingRoom) -> int:
    return sum(charge.steps for charge in room.datasets.budget(ME, "cells").charges)


def reserved(room: TrainingRoom) -> float:
    return room.datasets.budget(ME, "cells").epsilon_reserved


def models_made(room: TrainingRoom) -> list[str]:
    return [model.name for model in room.models.list(ME, PageRequest()).items if model.latest_version]


def test_a_job_is_charged_runs_and_makes_a_version(room: TrainingRoom) -> None:
    job = room.run(honest)
    assert (job.state, job.error, job.progress.step) == ("succeeded", None, 8)
    assert job.result is not None
    assert (job.result.model, job.result.version) == ("cells-model", 1)
    assert (charged_steps(room), reserved(room)) == (8, 0.0)
    spent = room.datasets.budget(ME, "cells").epsilon_spent
    assert job.progress.epsilon_charged == spent
    assert 0.9 < spent <= 1.0
    version = room.models.get_version(ME, "cells-model", "1")
    assert version.provenance["dataset"] == "cells"
    assert version.provenance["privacy"]["epsilon"] == 1.0
    texts = [line.text for line in room.training.logs(ME, job.id, PageRequest()).items]
    assert texts[0].startswith("training began: 8 steps at sampling rate 0.5, sgd, cross_entropy; noise multiplier ")
    assert texts[-1] == "trained; `cells-model` version 1"


def test_the_served_model_takes_raw_units(room: TrainingRoom) -> None:
    room.run(honest)
    graph = json.loads(room.models.export_graph(ME, "cells-model", "1"))
    first = graph["nodes"][0]
    assert (first["op"], first["attrs"]) == ("affine", {"scale": [0.2, 0.02], "shift": [-1.0, -1.0]})


def test_the_worker_gets_the_rows_and_no_name(room: TrainingRoom) -> None:
    seen: list[tuple[dict[str, object], bytes]] = []

    def look(channel: SyncChannel) -> None:
        seen.append(hear_brief(channel))

    room.run(look)
    fields, rows = seen[0]
    assert rows == cells()
    assert ME.tenant not in json.dumps(fields)
    assert ME.principal not in json.dumps(fields)


def test_a_job_on_public_data_charges_nothing(room: TrainingRoom) -> None:
    job = room.run(honest, dataset="open", privacy=None)
    assert (job.state, job.progress.epsilon_charged) == ("succeeded", None)
    assert room.models.get_version(ME, "cells-model", "1").provenance["privacy"] is None
    assert charged_steps(room) == 0


def test_every_segment_is_charged_before_the_worker_may_run_it(room: TrainingRoom) -> None:
    seen: list[int] = []

    def watch(channel: SyncChannel) -> None:
        fields, _ = hear_brief(channel)
        for number in range(8):
            seen.append(charged_steps(room))
            ask(channel, number, 1)
            assert charged_steps(room) == number + 1
        finish(channel, fields)

    assert room.run(watch).state == "succeeded"
    assert seen == list(range(8))


def dies(channel: SyncChannel) -> None:
    hear_brief(channel)
    ask(channel, 0, 1)
    ask(channel, 1, 1)


def repeats(channel: SyncChannel) -> None:
    hear_brief(channel)
    ask(channel, 0, 1)
    ask(channel, 0, 1)


def asks_more(channel: SyncChannel) -> None:
    hear_brief(channel)
    ask(channel, 0, 5)


def asks_nothing(channel: SyncChannel) -> None:
    hear_brief(channel)
    ask(channel, 0, 0)


def asks_backwards(channel: SyncChannel) -> None:
    hear_brief(channel)
    ask(channel, 0, -1)


def asks_too_often(channel: SyncChannel) -> None:
    hear_brief(channel)
    for number in range(9):
        ask(channel, number, 1)


def answers_early(channel: SyncChannel) -> None:
    fields, _ = hear_brief(channel)
    ask(channel, 0, 1)
    finish(channel, fields)


def speaks_nonsense(channel: SyncChannel) -> None:
    hear_brief(channel)
    channel.send(Frame(kind="exec", fields={"code": "1"}))
    channel.receive()


def sends_a_checkpoint_unasked(channel: SyncChannel) -> None:
    hear_brief(channel)
    ask(channel, 0, 1)
    send_checkpoint(channel, 1)
    channel.receive()


@pytest.mark.parametrize(
    ("script", "code", "charged"),
    [
        pytest.param(dies, "worker_died", 2, id="dies"),
        pytest.param(repeats, "worker_protocol", 1, id="repeats a segment"),
        pytest.param(asks_more, "worker_protocol", 0, id="asks for a longer segment"),
        pytest.param(asks_nothing, "worker_protocol", 0, id="asks for an empty segment"),
        pytest.param(asks_backwards, "worker_protocol", 0, id="asks for a negative segment"),
        pytest.param(asks_too_often, "worker_protocol", 8, id="asks for more than declared"),
        pytest.param(answers_early, "worker_protocol", 1, id="answers early"),
        pytest.param(speaks_nonsense, "worker_protocol", 0, id="speaks nonsense"),
        pytest.param(sends_a_checkpoint_unasked, "worker_protocol", 1, id="sends a checkpoint unasked"),
    ],
)
def test_a_worker_that_does_not_keep_to_its_job(
    room: TrainingRoom, script: Callable[[SyncChannel], None], code: str, charged: int
) -> None:
    job = room.run(script)
    assert job.state == "failed"
    assert job.error is not None
    assert job.error.code == code
    assert (charged_steps(room), reserved(room), models_made(room)) == (charged, 0.0, [])


@pytest.mark.parametrize(
    "ran",
    [
        pytest.param({"steps": 9}, id="more steps"),
        pytest.param({"noise_multiplier": 0.5}, id="less noise"),
        pytest.param({"sample_rate": 1.0}, id="a higher rate"),
        pytest.param({"clip_norm": 2.0}, id="another norm"),
    ],
)
def test_a_run_that_differs_from_its_charge_is_held(room: TrainingRoom, ran: dict[str, Any]) -> None:
    def script(channel: SyncChannel) -> None:
        fields, _ = hear_brief(channel)
        for number in range(8):
            ask(channel, number, 1)
        finish(channel, fields, **ran)

    job = room.run(script)
    assert job.error is not None
    assert job.error.code == "ran_more_than_charged"
    assert (charged_steps(room), reserved(room), models_made(room)) == (8, 0.0, [])


@pytest.mark.parametrize(
    "weights",
    [
        pytest.param(b"", id="none"),
        pytest.param(b"\x80\x04pickled", id="pickle"),
        pytest.param(zeros()[:-1], id="too short"),
        pytest.param(zeros() + b"\x00", id="too long"),
        pytest.param(zeros().replace(b"bias", b"bite"), id="another tensor"),
    ],
)
def test_weights_of_a_worker_are_admitted_like_an_upload(room: TrainingRoom, weights: bytes) -> None:
    def script(channel: SyncChannel) -> None:
        fields, _ = hear_brief(channel)
        for number in range(8):
            ask(channel, number, 1)
        finish(channel, fields, weights)

    job = room.run(script)
    assert job.state == "failed"
    assert models_made(room) == []


@pytest.mark.parametrize("code", sorted(FAULTS))
def test_a_fault_is_told_in_the_platforms_words(room: TrainingRoom, code: str) -> None:
    def script(channel: SyncChannel) -> None:
        hear_brief(channel)
        channel.send(Frame(kind="fault", fields={"code": code, "message": "row 7 says 98765"}))
        channel.receive()

    job = room.run(script)
    assert job.error is not None
    assert (job.error.code, job.error.message) == (code, FAULTS[code])


def test_nothing_that_a_worker_says_reaches_the_job(room: TrainingRoom) -> None:
    def script(channel: SyncChannel) -> None:
        hear_brief(channel)
        secret = "98765"
        channel.send(Frame(kind="fault", fields={"type": secret, "at": secret, "code": secret, "message": secret}))
        channel.receive()

    job = room.run(script)
    assert job.error is not None
    assert job.error.code == "job_failed"
    lines = [line.text for line in room.training.logs(ME, job.id, PageRequest()).items]
    facts = [dict(event.facts) for event in room.recorder.events]
    assert "98765" not in json.dumps([job.error.message, lines, facts])


def test_checkpoints_are_sealed_and_only_the_newest_is_kept(room: TrainingRoom) -> None:
    def script(channel: SyncChannel) -> None:
        hear_brief(channel)
        for number in range(6):
            ask(channel, number, 1)
            if (number + 1) % 2 == 0:
                send_checkpoint(channel, number + 1)

    job = room.run(script, checkpoint_every=2)
    assert job.state == "failed"
    kept = b"".join(room.artifacts.read(ME.tenant, ObjectId(job.id), 6, Purpose.CHECKPOINT))
    assert kept == zeros("weights/")
    for gone in (2, 4):
        with pytest.raises(Exception, match="missing"):
            list(room.artifacts.read(ME.tenant, ObjectId(job.id), gone, Purpose.CHECKPOINT))


def test_a_cancelled_job_keeps_what_it_ran_and_returns_the_rest(room: TrainingRoom) -> None:
    job = room.training.create(ME, training_spec())

    def script(channel: SyncChannel) -> None:
        hear_brief(channel)
        for number in range(3):
            ask(channel, number, 1)
        room.training.cancel(ME, job.id)
        ask(channel, 3, 1)

    runner = ScriptedRunner(script)
    room.dispatcher(runner).run_one()
    ended = room.training.get(ME, job.id)
    assert (ended.state, ended.error, ended.result) == ("cancelled", None, None)
    assert (charged_steps(room), reserved(room)) == (3, 0.0)
    assert runner.started[0].killed


def test_a_cancelled_job_is_not_called_failed_when_its_worker_dies_first(room: TrainingRoom) -> None:
    job = room.training.create(ME, training_spec())

    def script(channel: SyncChannel) -> None:
        hear_brief(channel)
        ask(channel, 0, 1)
        room.training.cancel(ME, job.id)

    room.dispatcher(ScriptedRunner(script)).run_one()
    ended = room.training.get(ME, job.id)
    assert (ended.state, ended.error) == ("cancelled", None)
    assert (charged_steps(room), reserved(room)) == (1, 0.0)
    facts = [event.facts for event in room.recorder.events if event.action == "job:end"]
    assert [fact["state"] for fact in facts] == ["cancelled"]


def test_a_cancelled_job_is_not_called_failed_when_its_server_dies_first(room: TrainingRoom) -> None:
    job = room.training.create(ME, training_spec())
    other = room.dispatcher(ScriptedRunner(honest))

    def script(channel: SyncChannel) -> None:
        hear_brief(channel)
        ask(channel, 0, 1)
        room.training.cancel(ME, job.id)
        room.clock.advance(3600)
        assert [other.end_lapsed() for _ in range(2)] == [0, 1]

    room.dispatcher(ScriptedRunner(script)).run_one()
    ended = room.training.get(ME, job.id)
    assert (ended.state, ended.error) == ("cancelled", None)
    assert (charged_steps(room), reserved(room)) == (1, 0.0)


def test_a_job_that_takes_too_long_is_ended(room: TrainingRoom) -> None:
    def script(channel: SyncChannel) -> None:
        hear_brief(channel)
        threading.Event().wait(0.01)
        ask(channel, 0, 1)

    job = room.training.create(ME, training_spec())
    room.dispatcher(ScriptedRunner(script), max_job_s=0.0).run_one()
    ended = room.training.get(ME, job.id)
    assert ended.error is not None
    assert (ended.error.code, charged_steps(room), reserved(room)) == ("job_timeout", 0, 0.0)


def test_a_worker_that_says_nothing_is_ended_and_its_place_is_free(room: TrainingRoom) -> None:
    silent = threading.Event()

    def script(channel: SyncChannel) -> None:
        hear_brief(channel)
        ask(channel, 0, 1)
        silent.wait(30)

    job = room.training.create(ME, training_spec())
    runner = ScriptedRunner(script)
    dispatcher = room.dispatcher(runner, max_silence_s=0.2)
    assert dispatcher.run_one()
    silent.set()
    ended = room.training.get(ME, job.id)
    assert ended.error is not None
    assert (ended.state, ended.error.code) == ("failed", "worker_timeout")
    assert runner.started[0].killed
    assert (charged_steps(room), reserved(room), models_made(room)) == (1, 0.0, [])
    assert dispatcher._running == []


def test_a_job_is_cancelled_while_its_worker_says_nothing(room: TrainingRoom) -> None:
    silent = threading.Event()
    job = room.training.create(ME, training_spec())

    def script(channel: SyncChannel) -> None:
        hear_brief(channel)
        ask(channel, 0, 1)
        room.training.cancel(ME, job.id)
        silent.wait(30)

    began = time.monotonic()
    room.dispatcher(ScriptedRunner(script)).run_one()
    assert time.monotonic() - began < 10
    silent.set()
    assert room.training.get(ME, job.id).state == "cancelled"


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_the_last_place_of_several_is_for_another_tenant(room: TrainingRoom, slots: int) -> None:
    ran: list[str] = []
    waits = [threading.Event() for _ in range(3)]
    began = [threading.Event() for _ in range(3)]

    def script(channel: SyncChannel) -> None:
        fields, _ = hear_brief(channel)
        number = len(ran)
        ran.append(fields["spec"]["into"])
        began[number].set()
        waits[number].wait(30)
        finish(channel, fields)

    for number in range(3):
        room.training.create(ME, training_spec(into=f"mine-{number}"))
    dispatcher = room.dispatcher(ScriptedRunner(script), slots=slots)
    mine = max(1, slots - 1)
    with ThreadPoolExecutor(3) as threads:
        running = []
        for number in range(mine):
            running.append(threads.submit(dispatcher.run_one))
            assert began[number].wait(30)
        if slots > 1:
            with writing(room.database) as begun:
                assert not dispatcher.run_one(), "the last place is not for who has another"
            assert begun == []
        for event in waits:
            event.set()
        assert all(one.result() for one in running)
    assert dispatcher.run_one(), "places that are free again are anybody's"
    assert sorted(ran) == ["mine-0", "mine-1", "mine-2"][: mine + 1]


def test_a_job_whose_server_died_is_ended_and_its_zombie_can_do_nothing(room: TrainingRoom) -> None:
    job = room.training.create(ME, training_spec())
    other = room.dispatcher(ScriptedRunner(honest))

    def script(channel: SyncChannel) -> None:
        fields, _ = hear_brief(channel)
        ask(channel, 0, 1)
        # Meanwhile this server was taken for dead, and another ended its job.
        room.clock.advance(3600)
        assert [other.end_lapsed() for _ in range(2)] == [0, 1]
        ask(channel, 1, 1)
        finish(channel, fields)

    room.dispatcher(ScriptedRunner(script)).run_one()
    ended = room.training.get(ME, job.id)
    assert ended.error is not None
    assert (ended.state, ended.error.code) == ("failed", "interrupted")
    assert (charged_steps(room), reserved(room), models_made(room)) == (1, 0.0, [])
    assert other.end_lapsed() == 0


def test_a_job_whose_holder_lives_outlasts_a_clock_that_steps_forward(room: TrainingRoom) -> None:
    job = room.training.create(ME, training_spec())
    other = room.dispatcher(ScriptedRunner(honest))

    def script(channel: SyncChannel) -> None:
        fields, _ = hear_brief(channel)
        # Seen before the holder has renewed its lease, and again when it has.
        room.clock.advance(3600)
        for number in range(8):
            assert other.end_lapsed() == 0
            ask(channel, number, 1)
        finish(channel, fields)

    room.dispatcher(ScriptedRunner(script)).run_one()
    assert room.training.get(ME, job.id).state == "succeeded"
    assert (charged_steps(room), reserved(room)) == (8, 0.0)


def test_a_zombie_that_has_every_weight_registers_no_version(
    room: TrainingRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = room.training.create(ME, training_spec())
    other = room.dispatcher(ScriptedRunner(honest))
    seal = room.sealer.seal

    def slow(*args: Any, **kwargs: Any) -> bytes:
        if kwargs["name"] == "graph":
            # The weights are sealed, the lease was renewed for the last time, and this server sleeps.
            room.clock.advance(3600)
            assert [other.end_lapsed() for _ in range(2)] == [0, 1]
        return seal(*args, **kwargs)

    monkeypatch.setattr(room.sealer, "seal", slow)
    room.dispatcher(ScriptedRunner(honest)).run_one()
    ended = room.training.get(ME, job.id)
    assert ended.error is not None
    assert (ended.state, ended.error.code, ended.result) == ("failed", "interrupted", None)
    assert (charged_steps(room), reserved(room), models_made(room)) == (8, 0.0, [])
    assert not any(event.action == Action.MODEL_CREATE for event in room.recorder.events)


def test_stopping_ends_a_running_job_as_interrupted(room: TrainingRoom) -> None:
    job = room.training.create(ME, training_spec())
    dispatchers: list[Any] = []

    def script(channel: SyncChannel) -> None:
        hear_brief(channel)
        ask(channel, 0, 1)
        dispatchers[0].close()
        ask(channel, 1, 1)

    dispatchers.append(room.dispatcher(ScriptedRunner(script)))
    dispatchers[0].run_one()
    ended = room.training.get(ME, job.id)
    assert ended.error is not None
    assert (ended.error.code, charged_steps(room), reserved(room)) == ("interrupted", 1, 0.0)


def test_rows_that_do_not_authenticate_train_nothing(room: TrainingRoom) -> None:
    room.training.create(ME, training_spec())
    room.datasets.delete(ME, "cells")
    assert room.dispatcher(ScriptedRunner(honest)).run_one()
    job = room.training.list(ME, PageRequest()).items[0]
    assert job.state == "failed"


def test_with_nothing_to_do_it_says_so_and_waits_for_nobody_to_write(room: TrainingRoom) -> None:
    with writing(room.database) as begun:
        assert not room.dispatcher(ScriptedRunner(honest)).run_one()
    assert begun == []


def test_a_lapsed_job_that_cannot_be_ended_keeps_no_other_from_it(
    room: TrainingRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [room.training.create(ME, training_spec(into=name)).id for name in ("first", "second")]
    with room.database.platform() as tx:
        for _ in ids:
            assert room.queue.claim(tx, "a server that died", lease_s=1) is not None
    room.clock.advance(3600)
    other, end = room.dispatcher(ScriptedRunner(honest)), room.job_endings.end

    def fails_for_the_first(lease: Lease, *rest: Any, **options: Any) -> bool:
        if lease.job.id == ids[0]:
            raise IntegrityError("the tenant's key does not open")
        return end(lease, *rest, **options)

    monkeypatch.setattr(room.job_endings, "end", fails_for_the_first)
    assert [other.end_lapsed() for _ in range(2)] == [0, 1]
    assert [room.training.get(ME, one).state for one in ids] == ["running", "failed"]
    monkeypatch.undo()
    assert other.end_lapsed() == 1


def test_the_end_of_a_job_is_recorded(room: TrainingRoom) -> None:
    room.run(dies)
    last = room.recorder.events[-1]
    assert (last.action, last.outcome, last.facts["state"], last.facts["error"]) == (
        "job:end",
        "failed",
        "failed",
        "worker_died",
    )


@pytest.mark.parametrize(("steps", "segment"), [(1, 1), (39, 1), (100, 2), (150, 3), (2000, 50), (10**6, 50)])
def test_segments_are_a_fortieth_and_at_most_fifty_steps(steps: int, segment: int) -> None:
    assert segment_steps(steps) == segment


def test_a_started_dispatcher_runs_what_is_queued(room: TrainingRoom) -> None:
    dispatcher = room.dispatcher(ScriptedRunner(honest))
    dispatcher.start()
    job = room.training.create(ME, training_spec())
    try:
        for _ in range(400):
            if room.training.get(ME, job.id).state == "succeeded":
                break
            threading.Event().wait(0.02)
    finally:
        dispatcher.close()
    assert room.training.get(ME, job.id).state == "succeeded"
    with room.database.platform(read_only=True) as tx:
        assert tx.first(sa.select(jobs.c.lease_until)) is not None
