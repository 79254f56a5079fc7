"""SIGKILL of the server while jobs are declared, run and cancelled: no epsilon is lost or spent twice."""

import pytest

from faults.harness import CHEAP, EITHER, JOBS, World, sweep
from modelkeep.errors import NotFoundError
from services.house import job, wait_until
from services.points import HELD, STEPS

pytestmark = pytest.mark.e2e

LONG = {**CHEAP, "steps": 20_000, "sample_rate": 0.02}


def until_ended(world: World, job_id: str) -> None:
    """Wait until a job is ended or its server is dead."""
    wait_until(
        lambda: world.zygote.page.reached or world.app.jobs.get(job_id).state not in ("queued", "running"),
        "the job to end",
    )


def test_a_job_is_declared_with_its_reservation_or_not_at_all(world: World) -> None:
    def act(n: int) -> None:
        world.once.jobs.create(job(into=f"c{n}", dataset="rows", **CHEAP, steps=1))

    for death in sweep(world, act, step=2):
        found = [one for one in world.app.jobs.list() if one.into == f"c{death.n}"]
        assert found or not death.answered, death
        for one in found:
            if one.state in ("queued", "running"):
                world.app.jobs.cancel(one.id)
            world.ended(one.id)
        world.check_ledger()


def test_a_job_that_dies_with_its_server_keeps_what_it_charged_and_gives_back_the_rest(world: World) -> None:
    started: dict[int, str] = {}
    spent: dict[int, float] = {}

    def prepare(n: int) -> None:
        world.zygote.page[STEPS] = 0
        spent[n] = world.app.budgets.get("rows").epsilon_spent

    def act(n: int) -> None:
        started[n] = world.app.jobs.create(job(into=f"j{n}", **CHEAP, checkpoint_every=2)).id
        until_ended(world, started[n])

    for death in sweep(world, act, victim=JOBS, prepare=prepare, step=23):
        if death.n not in started:
            continue
        state = world.ended(started[death.n])
        assert world.app.budgets.get("rows").epsilon_spent >= spent[death.n]
        world.check_ledger()
        world.check_steps(started[death.n])
        if state == "succeeded":
            assert world.app.models.download(f"j{death.n}").weights
        else:
            with pytest.raises(NotFoundError):
                world.app.models.get(f"j{death.n}")


def test_a_queued_job_is_cancelled_and_its_reservation_returns_or_neither(world: World) -> None:
    queued: dict[int, str] = {}

    def prepare(n: int) -> None:
        world.zygote.page[HELD] = 1
        queued[n] = world.app.jobs.create(job(into=f"q{n}", **CHEAP)).id

    for death in sweep(world, lambda n: world.once.jobs.cancel(queued[n]), prepare=prepare):
        world.zygote.page[HELD] = 0
        state = world.app.jobs.get(queued[death.n]).state
        assert (state == "cancelled") or not death.answered, death
        ((held,),) = world.sql("SELECT state FROM privacy_reservations WHERE job_id = ?", queued[death.n])
        assert (state == "cancelled") == (held == "released"), death
        world.app.jobs.cancel(queued[death.n])
        world.ended(queued[death.n])
        world.check_ledger()


def test_a_running_job_that_is_cancelled_ends_with_what_it_ran_charged(world: World) -> None:
    running: dict[int, str] = {}

    def prepare(n: int) -> None:
        world.zygote.page[STEPS] = 0
        running[n] = world.app.jobs.create(job(into=f"r{n}", **LONG)).id
        wait_until(lambda: world.zygote.page[STEPS] > 0, "the job to run")

    heard = set()

    def act(n: int) -> None:
        world.once.jobs.cancel(running[n])
        heard.add(n)
        until_ended(world, running[n])

    for death in sweep(world, act, victim=EITHER, prepare=prepare, step=5):
        state = world.ended(running[death.n])
        assert state in ("cancelled", "failed"), death
        # Whoever was told that it is cancelled finds it cancelled, whatever died afterwards.
        assert state == "cancelled" or death.n not in heard, death
        world.check_ledger()
        world.check_steps(running[death.n])
        with pytest.raises(NotFoundError):
            world.app.models.get(f"r{death.n}")
