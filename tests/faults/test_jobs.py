"""SIGKILL of the server with its training worker, and of workers alone: no epsilon is lost or spent twice."""

import os
import re
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from faults.harness import JOBS, REQUESTS, World, sweep
from modelkeep.errors import ModelkeepError, NotFoundError
from services.house import job, wait_until

pytestmark = pytest.mark.e2e

SMALL = {"privacy": {"epsilon": 0.2, "clip_norm": 1.0}}


def charged(world: World) -> int:
    """Return the steps that the charges add up to."""
    return int(world.sql("SELECT coalesce(sum(steps), 0) FROM privacy_charges")[0][0])


def consistent(world: World) -> None:
    """Check the ledger against its own charges: what ended holds nothing back, every charge counts once."""
    rows = world.sql("SELECT state, charged_steps, steps, reservation_id FROM privacy_reservations")
    for state, steps, most, reservation in rows:
        ((summed,),) = world.sql(
            "SELECT coalesce(sum(steps), 0) FROM privacy_charges WHERE reservation_id = ?", reservation
        )
        assert summed == steps <= most, (state, reservation)
    budget = world.app.budgets.get("rows")
    assert budget.epsilon_spent <= budget.epsilon


def ended(world: World, job_id: str) -> str:
    wait_until(
        lambda: world.app.jobs.get(job_id).state not in ("queued", "running"), "the job to be ended", timeout_s=90
    )
    return str(world.app.jobs.get(job_id).state)


def workers(pid: int, module: str) -> list[int]:
    """Return the workers that a server started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(re.sub(r"\(.*\)", "", status.read_text()).split()[2])
            if parent == pid and module in (status.parent / "cmdline").read_text():
                found.append(int(status.parent.name))
        except OSError:
            continue  # it ended while it was read
    return found


def test_a_job_is_declared_with_its_reservation_or_not_at_all(world: World) -> None:
    def act(n: int) -> None:
        world.once.jobs.create(job(into=f"c{n}", dataset="rows", **SMALL, steps=1))

    for death in sweep(world, act, threads=REQUESTS, step=2):
        found = [one for one in world.app.jobs.list() if one.into == f"c{death.n}"]
        assert found or not death.answered, death
        for one in found:
            if one.state in ("queued", "running"):
                world.app.jobs.cancel(one.id)
            ended(world, one.id)
        consistent(world)


def test_a_job_that_dies_with_its_server_keeps_what_it_charged_and_gives_back_the_rest(world: World) -> None:
    started: dict[int, str] = {}
    spent: dict[int, float] = {}

    def prepare(n: int) -> None:
        spent[n] = world.app.budgets.get("rows").epsilon_spent

    def act(n: int) -> None:
        started[n] = world.app.jobs.create(job(into=f"j{n}", **SMALL)).id
        wait_until(
            lambda: world.zygote.reached or world.app.jobs.get(started[n]).state not in ("queued", "running"),
            "the job to end",
            timeout_s=90,
        )

    for death in sweep(world, act, threads=JOBS, prepare=prepare, step=18):
        if death.n not in started:
            continue
        state = ended(world, started[death.n])
        after = world.app.budgets.get("rows").epsilon_spent
        assert after >= spent[death.n]
        consistent(world)
        ((left,),) = world.sql("SELECT count(*) FROM privacy_reservations WHERE state = 'open'")
        assert left == 0, death
        if state == "succeeded":
            assert world.app.models.download(f"j{death.n}").weights
        else:
            # Killed between the version and the end of the job, it is failed and its version whole.
            with suppress(NotFoundError):
                assert world.app.models.download(f"j{death.n}").weights


def test_a_training_worker_that_is_killed_fails_its_job_alone(world: World) -> None:
    one = world.app.jobs.create(job(dataset="rows", into="killed", **SMALL, steps=50))
    wait_until(lambda: workers(world.zygote.pid, "training.worker"), "the worker", timeout_s=60)
    for pid in workers(world.zygote.pid, "training.worker"):
        os.kill(pid, signal.SIGKILL)
    assert ended(world, one.id) == "failed"
    consistent(world)
    world.check()


def test_a_serving_worker_that_is_killed_is_started_again(world: World) -> None:
    assert world.app.predict("model", [[1.0, 1.0]]) == [[3.5, 6.5]]
    for _ in range(2):
        (pid,) = workers(world.zygote.pid, "serving.worker")
        os.kill(pid, signal.SIGKILL)

        def again() -> bool:
            try:
                return bool(world.app.predict("model", [[1.0, 1.0]]) == [[3.5, 6.5]])
            except ModelkeepError:
                return False

        wait_until(again, "a new worker", timeout_s=60)
