"""SIGKILL of the server around the one commit that ends a job: its version, its budget and its state, or none of it."""

import time

import pytest

from faults.harness import JOBS, World
from modelkeep.errors import NotFoundError
from services.house import job, wait_until
from services.points import COUNT, LAST

pytestmark = pytest.mark.e2e

TRIES = 16


def run_armed(world: World, name: str, at: int) -> str:
    """Run a job of one step, and let its server die at the `at`-th write after the step was charged; return its id."""
    cheap = {"privacy": {"epsilon": 0.2, "clip_norm": 1.0}, "steps": 1, "sample_rate": 0.05}
    world.zygote.page.disarm()  # what was armed before and not met strikes nobody else
    started: str = world.app.jobs.create(job(into=name, **cheap)).id
    charged = "SELECT charged_steps FROM privacy_reservations WHERE job_id = ?"
    end_s = time.monotonic() + 60
    while world.sql(charged, started) == [(0,)] and time.monotonic() < end_s:
        pass  # every write from here on is counted: there is no time to wait
    world.zygote.arm(at, JOBS)
    over = "SELECT 1 FROM jobs WHERE id = ? AND state NOT IN ('queued', 'running')"
    wait_until(lambda: world.zygote.page.reached or world.sql(over, started), "the job to end")
    return started


def check_whole(world: World, job_id: str, name: str) -> str:
    """Check that the end of a job is there in every respect, or in none; return its state."""
    wait_until(lambda: world.app.jobs.get(job_id).state not in ("queued", "running"), "the job to be ended")
    found = world.app.jobs.get(job_id)
    ((held, steps),) = world.sql("SELECT state, charged_steps FROM privacy_reservations WHERE job_id = ?", job_id)
    logged = [
        (entry.action, entry.outcome)
        for entry in world.acme.admin.audit.entries(limit=200)
        if job_id in (entry.object_id, entry.facts.get("job")) and entry.action in ("model:create", "job:end")
    ]
    assert steps == 1
    if found.state == "succeeded":
        assert found.result is not None
        assert world.app.models.download(name, version=found.result.version).weights
        assert held == "committed"
        assert sorted(logged) == [("job:end", "done"), ("model:create", "done")]
    else:
        assert (found.result, held, logged) == (None, "released", [("job:end", "failed")])
        with pytest.raises(NotFoundError):
            world.app.models.get(name)
    return str(found.state)


def test_a_job_has_succeeded_with_its_version_or_neither(world: World) -> None:
    job_id = run_armed(world, "whole", 0)
    assert check_whole(world, job_id, "whole") == "succeeded"
    at = world.zygote.page[COUNT]
    seen: set[tuple[str, str]] = set()
    for number in range(TRIES):
        name = f"end{number}"
        job_id = run_armed(world, name, at)
        point = ""
        if world.zygote.page.reached:
            point = world.zygote.page.text(LAST)
            world.zygote.ended()
            world.restart()
        state = check_whole(world, job_id, name)
        world.check()
        seen.add((point, state))
        if {("before commit", "failed"), ("after commit", "succeeded")} <= seen:
            return
        # Towards the last commit: where it is differs by a beat of the job's heart, and by when the count began.
        at += 1 if state == "failed" else -1
    raise AssertionError(f"the commit was never met: {seen}")
