"""The clock is set back or forward while the server runs or is dead: what was over stays over, and all goes on.

What is set is what the whole server process reads as the time (`time.time`); the steady clock goes on, as the kernel's.
"""

import re
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

import modelkeep
from faults.harness import CHEAP, World
from modelkeep import Client
from modelkeep.errors import APIError
from modelkeep_platform.limits.bucket import LEAST_BURST
from services.house import PASSWORD, bare, job, wait_until
from services.points import CLOCK_S, LOOK_MS, STEPS

pytestmark = pytest.mark.e2e

MINUTE, HOUR, DAY = 60, 3600, 86_400
STEPS_S = pytest.mark.parametrize("step_s", [-DAY, -MINUTE, MINUTE, DAY], ids=["-1 d", "-1 min", "+1 min", "+1 d"])


@pytest.fixture(autouse=True)
def right_again(world: World) -> Iterator[None]:
    """Let the next test begin at the system's own time: a server that died, and no other that knows a later one."""
    yield
    world.zygote.page[CLOCK_S] = 0
    if world.zygote.pid:
        world.zygote.kill()
    world.restart()
    for grant in world.acme.admin.grants.list():
        world.acme.admin.grants.revoke(grant.id)


def step(world: World, seconds: int) -> None:
    """Set the server's clock to the true time and `seconds`."""
    world.zygote.page[CLOCK_S] = seconds


def platform_s(world: World) -> int:
    """Return the platform's time, as the newest entry of its log says."""
    ((now,),) = world.sql("SELECT max(created_at) FROM audit_entries")
    return int(now)


def renewed(world: World, client: Client) -> httpx.Client:
    """Return a client that keeps a token that is good now, whatever is answered."""
    client.models.list()
    return bare(client, world.made.url)


def refused(world: World, token: str, name: str) -> bool:
    try:
        modelkeep.enrol(world.made.url, token, username=f"{name}-admin", password=PASSWORD)
    except APIError as exc:
        return exc.code == "link_invalid"
    return False


@STEPS_S
def test_all_goes_on(world: World, step_s: int) -> None:
    admin, other = world.acme.admin, world.globex.clients["developer"]
    step(world, step_s)
    grant = admin.grants.create("model", "model", grantee="globex", actions=["model:read"])
    assert other.models.get("acme~model").latest_version == 1
    admin.grants.revoke(grant.id)
    with pytest.raises(APIError):
        other.models.get("acme~model")
    world.check()
    world.verify_log()
    step(world, 0)
    world.check()
    world.verify_log()


PER_MINUTE, SECONDS_EACH = 30, 2


def wait_s(answer: httpx.Response) -> int:
    """Return the seconds until one more is let through, as a refusal for the rate of requests says."""
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limited")
    found = re.fullmatch(r'"requests";r=0;t=([0-9]+)', answer.headers["ratelimit"])
    assert found is not None, answer.headers["ratelimit"]
    assert answer.headers["retry-after"] == found[1]
    return int(found[1])


def let_through(client: httpx.Client) -> int:
    """Ask until the limit is reached; return how many were let through."""
    for count in range(PER_MINUTE):
        answer = client.get("/v1/models/model")
        if answer.status_code != 200:
            assert 1 <= wait_s(answer) <= SECONDS_EACH
            return count
    raise AssertionError("the limit is never reached")


@STEPS_S
def test_a_limit_that_was_reached_is_one_for_seconds_and_no_step_gives_a_burst(world: World, step_s: int) -> None:
    with world.made.operator() as operator:
        operator.tenants.set_limits("acme", {"requests_per_minute": PER_MINUTE})
        try:
            with renewed(world, world.app) as client:
                assert let_through(client) > 0
            for seconds in (step_s, 0):
                step(world, seconds)
                began = time.monotonic()
                # It waits as long as it is told, and gets a token that is good by the new time.
                with renewed(world, world.app) as client:
                    assert time.monotonic() - began < MINUTE / 2
                    assert let_through(client) < LEAST_BURST
        finally:
            step(world, 0)
            operator.tenants.set_limits("acme", {"requests_per_minute": None})


def test_a_token_that_is_over_stays_over_and_one_that_is_not_is_not_of_the_future(world: World) -> None:
    with renewed(world, world.app) as client:
        assert client.get("/v1/models/model").status_code == 200
        step(world, -DAY)
        assert client.get("/v1/models/model").status_code == 200
        step(world, 2 * HOUR)
        assert client.get("/v1/models/model").json()["error"]["code"] == "token_expired"
        step(world, 0)
        assert client.get("/v1/models/model").json()["error"]["code"] == "token_expired"
    with renewed(world, world.app) as client:
        assert client.get("/v1/models/model").status_code == 200


def test_a_secret_that_was_rotated_before_the_clock_was_set_back_works_after_it(world: World) -> None:
    admin = world.acme.admin
    made = admin.service_accounts.create("spare", roles=["developer"])
    secret = admin.service_accounts.rotate(made.service_account.id).client_secret
    step(world, -DAY)
    login = modelkeep.ClientCredentials(made.service_account.client_id, secret)
    with world.made.client(login, "spare") as spare:
        assert spare.models.get("model").latest_version == 1


def test_a_grant_that_ended_stays_ended(world: World) -> None:
    admin, other = world.acme.admin, world.globex.clients["developer"]
    admin.grants.create(
        "model", "model", grantee="globex", actions=["model:read"], expires_at=int(time.time()) + MINUTE
    )
    assert other.models.get("acme~model").latest_version == 1
    for seconds in (2 * MINUTE, 0, -DAY):
        step(world, seconds)
        with pytest.raises(APIError):
            other.models.get("acme~model")


def test_a_link_that_is_over_or_used_stays_so_and_another_can_be_used(world: World) -> None:
    with world.made.operator() as operator:

        def link(slug: str) -> str:
            return operator.tenants.create(slug, name=slug).enrolment.token

        used, good, over = link("used"), link("good"), link("over")
        assert not refused(world, used, "used")
        step(world, -4 * DAY)
        assert refused(world, used, "again")
        assert not refused(world, good, "good")
        step(world, 4 * DAY)
        assert refused(world, over, "over")
        step(world, 0)
        assert refused(world, over, "over")


def test_a_repeated_request_is_run_once(world: World) -> None:
    body = {"kind": "model", "name": "model", "grantee": "globex", "actions": ["model:read"]}
    key = {"idempotency-key": "the-same-for-ever"}
    answers = []
    for seconds in (0, -2 * DAY, HOUR, 0):
        step(world, seconds)
        with renewed(world, world.acme.admin) as client:
            answers.append(client.post("/v1/grants", json=body, headers=key))
    assert [answer.status_code for answer in answers] == [201] * 4
    assert len({answer.json()["id"] for answer in answers}) == 1


def start_job(world: World, name: str, **changes: Any) -> str:
    world.zygote.page[STEPS] = 0
    started: str = world.app.jobs.create(job(into=name, **{**CHEAP, **changes})).id
    wait_until(lambda: world.zygote.page[STEPS] > 0, "the job to run")
    return started


def test_a_job_outlasts_a_clock_that_is_set_forward_and_back(world: World) -> None:
    # Seldom enough that a holder that lives has renewed its lease between two looks; as shipped it is 5 s.
    world.zygote.page[LOOK_MS] = 2500
    job_id = start_job(world, "stepped", steps=50_000, sample_rate=0.01)
    for seconds in (2 * HOUR, -DAY):
        step(world, seconds)
        before = world.zygote.page[STEPS]
        time.sleep(3)
        assert world.app.jobs.get(job_id).state == "running"
        assert world.zygote.page[STEPS] > before
    world.app.jobs.cancel(job_id)
    assert world.ended(job_id) == "cancelled"
    world.check_ledger()
    world.check_steps(job_id)


def test_a_server_that_died_and_came_back_with_a_clock_that_is_behind_goes_on_from_where_it_was(world: World) -> None:
    admin, other = world.acme.admin, world.globex.clients["developer"]
    admin.grants.create("model", "model", grantee="globex", actions=["model:read"], expires_at=int(time.time()) + 2)
    job_id = start_job(world, "lapsing", steps=20_000, sample_rate=0.02)
    time.sleep(2)
    before = platform_s(world)
    # The machine lost its time with its power: nothing is put right in the database here.
    world.zygote.kill()
    step(world, -HOUR)
    world.zygote.start()
    assert world.app.jobs.get(job_id).state == "running"
    with pytest.raises(APIError):
        other.models.get("acme~model")
    assert platform_s(world) >= before
    # The lease lasts what it says, not an hour more.
    step(world, 40)
    assert world.ended(job_id) == "failed"
    world.check_ledger()
    world.check_steps(job_id)
    world.check()


def test_a_clock_that_is_set_back_while_no_server_runs_is_taken_as_it_is(world: World) -> None:
    world.app.models.get("model")
    world.zygote.stop()
    step(world, -HOUR)
    world.zygote.start()
    world.app.models.set_alias("model", "behind", version=1)
    assert platform_s(world) >= int(time.time()) - 5  # entries of before
    ((newest,),) = world.sql("SELECT created_at FROM audit_entries ORDER BY seq DESC LIMIT 1")
    assert newest < time.time() - HOUR + 60
    # Nobody waits until the clock has caught up: the lease of the log was let go.
    world.verify_log()
    world.check()
