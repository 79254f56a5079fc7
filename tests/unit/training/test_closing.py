"""A dispatcher closes in bounded time: what runs ends as interrupted, is charged what it ran and gets the rest back."""

import base64
import threading
import time
from collections.abc import Callable

import pytest

from fakes.core import tenant_caller
from fakes.rooms import ScriptedRunner, TrainingRoom, ask, hear_brief, honest, training_spec
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.errors import MalformedError
from modelkeep_platform.jobs.queue import JobState
from modelkeep_platform.storage.pages import PageRequest
from modelkeep_platform.training.dispatcher import Dispatcher
from modelkeep_platform.training.run import fault_type
from modelkeep_platform.training.values import TrainingJob
from modelkeep_platform.workers.channel_sync import SyncChannel
from modelkeep_platform.workers.errors import WorkerError
from modelkeep_platform.workers.frames import Frame

ME = tenant_caller()
Script = Callable[[SyncChannel], None]


def closed_while(room: TrainingRoom, script: Script, reached: threading.Event, *, limit_s: float) -> TrainingJob:
    """Run a job in a slot, close when the script has reached its point, and return how the job ended."""
    job = room.training.create(ME, training_spec())
    runner = ScriptedRunner(script)
    dispatcher = room.dispatcher(runner)
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


def test_a_job_between_two_segments_is_told_at_once(room: TrainingRoom) -> None:
    reached = threading.Event()

    def script(channel: SyncChannel) -> None:
        hear_brief(channel)
        ask(channel, 0, 1)
        reached.set()
        channel.receive()

    interrupted(room, closed_while(room, script, reached, limit_s=5), 1)


def test_a_worker_that_keeps_its_slot_is_killed(room: TrainingRoom) -> None:
    reached = threading.Event()

    def script(channel: SyncChannel) -> None:
        hear_brief(channel)
        ask(channel, 0, 1)
        channel._connection.sendall(b"\x00\x00\x00\x20half of a frame")
        reached.set()
        channel.receive()

    interrupted(room, closed_while(room, script, reached, limit_s=0.05), 1)


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
def test_a_forged_cursor_of_a_log_begins_at_its_first_line(room: TrainingRoom, key: str) -> None:
    job = room.training.create(ME, training_spec())
    room.dispatcher(ScriptedRunner(honest)).run_one()
    assert len(room.training.logs(ME, job.id, PageRequest(cursor=_cursor(key))).items) == 2


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
