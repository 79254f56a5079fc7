"""A job ends once and whole: its version, its budget, its log, its state and its entry, wherever its server dies."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

import pytest
import sqlalchemy as sa

from fakes.audit import CommittedLog
from fakes.core import ACME, GLOBEX, FakeClock, FakeEntropy, FakeRecorder, tenant_caller
from fakes.faulty_blobs import Crash
from fakes.rooms import (
    CELLS,
    OPEN_CELLS,
    ScriptedRunner,
    TrainingRoom,
    ask,
    cells,
    finish,
    hear_brief,
    honest,
    send_blob,
    send_checkpoint,
    training_spec,
    zeros,
)
from modelkeep_platform.core.decisions import Decision
from modelkeep_platform.core.errors import NotFoundError
from modelkeep_platform.core.ids import ObjectId
from modelkeep_platform.storage.blobs import LocalBlobs
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.pages import PageRequest
from modelkeep_platform.storage.tables.jobs import jobs
from modelkeep_platform.storage.tables.keys import wrapped_deks
from modelkeep_platform.storage.tables.models import model_versions
from modelkeep_platform.storage.tables.privacy import privacy_reservations
from modelkeep_platform.storage.tables.training import training_jobs
from modelkeep_platform.training import dialogue, heartbeat
from modelkeep_platform.training.dispatcher import Dispatcher
from modelkeep_platform.training.endings import LEFTOVERS_S
from modelkeep_platform.training.heartbeat import LEASE_S
from modelkeep_platform.training.values import TrainingJob
from modelkeep_platform.workers.channel_sync import SyncChannel
from modelkeep_platform.workers.frames import Frame

ME = tenant_caller()
STEPS = 2
SMALL = {"steps": STEPS, "privacy": {"epsilon": 0.2, "clip_norm": 1.0}}


@pytest.fixture
def room(database: Database, blobs: LocalBlobs, clock: FakeClock, entropy: FakeEntropy) -> TrainingRoom:
    """The training room, with a log that a rollback takes back."""
    log = cast("FakeRecorder", CommittedLog(database, clock))
    room = TrainingRoom(database, blobs, clock, entropy, log)
    room.add(CELLS, cells())
    room.add(OPEN_CELLS, cells())
    return room


def rows(room: TrainingRoom, table: sa.Table) -> list[dict[str, Any]]:
    with room.database.platform(read_only=True) as tx:
        return [dict(row) for row in tx.all(sa.select(table))]


def entries(room: TrainingRoom, job_id: str) -> list[tuple[str, str]]:
    """Return what the log says of a job and of what it made: action and outcome."""
    log = cast("CommittedLog", room.recorder)
    return [
        (entry["action"], entry["outcome"])
        for entry in log.entries("job:create", "job:end", "model:create")
        if job_id in (entry["resource"]["id"], entry["facts"].get("job"))
    ]


def check_whole(room: TrainingRoom, job: TrainingJob, *, into: str) -> str:
    """Check that a job that is over is so in every respect, or in none; return its state."""
    found = room.training.get(ME, job.id)
    versions = [row for row in rows(room, model_versions) if row["job_id"] == job.id]
    (reservation,) = [row for row in rows(room, privacy_reservations) if row["job_id"] == job.id]
    texts = [line.text for line in room.training.logs(ME, job.id, PageRequest()).items]
    keys = {row["object_id"] for row in rows(room, wrapped_deks)}
    if found.state == "succeeded":
        assert found.result is not None
        assert [(row["version"], row["state"]) for row in versions] == [(found.result.version, "ready")]
        assert (reservation["state"], reservation["charged_steps"]) == ("committed", STEPS)
        assert entries(room, job.id) == [("job:create", "done"), ("model:create", "done"), ("job:end", "done")]
        assert texts[-1] == f"trained; `{into}` version 1"
        assert b"".join(room.models.open_weights(ACME, ObjectId(versions[0]["model_id"]), 1)) == zeros()
        assert job.id not in keys
    else:
        assert (found.result, versions) == (None, [])
        assert reservation["state"] == "released"
        assert entries(room, job.id) == [
            ("job:create", "done"),
            ("job:end", "abandoned" if found.state == "cancelled" else "failed"),
        ]
        assert not any(text.startswith("trained") for text in texts)
        with pytest.raises(NotFoundError):
            room.models.get(ME, into)
    budget = room.datasets.budget(ME, "cells")
    assert budget.epsilon_reserved == 0.0
    return str(found.state)


class Dying:
    """Kills this thread at its n-th durable write: a commit or a blob, before or after.

    Args:
        room: whose writes.
    """

    def __init__(self, room: TrainingRoom, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 0
        self.last = ""
        self._thread = threading.current_thread()
        begin = Database.connection
        # A slow machine must not write a beat more in one run than in the one before: each write has its number.
        monkeypatch.setattr(heartbeat, "_EVERY_S", 1e9)
        monkeypatch.setattr(dialogue, "_WAIT_S", 60.0)

        @contextmanager
        def dying(database: Database, *, read_only: bool = False) -> Iterator[Any]:
            with begin(database, read_only=read_only) as connection:
                before = connection.connection.driver_connection.total_changes  # type: ignore[union-attr]
                yield connection
                wrote = connection.connection.driver_connection.total_changes != before  # type: ignore[union-attr]
                if wrote:
                    self.reach("before commit")
            if wrote:
                self.reach("after commit")

        monkeypatch.setattr(Database, "connection", dying)
        for name in ("put", "delete"):
            self._wrap(room.blobs, name, monkeypatch)

    def _wrap(self, blobs: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        real = getattr(blobs, name)

        def dying(*args: Any) -> Any:
            self.reach(f"before {name}")
            done = real(*args)
            self.reach(f"after {name}")
            return done

        monkeypatch.setattr(blobs, name, dying)

    def reach(self, point: str) -> None:
        if self.left == 0 or threading.current_thread() is not self._thread:
            return
        self.left -= 1
        if self.left == 0:
            self.last = point
            raise Crash


def test_wherever_its_server_dies_a_job_has_succeeded_with_its_version_or_neither(
    room: TrainingRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = Dying(room, monkeypatch)
    seen: list[tuple[str, str]] = []
    over = False
    for number in range(1, 200):
        into = f"m{number}"
        job = room.training.create(ME, training_spec(**SMALL, into=into, checkpoint_every=1))
        dying.left, dying.last = number, ""
        with suppress(Crash):
            room.dispatcher(ScriptedRunner(with_a_checkpoint)).run_one()
        over, dying.left = dying.left > 0, 0
        # Another server finds it when its lease is over, and clears what is left.
        room.clock.advance(LEASE_S + 1)
        other = room.dispatcher(ScriptedRunner(with_a_checkpoint))
        end_lapsed(other)
        if room.training.get(ME, job.id).state == "queued":
            assert other.run_one()
        state = check_whole(room, job, into=into)
        seen.append((dying.last, state))
        room.orphans.clear()
        check_bytes(room)
        if over:
            break
    assert over
    states = [state for _, state in seen]
    # One commit parts what is lost from what is there.
    turn = states.index("succeeded", 2)
    assert seen[turn - 1] == ("before commit", "failed")
    assert seen[turn][0] == "after commit"
    assert set(states[2:turn]) == {"failed"}
    assert set(states[turn:]) == {"succeeded"}


def test_wherever_a_server_dies_while_it_stops_a_job_goes_on_or_has_failed(
    room: TrainingRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = Dying(room, monkeypatch)
    seen: list[tuple[int, str]] = []
    over = False
    for number in range(1, 200):
        into = f"m{number}"
        job = room.training.create(ME, training_spec(**SMALL, into=into))
        dispatchers: list[Dispatcher] = []

        def stops(channel: SyncChannel, dispatchers: list[Dispatcher] = dispatchers) -> None:
            hear_brief(channel)
            ask(channel, 0, 1)
            dispatchers[0]._stopping.set()
            if ask(channel, 1, 1) == "stop":
                send_checkpoint(channel, 1)

        dispatchers.append(room.dispatcher(ScriptedRunner(stops)))
        dying.left = number
        with suppress(Crash):
            dispatchers[0].run_one()
        over, dying.left = dying.left > 0, 0
        room.clock.advance(LEASE_S + 1)
        other = room.dispatcher(ScriptedRunner(honest))
        end_lapsed(other)
        found = room.training.get(ME, job.id)
        if found.state == "queued":
            assert other.run_one()
        seen.append((found.progress.step, check_whole(room, job, into=into)))
        room.orphans.clear()
        check_bytes(room)
        if over:
            break
    assert over
    # Before it was claimed it waits, as it does with its checkpoint after the last commit; between them it is lost.
    assert seen[0] == (0, "succeeded")
    assert seen[-1] == seen[-2] == (1, "succeeded")
    assert {state for _, state in seen[2:-2]} == {"failed"}


def check_bytes(room: TrainingRoom) -> None:
    """Check that nothing lies there but what a row names: versions, datasets, and checkpoints of a day."""
    named = {(row["model_id"], str(row["version"])) for row in rows(room, model_versions)}
    kept = {row["object_id"] for row in rows(room, wrapped_deks)}
    for key in room.blobs.keys(ACME):
        _, object_id, version, *_ = key.split("/")
        assert object_id in kept, key
        assert not object_id.startswith("mdl") or (object_id, version) in named, key


def with_a_checkpoint(channel: SyncChannel) -> None:
    fields, _ = hear_brief(channel)
    ask(channel, 0, 1)
    send_checkpoint(channel, 1)
    ask(channel, 1, 1)
    finish(channel, fields)


def _die(*_args: object, **_kwargs: object) -> None:
    raise Crash


def end_lapsed(dispatcher: Dispatcher) -> int:
    """Let a dispatcher look twice for jobs whose lease is over; return how many it ended."""
    return dispatcher.end_lapsed() + dispatcher.end_lapsed()


def take_for_dead(room: TrainingRoom, *, ended: int) -> None:
    """Let the lease run out and another server look for lapsed jobs; it ends so many."""
    room.clock.advance(LEASE_S + 1)
    assert end_lapsed(room.dispatcher(ScriptedRunner(honest))) == ended


def run_one(room: TrainingRoom, script: Callable[[SyncChannel], None] = honest) -> None:
    assert room.dispatcher(ScriptedRunner(script)).run_one()


def after(room: TrainingRoom, monkeypatch: pytest.MonkeyPatch, name: str, then: Callable[[], object]) -> None:
    """Let `then` happen once, after a step of a job's way to its version."""
    owner, method = {
        "the last weights were stored": (room.trained, "store"),
        "its end was committed": (room.epoch, "refresh"),
    }[name]
    real = getattr(owner, method)

    def stepped(*args: Any, **kwargs: Any) -> Any:
        done = real(*args, **kwargs)
        monkeypatch.setattr(owner, method, real)
        then()
        return done

    monkeypatch.setattr(owner, method, stepped)


def test_a_cancel_before_the_commit_wins(room: TrainingRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    job = room.training.create(ME, training_spec(**SMALL))
    after(room, monkeypatch, "the last weights were stored", lambda: room.training.cancel(ME, job.id))
    run_one(room)
    assert check_whole(room, job, into="cells-model") == "cancelled"
    assert room.datasets.budget(ME, "cells").charges[0].steps == STEPS
    assert room.orphans.clear() == 0


def test_a_cancel_whose_worker_never_heard_of_it_wins(room: TrainingRoom) -> None:
    job = room.training.create(ME, training_spec(**SMALL))

    def script(channel: SyncChannel) -> None:
        hear_brief(channel)
        ask(channel, 0, 1)
        room.training.cancel(ME, job.id)  # and dies

    run_one(room, script)
    assert check_whole(room, job, into="cells-model") == "cancelled"
    assert room.training.get(ME, job.id).error is None


def test_a_cancel_after_the_commit_loses(room: TrainingRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    job = room.training.create(ME, training_spec(**SMALL))
    after(room, monkeypatch, "its end was committed", lambda: room.training.cancel(ME, job.id))
    run_one(room)
    assert check_whole(room, job, into="cells-model") == "succeeded"


def test_a_cancel_that_comes_while_the_end_is_written_waits_and_loses(
    room: TrainingRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = room.training.create(ME, training_spec(**SMALL))
    cancelling = threading.Thread(target=lambda: room.training.cancel(ME, job.id))
    publish = room.trained.publish

    def slow(*args: Any, **kwargs: Any) -> None:
        publish(*args, **kwargs)
        cancelling.start()
        cancelling.join(timeout=0.2)
        assert cancelling.is_alive()

    monkeypatch.setattr(room.trained, "publish", slow)
    run_one(room)
    cancelling.join(timeout=10)
    assert not cancelling.is_alive()
    assert check_whole(room, job, into="cells-model") == "succeeded"


def test_a_zombie_that_stored_every_weight_makes_nothing_visible(
    room: TrainingRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = room.training.create(ME, training_spec(**SMALL))
    after(room, monkeypatch, "the last weights were stored", lambda: take_for_dead(room, ended=1))
    run_one(room)
    assert check_whole(room, job, into="cells-model") == "failed"
    found = room.training.get(ME, job.id)
    assert found.error is not None
    assert found.error.code == "interrupted"
    room.orphans.clear()
    check_bytes(room)


def test_one_that_is_taken_for_dead_after_its_commit_has_succeeded(
    room: TrainingRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = room.training.create(ME, training_spec(**SMALL))
    after(room, monkeypatch, "its end was committed", lambda: take_for_dead(room, ended=0))
    run_one(room)
    assert check_whole(room, job, into="cells-model") == "succeeded"


@pytest.mark.parametrize(
    ("part", "method"),
    [
        ("trained", "publish"),
        ("ledger", "commit"),
        ("queue", "log"),
        ("queue", "finish"),
        ("sealer", "destroy_key"),
        ("recorder", "record"),
    ],
)
def test_an_end_that_fails_at_any_of_its_parts_takes_back_all_of_them(
    room: TrainingRoom, monkeypatch: pytest.MonkeyPatch, part: str, method: str
) -> None:
    job = room.training.create(ME, training_spec(**SMALL))
    renew, real = room.queue.renew, getattr(room, part)
    real_method = getattr(real, method)

    def failing(*args: Any, **kwargs: Any) -> Any:
        real_method(*args, **kwargs)
        monkeypatch.setattr(real, method, real_method)
        raise RuntimeError("it does not work")

    def renewing(tx: Any, lease: Any, *, lease_s: int) -> bool:
        # The end renews in the transaction of everything; from there on the part fails.
        if threading.current_thread() is threading.main_thread() and stored:
            monkeypatch.setattr(real, method, failing)
        return renew(tx, lease, lease_s=lease_s)

    stored: list[bool] = []
    after(room, monkeypatch, "the last weights were stored", lambda: stored.append(True))
    monkeypatch.setattr(room.queue, "renew", renewing)
    run_one(room)
    found = room.training.get(ME, job.id)
    assert found.error is not None
    assert (found.state, found.error.code) == ("failed", "internal")
    assert check_whole(room, job, into="cells-model") == "failed"
    assert room.datasets.budget(ME, "cells").charges[0].steps == STEPS


def test_a_run_whose_weights_are_refused_keeps_its_charges_and_commits_nothing(room: TrainingRoom) -> None:
    job = room.training.create(ME, training_spec(**SMALL))

    def script(channel: SyncChannel) -> None:
        fields, _ = hear_brief(channel)
        ask(channel, 0, 1)
        ask(channel, 1, 1)
        finish(channel, fields, zeros()[:-1])

    run_one(room, script)
    assert check_whole(room, job, into="cells-model") == "failed"
    (charge,) = room.datasets.budget(ME, "cells").charges
    assert (charge.steps, charge.reserved_steps, charge.state) == (STEPS, 0, "released")


@pytest.mark.parametrize("private", [True, False])
def test_a_worker_that_does_not_say_what_ran_or_says_it_unasked_makes_nothing(
    room: TrainingRoom, private: bool
) -> None:
    changes = SMALL if private else {"steps": STEPS, "dataset": "open", "privacy": None}
    job = room.training.create(ME, training_spec(**changes))
    ran = {"steps": STEPS, "noise_multiplier": 1.0, "sample_rate": 0.5, "clip_norm": 1.0}

    def script(channel: SyncChannel) -> None:
        hear_brief(channel)
        ask(channel, 0, 1)
        ask(channel, 1, 1)
        channel.send(Frame(kind="done", fields={} if private else ran))
        send_blob(channel, zeros())

    run_one(room, script)
    found = room.training.get(ME, job.id)
    assert found.error is not None
    assert (found.error.code, found.result) == ("worker_protocol", None)
    with pytest.raises(NotFoundError):
        room.models.get(ME, "cells-model")


def test_a_job_whose_reservation_was_taken_from_its_row_does_not_run_unpaid(room: TrainingRoom) -> None:
    job = room.training.create(ME, training_spec(**SMALL))
    with room.database.platform() as tx:
        tx.execute(sa.update(training_jobs).values(reservation_id=None))
    run_one(room)
    found = room.training.get(ME, job.id)
    assert found.error is not None
    assert (found.error.code, found.progress.step) == ("job_damaged", 0)


def test_a_job_on_another_tenants_dataset_commits_in_that_tenants_ledger(
    room: TrainingRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = tenant_caller(GLOBEX)
    require = room.authorizer.require

    def granted(caller: Any, action: Any, ref: Any, attributes: Any = None) -> Any:
        if ref.owner == ACME and caller.tenant == GLOBEX:
            return Decision(allow=True, action=action, ref=ref, caller_tenant=GLOBEX)
        return require(caller, action, ref, attributes)

    monkeypatch.setattr(room.authorizer, "require", granted)
    monkeypatch.setattr(room.authorizer, "allows", lambda *_: True)
    job = room.training.create(guest, training_spec(**SMALL, dataset="acme~cells"))
    run_one(room)
    assert room.training.get(guest, job.id).state == "succeeded"
    (reservation,) = rows(room, privacy_reservations)
    assert (reservation["tenant_id"], reservation["state"]) == (ACME, "committed")
    (version,) = rows(room, model_versions)
    assert (version["tenant_id"], version["state"]) == (GLOBEX, "ready")


def test_a_queued_job_that_is_cancelled_ends_in_the_log_once_and_has_no_key(room: TrainingRoom) -> None:
    job = room.training.create(ME, training_spec(**SMALL))
    for _ in range(2):
        room.training.cancel(ME, job.id)
    assert check_whole(room, job, into="cells-model") == "cancelled"
    assert job.id not in {row["object_id"] for row in rows(room, wrapped_deks)}


def dies_after_a_checkpoint(channel: SyncChannel) -> None:
    hear_brief(channel)
    ask(channel, 0, 1)
    send_checkpoint(channel, 1)


def test_a_checkpoint_stays_a_day_and_goes_with_its_key_though_its_server_dies_over_it(
    room: TrainingRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = room.training.create(ME, training_spec(**SMALL, checkpoint_every=1))
    run_one(room, dies_after_a_checkpoint)
    folder = f"{ACME}/{job.id}"
    assert room.orphans.clear() == room.job_endings.clear_leftovers() == 0
    assert len(list(room.blobs.keys(folder))) == 2
    room.clock.advance(LEFTOVERS_S + 1)
    with monkeypatch.context() as patched:
        patched.setattr(room.artifacts, "delete", _die)
        with pytest.raises(Crash):
            room.job_endings.clear_leftovers()
    assert room.job_endings.clear_leftovers() == 0
    assert len(list(room.blobs.keys(folder))) == 2
    assert room.orphans.clear() == 1
    assert list(room.blobs.keys(folder)) == []


def test_what_a_job_that_a_restore_ended_had_begun_to_make_is_dropped_a_day_later(
    room: TrainingRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = room.training.create(ME, training_spec(**SMALL))
    with monkeypatch.context() as patched:
        patched.setattr(room.job_endings, "succeed", _die)
        with pytest.raises(Crash):
            run_one(room)
    with room.database.platform() as tx:
        tx.execute(sa.update(jobs).values(state="failed", finished_at=room.clock.now_s(), fence=jobs.c.fence + 1))
    assert [row["state"] for row in rows(room, model_versions)] == ["pending"]
    room.clock.advance(LEFTOVERS_S + 1)
    assert room.job_endings.clear_leftovers() == 1
    assert rows(room, model_versions) == []
    room.orphans.clear()
    check_bytes(room)
    assert job.id not in {row["object_id"] for row in rows(room, wrapped_deks)}
