"""A dispatcher closes in bounded time: what runs waits again with a checkpoint, or is ended as interrupted.

Whatever it comes to, a job is charged what it ran, each step once.
"""

import base64
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from fakes.core import tenant_caller
from fakes.rooms import (
    ScriptedRunner,
    TrainingRoom,
    ask,
    finish,
    hear_all,
    hear_brief,
    honest,
    send_blob,
    send_checkpoint,
    training_spec,
    zeros,
)
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.errors import MalformedError
from modelkeep_platform.core.ids import ObjectId
from modelkeep_platform.core.sealing import Purpose
from modelkeep_platform.jobs.queue import JobState
from modelkeep_platform.storage.pages import PageRequest
from modelkeep_platform.training.dispatcher import Dispatcher
from modelkeep_platform.training.faults import fault_type
from modelkeep_platform.training.values import TrainingJob
from modelkeep_platform.workers.channel_sync import SyncChannel
from modelkeep_platform.workers.errors import WorkerError
from modelkeep_platform.workers.frames import Frame

ME = tenant_caller()
Script = Callable[[SyncChannel], None]


class Stopping:
    """Whether the newest dispatcher was told to stop."""

    def __init__(self) -> None:
        self.dispatcher: Dispatcher | None = None

    def wait(self) -> None:
        assert self.dispatcher is not None
        assert self.dispatcher._stopping.wait(10)


def stop_after(
    room: TrainingRoom, begin: int, steps: int, answer: Callable[[SyncChannel], object] | None = None
) -> None:
    """Run `steps` segments from `begin` on, stop, and let the worker answer: with its checkpoint, or otherwise."""
    dispatchers: list[Dispatcher] = []

    def script(channel: SyncChannel) -> None:
        hear_brief(channel)
        for number in range(begin, begin + steps):
            assert ask(channel, number, 1) == "go"
        dispatchers[0]._stopping.set()
        assert ask(channel, begin + steps, 1) == "stop"
        if answer is None:
            send_checkpoint(channel, begin + steps)
        else:
            answer(channel)

    dispatchers.append(room.dispatcher(ScriptedRunner(script)))
    assert dispatchers[0].run_one()


def kept(room: TrainingRoom, job: TrainingJob, step: int) -> Iterator[bytes]:
    return room.artifacts.read(ME.tenant, ObjectId(job.id), step, Purpose.CHECKPOINT)


def closed_while(
    room: TrainingRoom, script: Script, reached: threading.Event, *, limit_s: float, stopping: Stopping | None = None
) -> TrainingJob:
    """Run a job in a slot, close when the script has reached its point, and return how the job ended."""
    job = room.training.create(ME, training_spec())
    runner = ScriptedRunner(script)
    dispatcher = room.dispatcher(runner)
    if stopping is not None:
        stopping.dispatcher = dispatcher
    dispatcher.start()
    assert reached.wait(10)
    began = time.monotonic()
    dispatcher.close(limit_s=limit_s)
    assert time.monotonic() - began < 8
    assert [worker.killed for worker in runner.started] == [True]
    return room.training.get(ME, job.id)


def interrupted(room: TrainingRoom, job: TrainingJob, steps: int) -> None:
    assert job.error is not None
    assert (job.state, job.error.code) == ("failed", "interrupted")
    budget = room.datasets.budget(ME, "cells")
    assert (sum(charge.steps for charge in budget.charges), budget.epsilon_reserved) == (steps, 0.0)


def waits(room: TrainingRoom, job: TrainingJob, steps: int) -> None:
    assert (job.state, job.error, job.finished_at, job.progress.step) == ("queued", None, None, steps)
    budget = room.datasets.budget(ME, "cells")
    assert sum(charge.steps for charge in budget.charges) == steps
    assert budget.epsilon_reserved > 0.0


def texts(room: TrainingRoom, job: TrainingJob) -> list[str]:
    return [line.text for line in room.training.logs(ME, job.id, PageRequest()).items]


def test_a_job_waits_again_after_its_segment_and_goes_on_there(room: TrainingRoom) -> None:
    reached = threading.Event()
    answers: list[str] = []

    def script(channel: SyncChannel) -> None:
        hear_brief(channel)
        answers.extend(ask(channel, number, 1) for number in range(3))
        reached.set()
        stopping.wait()
        answers.append(ask(channel, 3, 1))
        send_checkpoint(channel, 3)

    stopping = Stopping()
    job = closed_while(room, script, reached, limit_s=5, stopping=stopping)
    waits(room, job, 3)
    assert answers == ["go", "go", "go", "stop"]
    assert b"".join(kept(room, job, 3)) == zeros("weights/")
    heard: list[tuple[int, bytes]] = []

    def goes_on(channel: SyncChannel) -> None:
        fields, sent = hear_all(channel)
        heard.append((fields["begin"], sent["state"]))
        for number in range(3, 8):
            ask(channel, number, 1)
        finish(channel, fields)

    assert room.dispatcher(ScriptedRunner(goes_on)).run_one()
    ended = room.training.get(ME, job.id)
    assert (ended.state, ended.progress.step, ended.started_at) == ("succeeded", 8, job.started_at)
    assert heard == [(3, zeros("weights/"))]
    assert [(charge.steps, charge.state) for charge in room.datasets.budget(ME, "cells").charges] == [(8, "committed")]
    assert texts(room, job)[1:] == [
        "checkpoint at step 3, sealed",
        "training goes on after step 3",
        "trained; `cells-model` version 1",
    ]
    assert not list(room.blobs.keys(f"{ME.tenant}/{job.id}"))


def test_a_job_that_was_only_claimed_waits_again_as_it_was(room: TrainingRoom) -> None:
    reached = threading.Event()

    def script(channel: SyncChannel) -> None:
        hear_brief(channel)
        reached.set()
        channel.receive()

    job = closed_while(room, script, reached, limit_s=5)
    waits(room, job, 0)
    assert not list(room.blobs.keys(f"{ME.tenant}/{job.id}"))
    assert room.dispatcher(ScriptedRunner(honest)).run_one()
    assert room.training.get(ME, job.id).state == "succeeded"


def test_a_job_is_put_back_more_than_once_and_keeps_the_newest_checkpoint(room: TrainingRoom) -> None:
    job = room.training.create(ME, training_spec())
    for begin in (0, 2, 4):
        stop_after(room, begin, 2)
        waits(room, room.training.get(ME, job.id), begin + 2)
        assert b"".join(kept(room, job, begin + 2)) == zeros("weights/")
        assert len(list(room.blobs.keys(f"{ME.tenant}/{job.id}"))) == 2
    assert room.dispatcher(ScriptedRunner(honest)).run_one()
    assert room.training.get(ME, job.id).state == "succeeded"
    assert [charge.steps for charge in room.datasets.budget(ME, "cells").charges] == [8]


def test_a_job_that_waits_again_can_be_cancelled_and_leaves_nothing(room: TrainingRoom) -> None:
    job = room.training.create(ME, training_spec())
    stop_after(room, 0, 2)
    assert room.training.cancel(ME, job.id).state == "cancelled"
    budget = room.datasets.budget(ME, "cells")
    assert (sum(charge.steps for charge in budget.charges), budget.epsilon_reserved) == (2, 0.0)
    room.orphans.clear()
    assert not list(room.blobs.keys(f"{ME.tenant}/{job.id}"))
    assert not room.dispatcher(ScriptedRunner(honest)).run_one()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(lambda channel: send_blob(channel, zeros(), step=2), id="weights alone"),
        pytest.param(lambda channel: send_checkpoint(channel, 1), id="of another step"),
        pytest.param(lambda channel: send_checkpoint(channel, 3), id="of a step that was not charged"),
        pytest.param(lambda channel: ask(channel, 2, 1), id="the segment again"),
        pytest.param(lambda channel: finish(channel, {"plan": None}), id="a result"),
    ],
)
def test_a_worker_that_answers_a_stop_with_anything_else_fails_its_job(
    room: TrainingRoom, answer: Callable[[SyncChannel], object]
) -> None:
    job = room.training.create(ME, training_spec())
    stop_after(room, 0, 2, answer)
    ended = room.training.get(ME, job.id)
    assert ended.state == "failed"
    budget = room.datasets.budget(ME, "cells")
    assert (sum(charge.steps for charge in budget.charges), budget.epsilon_reserved) == (2, 0.0)


def test_a_checkpoint_that_was_changed_trains_nothing(room: TrainingRoom) -> None:
    job = room.training.create(ME, training_spec())
    stop_after(room, 0, 2)
    for key in room.blobs.keys(f"{ME.tenant}/{job.id}"):
        room.blobs.put(key, room.blobs.get(key)[:-1] + b"x")
    assert room.dispatcher(ScriptedRunner(honest)).run_one()
    ended = room.training.get(ME, job.id)
    assert ended.error is not None
    assert (ended.state, ended.error.code) == ("failed", "integrity")
    budget = room.datasets.budget(ME, "cells")
    assert (sum(charge.steps for charge in budget.charges), budget.epsilon_reserved) == (2, 0.0)


def test_what_ran_before_a_stop_counts_when_the_budget_is_closed(room: TrainingRoom) -> None:
    job = room.training.create(ME, training_spec())
    stop_after(room, 0, 2)

    def lies(channel: SyncChannel) -> None:
        fields, _ = hear_all(channel)
        for number in range(2, 8):
            ask(channel, number, 1)
        # Eight steps of its own beside the two of another worker: more than were charged.
        finish(channel, fields, steps=8)

    room.dispatcher(ScriptedRunner(lies)).run_one()
    ended = room.training.get(ME, job.id)
    assert ended.error is not None
    assert ended.error.code == "ran_more_than_charged"


def test_a_long_segment_is_not_waited_for_for_ever(room: TrainingRoom) -> None:
    reached = threading.Event()

    def script(channel: SyncChannel) -> None:
        hear_brief(channel)
        ask(channel, 0, 1)
        reached.set()
        channel.receive()

    interrupted(room, closed_while(room, script, reached, limit_s=1), 1)


def test_a_worker_that_keeps_its_slot_is_killed(room: TrainingRoom) -> None:
    reached = threading.Event()

    def script(channel: SyncChannel) -> None:
        hear_brief(channel)
        ask(channel, 0, 1)
        channel._connection.sendall(b"\x00\x00\x00\x20half of a frame")
        reached.set()
        channel.receive()

    interrupted(room, closed_while(room, script, reached, limit_s=0.5), 1)


def test_a_closed_dispatcher_claims_nothing_more(room: TrainingRoom) -> None:
    dispatcher = room.dispatcher(ScriptedRunner(honest))
    dispatcher.close()
    dispatcher.start()
    job = room.training.create(ME, training_spec())
    dispatcher.close()
    assert room.training.get(ME, job.id).state == JobState.QUEUED


def test_a_failure_of_its_own_is_not_called_an_interruption(room: TrainingRoom) -> None:
    dispatchers: list[Dispatcher] = []

    def script(channel: SyncChannel) -> None:
        hear_brief(channel)
        channel.send(Frame(kind="fault", fields={"code": "diverged"}))
        dispatchers[0]._stopping.set()

    job = room.training.create(ME, training_spec())
    dispatchers.append(room.dispatcher(ScriptedRunner(script)))
    dispatchers[0].run_one()
    ended = room.training.get(ME, job.id)
    assert ended.error is not None
    assert ended.error.code == "diverged"


def test_a_worker_that_cannot_be_started_fails_the_job_and_returns_everything(room: TrainingRoom) -> None:
    class Broken:
        def start(self) -> object:
            raise WorkerError("a worker process could not be started; try again later", code="worker_start")

    job = room.training.create(ME, training_spec())
    room.dispatcher(Broken()).run_one()  # type: ignore[arg-type]
    ended = room.training.get(ME, job.id)
    assert ended.error is not None
    assert ended.error.code == "worker_start"
    assert room.datasets.budget(ME, "cells").epsilon_reserved == 0.0


def test_a_job_is_cancelled_once_and_its_reservation_returns_once(room: TrainingRoom) -> None:
    job = room.training.create(ME, training_spec())
    for _ in range(2):
        assert room.training.cancel(ME, job.id).state == "cancelled"
    assert room.datasets.budget(ME, "cells").epsilon_reserved == 0.0


def test_a_cancel_that_comes_second_releases_nothing_again(room: TrainingRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    job = room.training.create(ME, training_spec())
    read = room.training._require(ME, Action.JOB_CANCEL, job.id)
    room.training.cancel(ME, job.id)
    # Both had read the job while it was queued.
    with monkeypatch.context() as patched:
        patched.setattr(room.training, "_require", lambda *_: read)
        room.training.cancel(ME, job.id)
    assert room.datasets.budget(ME, "cells").epsilon_reserved == 0.0


def _cursor(key: str) -> str:
    return base64.urlsafe_b64encode(key.encode()).decode()


@pytest.mark.parametrize("key", ["²", "9" * 40, "-1", "x"])
def test_a_forged_cursor_of_a_log_is_malformed(room: TrainingRoom, key: str) -> None:
    job = room.training.create(ME, training_spec())
    room.dispatcher(ScriptedRunner(honest)).run_one()
    assert len(room.training.logs(ME, job.id, PageRequest()).items) == 2
    with pytest.raises(MalformedError):
        room.training.logs(ME, job.id, PageRequest(cursor=_cursor(key)))


def test_a_forged_cursor_of_the_list_is_malformed(room: TrainingRoom) -> None:
    with pytest.raises(MalformedError):
        room.training.list(ME, PageRequest(cursor=_cursor("x/y")))


@pytest.mark.parametrize(
    ("said", "logged"),
    [
        ("FileNotFoundError", "FileNotFoundError"),
        ("KeyError", "KeyError"),
        ("row 98765", "no type of Python's own"),
        ("print", "no type of Python's own"),
        ("int", "no type of Python's own"),
        (7, "no type of Python's own"),
    ],
)
def test_the_operators_log_names_pythons_own_types_and_no_word_of_a_worker(said: object, logged: str) -> None:
    assert fault_type(Frame(kind="fault", fields={"type": said})) == logged
