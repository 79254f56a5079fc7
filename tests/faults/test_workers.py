"""SIGKILL of workers, alone and together with their server: what was charged is what was let go, and all goes on."""

import os
import signal
from dataclasses import replace

import pytest

from faults.harness import CHEAP, FULL, SERVING, TRAINING, World, strike, sweep
from modelkeep import Client
from modelkeep.errors import ConnectionFailedError, NotFoundError, ServerError
from services.house import job, wait_until
from services.points import STEPS
from services.processes import alive

pytestmark = pytest.mark.e2e

WORK = {**CHEAP, "steps": 6, "checkpoint_every": 3}

ALONE = [
    pytest.param("before send ready", 1, id="before its first frame"),
    pytest.param("before send segment", 3, id="between segments"),
    pytest.param("before send blob", 2, id="while a checkpoint streams"),
    pytest.param("before send blob", 8, id="while the weights stream"),
    pytest.param("after send done", 1, id="after it is done"),
]
BOTH = [ALONE[1], ALONE[3]]


def train(world: World, n: int, name: str, started: dict[int, str]) -> None:
    world.zygote.page[STEPS] = 0
    started[n] = world.app.jobs.create(job(into=name, **WORK)).id
    wait_until(
        lambda: world.zygote.page.reached or world.app.jobs.get(started[n]).state not in ("queued", "running"),
        "the job to end",
    )


def check_job(world: World, job_id: str, name: str) -> None:
    """A job whose worker died is failed; it made nothing, and paid for what it was let run."""
    assert world.ended(job_id) == "failed"
    world.check_ledger()
    world.check_steps(job_id)
    with pytest.raises(NotFoundError):
        world.app.models.get(name)


@pytest.mark.parametrize(("moment", "n"), ALONE)
def test_a_training_worker_that_dies_fails_its_job_alone(world: World, moment: str, n: int) -> None:
    started: dict[int, str] = {}
    name = f"{moment}{n}".replace(" ", "-")
    death = strike(world, lambda at: train(world, at, name, started), n, replace(TRAINING, moment=moment))
    assert death.point == moment
    check_job(world, started[n], name)
    error = world.app.jobs.get(started[n]).error
    assert error is not None
    assert error.code == "worker_died"


@pytest.mark.parametrize(("moment", "n"), BOTH)
def test_a_server_that_dies_with_its_training_worker_ends_the_job(world: World, moment: str, n: int) -> None:
    started: dict[int, str] = {}
    name = f"both-{moment}{n}".replace(" ", "-")
    victim = replace(TRAINING, moment=moment, with_server=True)
    death = strike(world, lambda at: train(world, at, name, started), n, victim)
    assert death.point == moment
    check_job(world, started[n], name)
    error = world.app.jobs.get(started[n]).error
    assert error is not None
    assert error.code == "interrupted"


@pytest.mark.skipif(not FULL, reason="every moment of a worker; set MODELKEEP_FAULTS=full")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("with_server", [False, True], ids=["the worker", "both"])
def test_every_moment_of_a_training_worker(world: World, with_server: bool) -> None:
    started: dict[int, str] = {}
    names = "both" if with_server else "alone"
    victim = replace(TRAINING, with_server=with_server)
    for death in sweep(world, lambda n: train(world, n, f"{names}{n}", started), victim=victim):
        if not death.point:
            assert world.ended(started[death.n]) == "succeeded"
            world.check_steps(started[death.n])
        elif world.ended(started[death.n]) == "failed":
            check_job(world, started[death.n], f"{names}{death.n}")
        else:
            # Its last frame was on its way: the version is whole.
            assert death.point == "after send blob"
            assert world.app.models.download(f"{names}{death.n}").weights


def predict(world: World, client: Client | None = None) -> None:
    assert (client or world.once).predict("model", [[1.0, 1.0]]) == [[3.5, 6.5]]


def fresh(world: World) -> None:
    """Let the next prediction start a worker."""
    for pid in world.zygote.workers("serving"):
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda pid=pid: not alive(pid), "the serving worker to end")


def test_a_serving_worker_that_dies_fails_its_predictions_and_is_started_again(world: World) -> None:
    fresh(world)
    # Each that dies is followed by one that is started again, and dies later.
    for moment, n, with_server in (
        ("before send ready", 1, False),
        ("receive load", 2, False),  # while a model loads
        ("receive infer", 1, False),  # while a batch computes
        ("receive infer", 1, True),
    ):
        world.zygote.arm(n, replace(SERVING, moment=moment, with_server=with_server))
        with pytest.raises((ServerError, ConnectionFailedError)) as caught:
            predict(world)
        assert world.zygote.page.reached
        if with_server:
            assert world.zygote.ended() == signal.SIGKILL
            world.restart()
        else:
            assert isinstance(caught.value, ServerError)
            assert caught.value.code == "worker_died"
    predict(world, world.app)
    world.check()


@pytest.mark.skipif(not FULL, reason="every moment of a worker; set MODELKEEP_FAULTS=full")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("with_server", [False, True], ids=["the worker", "both"])
def test_every_moment_of_a_serving_worker(world: World, with_server: bool) -> None:
    victim = replace(SERVING, with_server=with_server)
    for _death in sweep(world, lambda _n: predict(world), victim=victim, prepare=lambda _n: fresh(world)):
        predict(world, world.app)  # one that dies at this very instant is asked again


def stopped(world: World, kind: str) -> int:
    """Stop the one worker of a kind: it lives, holds its channel, and says nothing."""
    wait_until(lambda: world.zygote.workers(kind), f"a {kind} worker")
    (pid,) = world.zygote.workers(kind)
    os.kill(pid, signal.SIGSTOP)
    return pid


def test_a_serving_worker_that_hangs_is_ended_and_the_next_prediction_has_another(world: World) -> None:
    predict(world, world.app)
    pid = stopped(world, "serving")
    with pytest.raises(ServerError) as caught:
        predict(world)
    assert caught.value.code in {"deadline_exceeded", "worker_timeout", "worker_died"}
    wait_until(lambda: not alive(pid), "the worker that hangs to be ended")
    predict(world, world.app)
    world.check()


def test_a_job_whose_training_worker_hangs_keeps_its_lease_and_is_cancelled(world: World) -> None:
    long = {**CHEAP, "steps": 400}
    made = world.app.jobs.create(job(into="hangs", **long))
    wait_until(lambda: world.app.jobs.get(made.id).progress.step > 0, "the job to run")
    pid = stopped(world, "training")
    leased = "SELECT lease_until FROM jobs WHERE id = ?"
    before = world.sql(leased, made.id)
    wait_until(lambda: world.sql(leased, made.id) > before, "the lease to be renewed")
    assert world.app.jobs.get(made.id).state == "running"
    world.app.jobs.cancel(made.id)
    assert world.ended(made.id) == "cancelled"
    wait_until(lambda: not alive(pid), "the worker that hangs to be ended")
    world.check_ledger()
    with pytest.raises(NotFoundError):
        world.app.models.get("hangs")
    # Its place is free again.
    assert world.ended(world.app.jobs.create(job(into="after-one-that-hung", **CHEAP)).id) == "succeeded"
    world.check()
