"""Attempts to get more out of a dataset than its budget: the lines *Budgets* of the design's list of attacks.

First the ledger alone: arithmetic, zombies, restored epochs, a crash at each write. Then a running platform, asked by a
developer: status and code, nothing reserved, and the entry in the log.
"""

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from fakes.core import ACME, FakeClock, FakeEntropy
from fakes.ledger import newest_of_job
from fakes.storage import fresh
from isolation.routes import code_of
from modelkeep_platform.core.errors import BudgetError, ConflictError, IntegrityError, UnprocessableError
from modelkeep_platform.core.ids import ObjectId
from modelkeep_platform.privacy.epochs import begin_restored_epoch, end_freeze
from modelkeep_platform.privacy.grid import fit_grid
from modelkeep_platform.privacy.ledger import BudgetLedger
from modelkeep_platform.privacy.plan import MechanismPlan, RanMechanism, calibrate
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.tables.identity import tenants
from modelkeep_platform.storage.transactions import System, TenantTransaction
from services.evidence import Evidence
from services.house import PRIVATE, ROWS, SCHEMA, House, job

DATASET, JOB = ObjectId("ds_1"), ObjectId("job_1")
GRID = fit_grid(epsilon=2.5, delta=1e-5)
PLAN = calibrate(epsilon=2.0, grid=GRID, delta=1e-5, sample_rate=0.25, steps=100, clip_norm=0.5, n_public=455)
BY = System(reason="test")


@pytest.fixture
def ledger(database: Database) -> BudgetLedger:
    ledger = BudgetLedger(clock=FakeClock(), entropy=FakeEntropy())
    with database.tenant(ACME, by=BY) as tx:
        ledger.open(tx, DATASET, 2.5, 1e-5)
    return ledger


def spent(database: Database, ledger: BudgetLedger) -> tuple[float, float]:
    with database.tenant(ACME, by=BY, read_only=True) as tx:
        view = ledger.view(tx, DATASET)
    return view.epsilon_spent, view.epsilon_reserved


@pytest.mark.parametrize("epsilon", [-1.0, 0.0, -0.0, math.nan, math.inf, -math.inf, 1e308, 5e-324, 1e-310], ids=str)
def test_senseless_epsilons_open_no_budget_and_plan_no_job(
    database: Database, ledger: BudgetLedger, epsilon: float
) -> None:
    with database.tenant(ACME, by=BY) as tx:
        with pytest.raises(UnprocessableError) as opened:
            ledger.open(tx, ObjectId("ds_2"), epsilon, 1e-5)
        with pytest.raises(UnprocessableError) as planned:
            ledger.plan(tx, DATASET, epsilon=epsilon, sample_rate=0.25, steps=100, clip_norm=0.5, n_public=455)
    assert opened.value.error_code == planned.value.error_code == "invalid_privacy_parameter"
    assert spent(database, ledger) == (0.0, 0.0)


@pytest.mark.parametrize("delta", [1.0, 1.5, 0.0, -1e-5, math.nan, math.inf, 5e-324], ids=str)
def test_senseless_deltas_open_no_budget(database: Database, ledger: BudgetLedger, delta: float) -> None:
    with database.tenant(ACME, by=BY) as tx, pytest.raises(UnprocessableError) as raised:
        ledger.open(tx, ObjectId("ds_2"), 2.0, delta)
    assert raised.value.error_code == "invalid_privacy_parameter"


def test_many_small_jobs_cannot_take_more_than_one_large_one(database: Database, ledger: BudgetLedger) -> None:
    small = calibrate(epsilon=0.5, grid=GRID, delta=1e-5, sample_rate=0.25, steps=100, clip_norm=0.5, n_public=455)
    total = [0] * len(GRID.orders)
    with database.tenant(ACME, by=BY) as tx:
        for number in range(1000):
            try:
                held = ledger.reserve(tx, DATASET, ObjectId(f"job_{number}"), small)
            except BudgetError:
                break
            ledger.charge(tx, held.id, 100, 0)
            ledger.commit(tx, held.id, 0)
            total = [unit + cost for unit, cost in zip(total, small.cost(GRID), strict=True)]
    assert 5 < number < 100
    assert GRID.fits(total)
    assert spent(database, ledger)[0] <= 2.5


def test_reserve_and_release_in_a_loop_gains_nothing(database: Database, ledger: BudgetLedger) -> None:
    with database.tenant(ACME, by=BY) as tx:
        for number in range(30):
            held = ledger.reserve(tx, DATASET, ObjectId(f"job_{number}"), PLAN)
            ledger.charge(tx, held.id, 4, 0)
            ledger.release(tx, held.id, 0)
            assert ledger.view(tx, DATASET).epsilon_reserved == 0.0
            if number == 5:
                break
    # 24 steps are charged, whichever jobs ran them.
    expected = GRID.epsilon([24 * unit for unit in PLAN.step_cost(GRID)])
    assert spent(database, ledger) == (expected, 0.0)


def test_restarting_a_job_for_ever_runs_out_of_budget(database: Database, ledger: BudgetLedger) -> None:
    fence = 0
    with database.tenant(ACME, by=BY) as tx, pytest.raises(BudgetError):
        for fence in range(1, 100):
            held = ledger.reserve(tx, DATASET, JOB, PLAN, fence)
            ledger.charge(tx, held.id, 100, fence, segment=0)
    assert fence == 2


def test_a_replayed_request_spends_once(database: Database, ledger: BudgetLedger) -> None:
    for _ in range(5):
        with database.tenant(ACME, by=BY) as tx:
            held = ledger.reserve(tx, DATASET, JOB, PLAN, 1)
            ledger.charge(tx, held.id, 50, 1, segment=0)
    assert spent(database, ledger)[0] == GRID.epsilon([50 * unit for unit in PLAN.step_cost(GRID)])


def test_a_zombie_worker_can_neither_charge_nor_commit(database: Database, ledger: BudgetLedger) -> None:
    with database.tenant(ACME, by=BY) as tx:
        held = ledger.reserve(tx, DATASET, JOB, PLAN, 1)
        ledger.charge(tx, held.id, 50, 1, segment=0)
        ledger.release(tx, held.id, 2)
    before = spent(database, ledger)
    for work in ("charge", "commit", "release"):
        with database.tenant(ACME, by=BY) as tx, pytest.raises(ConflictError) as raised:
            if work == "charge":
                ledger.charge(tx, held.id, 50, 1, segment=1)
            else:
                getattr(ledger, work)(tx, held.id, 1)
        assert raised.value.error_code == "stale_lease"
    assert spent(database, ledger) == before


def test_who_comes_back_from_a_platform_that_was_restored_moves_nothing(
    database: Database, ledger: BudgetLedger
) -> None:
    """A worker and a server that outlived the restore, with the lease and the highest fence there ever was."""
    with database.tenant(ACME, by=BY) as tx:
        held = ledger.reserve(tx, DATASET, JOB, PLAN, 1)
        ledger.charge(tx, held.id, 50, 1, segment=0)
    with database.platform() as platform:
        begin_restored_epoch(platform, clock=FakeClock(), entropy=FakeEntropy())
        end_freeze(platform, freed=True)
    before = spent(database, ledger)
    moves: tuple[Callable[[TenantTransaction], object], ...] = (
        lambda tx: ledger.charge(tx, held.id, 50, 99, segment=1),
        lambda tx: ledger.charge(tx, held.id, 50, 1, segment=0),
        lambda tx: ledger.commit(tx, held.id, 99),
        lambda tx: ledger.release(tx, held.id, 99),
        lambda tx: ledger.reserve(tx, DATASET, JOB, PLAN, 99),
    )
    for move in moves:
        with database.tenant(ACME, by=BY) as tx, pytest.raises(ConflictError) as raised:
            move(tx)
        assert raised.value.error_code == "stale_ledger_epoch"
    assert spent(database, ledger) == before


@pytest.mark.parametrize(
    "claim",
    [{"epsilon": 0.5}, {"noise_multiplier": 0.5}, {"steps": 5000}, {"sample_rate": 1.0}, {"delta": 0.5}],
    ids=lambda claim: next(iter(claim)),
)
def test_a_job_that_declares_less_than_it_costs_is_refused(
    database: Database, ledger: BudgetLedger, claim: dict[str, float]
) -> None:
    fields = {name: getattr(PLAN, name) for name in PLAN.__dataclass_fields__}
    with database.tenant(ACME, by=BY) as tx, pytest.raises(UnprocessableError) as raised:
        ledger.reserve(tx, DATASET, JOB, MechanismPlan(**{**fields, **claim}))
    assert raised.value.error_code == "plan_mismatch"
    assert spent(database, ledger) == (0.0, 0.0)


@pytest.mark.parametrize(
    "ran",
    [
        RanMechanism(steps=101, noise_multiplier=PLAN.noise_multiplier, sample_rate=0.25, clip_norm=0.5),
        RanMechanism(steps=100, noise_multiplier=PLAN.noise_multiplier / 2, sample_rate=0.25, clip_norm=0.5),
        RanMechanism(steps=100, noise_multiplier=PLAN.noise_multiplier, sample_rate=1.0, clip_norm=0.5),
        RanMechanism(steps=100, noise_multiplier=PLAN.noise_multiplier, sample_rate=0.25, clip_norm=5.0),
    ],
    ids=["steps", "noise", "rate", "norm"],
)
def test_a_run_that_was_not_as_declared_is_held(database: Database, ledger: BudgetLedger, ran: RanMechanism) -> None:
    with database.tenant(ACME, by=BY) as tx:
        held = ledger.reserve(tx, DATASET, JOB, PLAN)
        ledger.charge(tx, held.id, 100, 0)
    with database.tenant(ACME, by=BY) as tx, pytest.raises(IntegrityError) as raised:
        ledger.commit(tx, held.id, 0, ran=ran)
    assert raised.value.error_code == "ran_more_than_charged"


def test_a_budget_cannot_be_opened_again_to_refill_it(database: Database, ledger: BudgetLedger) -> None:
    with database.tenant(ACME, by=BY) as tx:
        held = ledger.reserve(tx, DATASET, JOB, PLAN)
        ledger.charge(tx, held.id, 100, 0)
    before = spent(database, ledger)
    with database.tenant(ACME, by=BY) as tx, pytest.raises(ConflictError) as raised:
        ledger.open(tx, DATASET, 100.0, 1e-5)
    assert raised.value.error_code == "budget_exists"
    assert spent(database, ledger) == before


CRASH = """
import json, os, signal, sys
from modelkeep_platform.core.ids import ObjectId, TenantId
from modelkeep_platform.privacy.ledger import BudgetLedger
from modelkeep_platform.privacy.plan import MechanismPlan
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.transactions import System
from modelkeep_platform.telemetry.system import SystemClock, SystemEntropy

url, tenant, point, plan = sys.argv[1], TenantId(sys.argv[2]), sys.argv[3], MechanismPlan(**json.loads(sys.argv[4]))
database = Database(url)
ledger = BudgetLedger(clock=SystemClock(), entropy=SystemEntropy())
by = System(reason="test")

def die(here):
    if here == point:
        os.kill(os.getpid(), signal.SIGKILL)

die("start")
with database.tenant(tenant, by=by) as tx:
    held = ledger.reserve(tx, ObjectId("ds_1"), ObjectId("job_1"), plan, 1)
    die("in reserve")
die("reserved")
for segment in (0, 1):
    with database.tenant(tenant, by=by) as tx:
        ledger.charge(tx, held.id, 50, 1, segment=segment)
        die(f"in charge {segment}")
    die(f"charged {segment}")
with database.tenant(tenant, by=by) as tx:
    ledger.commit(tx, held.id, 1)
    die("in commit")
die("committed")
"""

# What is on the disk after a kill at each point: steps charged, steps still reserved.
POINTS = {
    "start": (0, 0),
    "in reserve": (0, 0),
    "reserved": (0, 100),
    "in charge 0": (0, 100),
    "charged 0": (50, 50),
    "in charge 1": (50, 50),
    "charged 1": (100, 0),
    "in commit": (100, 0),
    "committed": (100, 0),
}


@pytest.mark.parametrize("point", POINTS)
def test_a_crash_at_each_write_leaves_charged_what_was_charged(tmp_path: Path, point: str) -> None:
    url = f"sqlite:///{tmp_path / 'crash.db'}"
    database = fresh(url)
    ledger = BudgetLedger(clock=FakeClock(), entropy=FakeEntropy())
    with database.tenant(ACME, by=BY) as tenant_tx:
        ledger.open(tenant_tx, DATASET, 2.5, 1e-5)
    fields = json.dumps({name: getattr(PLAN, name) for name in PLAN.__dataclass_fields__})
    ended = subprocess.run(
        [sys.executable, "-c", CRASH, url, ACME, point, fields], check=False, timeout=60, env=dict(os.environ)
    )
    assert ended.returncode == -signal.SIGKILL
    charged, reserved = POINTS[point]
    now_spent, now_reserved = spent(database, ledger)
    step = PLAN.step_cost(GRID)
    assert now_spent == GRID.epsilon([charged * unit for unit in step])
    together = GRID.epsilon([(charged + reserved) * unit for unit in step])
    assert now_spent + now_reserved == pytest.approx(together, abs=2e-6)
    # The next worker takes over: what was charged stays, it reserves its own, and the dead one's rest returns.
    with database.tenant(ACME, by=BY) as tenant_tx:
        found = newest_of_job(ledger, tenant_tx, JOB)
        if found is not None and found.state == "open":
            ledger.release(tenant_tx, found.id, 2)
    assert spent(database, ledger) == (now_spent, 0.0)
    database.close()


# --- a platform -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A platform where jobs wait until they are let run: what moves by itself would change rows meanwhile."""
    house = House(
        Path(tmp_path_factory.mktemp("budgets")),
        tenant_running_jobs=0,
        tenant_refusals_per_minute=1_000_000,
        principal_refusals_per_minute=1_000_000,
    )
    house.fill()
    yield house
    house.close()


@pytest.fixture(scope="module")
def evidence(house: House) -> Evidence:
    return Evidence(house)


@pytest.fixture(scope="module")
def developer(house: House) -> Iterator[httpx.Client]:
    with house.http(house.acme.clients["developer"]) as http:
        yield http


@pytest.fixture
def people(house: House, request: pytest.FixtureRequest) -> str:
    """A private dataset of the test's own, with a budget of ε = 3; its name."""
    name = f"people-{hashlib.sha256(request.node.name.encode()).hexdigest()[:12]}"
    house.acme.clients["developer"].datasets.upload_csv(name, ROWS, schema=SCHEMA, privacy=PRIVATE)
    return name


def budget(developer: httpx.Client, name: str) -> dict[str, Any]:
    found: dict[str, Any] = developer.get(f"/v1/budgets/{name}").json()
    return found


def is_refused(evidence: Evidence, answer: httpx.Response, status: int, code: str, tenant: str = "acme") -> None:
    """Check status and code, and that the refusal is one entry of the caller's log and of no other."""
    assert (answer.status_code, code_of(answer)) == (status, code), answer.text[:400]
    assert evidence.recorded(answer) == [(tenant, "denied", code)]


def test_a_job_beyond_the_budget_reserves_nothing(evidence: Evidence, developer: httpx.Client, people: str) -> None:
    with evidence.nothing_changes():
        answer = developer.post("/v1/jobs", json=job(dataset=people, privacy={"epsilon": 3.5, "clip_norm": 1.0}))
    is_refused(evidence, answer, 409, "budget_exceeded")
    details = answer.json()["error"]["details"]
    assert details["requested"] == 3.5
    assert 0 < details["largest_epsilon"] <= details["epsilon_limit"] == 3.0
    assert developer.post("/v1/jobs", json=job(dataset=people)).status_code == 201
    with evidence.nothing_changes():
        second = developer.post("/v1/jobs", json=job(dataset=people, privacy={"epsilon": 2.9, "clip_norm": 1.0}))
    is_refused(evidence, second, 409, "budget_exceeded")
    assert 0 < budget(developer, people)["epsilon_reserved"] <= 1.0


def test_jobs_at_once_never_reserve_more_than_there_is(
    evidence: Evidence, developer: httpx.Client, people: str
) -> None:
    wanted = job(dataset=people, privacy={"epsilon": 2.5, "clip_norm": 1.0})
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: developer.post("/v1/jobs", json=wanted), range(6)))
    admitted = [answer for answer in answers if answer.status_code == 201]
    assert len(admitted) == 1, "two do not fit together"
    for answer in answers:
        if answer not in admitted:
            code = code_of(answer)
            assert code in {"budget_exceeded", "too_many_plans"}
            assert evidence.recorded(answer) == [("acme", "denied", code)]
    found = budget(developer, people)
    assert found["epsilon_spent"] == 0
    assert len(found["charges"]) == 1
    assert found["epsilon_reserved"] <= 2.5


def test_a_key_used_again_reserves_once_also_at_the_same_instant(
    evidence: Evidence, developer: httpx.Client, people: str
) -> None:
    key = {"idempotency-key": f"{people}-once"}
    wanted = job(dataset=people, into=people)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: developer.post("/v1/jobs", json=wanted, headers=key), range(4)))
    assert {answer.status_code for answer in answers} <= {201, 409}
    assert {code_of(answer) for answer in answers if answer.status_code == 409} <= {"idempotency_unfinished"}
    with evidence.nothing_changes():
        again = developer.post("/v1/jobs", json=wanted, headers=key)
        other = developer.post("/v1/jobs", json={**wanted, "steps": 5}, headers=key)
    assert {answer.json()["id"] for answer in [*answers, again] if answer.status_code == 201} == {again.json()["id"]}
    assert evidence.entries(again.headers["x-request-id"]) == [], "nothing was done"
    is_refused(evidence, other, 409, "idempotency_mismatch")
    assert [line["job_id"] for line in budget(developer, people)["charges"]] == [again.json()["id"]]


def test_a_refused_jobs_key_is_free_for_the_corrected_one(developer: httpx.Client, people: str) -> None:
    key = {"idempotency-key": f"{people}-corrected"}
    too_much = job(dataset=people, privacy={"epsilon": 9.0, "clip_norm": 1.0})
    assert developer.post("/v1/jobs", json=too_much, headers=key).status_code == 409
    assert developer.post("/v1/jobs", json=job(dataset=people), headers=key).status_code == 201
    assert len(budget(developer, people)["charges"]) == 1


# What JSON can say, and Python's writer cannot: numbers as they stand in the body.
EPSILONS = {
    "-1": (422, "invalid_job"),
    "0": (422, "invalid_job"),
    "-0.0": (422, "invalid_job"),
    "-5e-324": (422, "invalid_job"),
    "5e-324": (422, "invalid_privacy_parameter"),
    "1e-310": (422, "invalid_privacy_parameter"),
    "0.009": (422, "invalid_privacy_parameter"),
    "100.1": (422, "invalid_job"),
    "1e308": (422, "invalid_job"),
    "9223372036854775807": (422, "invalid_job"),
    "1e999": (400, "invalid_json"),
    "NaN": (400, "invalid_json"),
    "Infinity": (400, "invalid_json"),
    "-Infinity": (400, "invalid_json"),
    "9223372036854775808": (400, "invalid_body"),
    '"1"': (422, "invalid_job"),
    '"NaN"': (422, "invalid_job"),
    "true": (422, "invalid_job"),
    "null": (422, "invalid_job"),
    "[1]": (422, "invalid_job"),
}
FIELDS = {
    "sample_rate": {
        "0": (422, "invalid_job"),
        "-0.5": (422, "invalid_job"),
        "1.0000001": (422, "invalid_job"),
        "5e-324": (422, "invalid_privacy_parameter"),
        "NaN": (400, "invalid_json"),
    },
    "steps": {
        "0": (422, "invalid_job"),
        "-1": (400, "invalid_body"),
        "1.5": (400, "invalid_body"),
        "1000001": (422, "invalid_job"),
        "1e300": (400, "invalid_body"),
    },
    "privacy": {
        "null": (422, "privacy_required"),
        "{}": (422, "invalid_job"),
        '{"epsilon":1,"clip_norm":0}': (422, "invalid_job"),
        '{"epsilon":1,"clip_norm":-1}': (422, "invalid_job"),
        '{"epsilon":1,"clip_norm":5e-324}': (422, "invalid_privacy_parameter"),
        '{"epsilon":1,"clip_norm":1e300}': (422, "invalid_job"),
        '{"epsilon":1,"clip_norm":1,"delta":1}': (422, "invalid_job"),
        '{"epsilon":1,"clip_norm":1,"noise_multiplier":9}': (422, "invalid_job"),
        '{"epsilon":1,"epsilon":2,"clip_norm":1}': (400, "invalid_json"),
    },
}


def sent(developer: httpx.Client, path: str, body: dict[str, Any], name: str, text: str) -> httpx.Response:
    """Send `body` with the member `name` written as `text`."""
    raw = json.dumps({**body, name: "here"}).replace('"here"', text)
    return developer.post(path, content=raw.encode(), headers={"content-type": "application/json"})


JOBS = [("privacy", f'{{"epsilon":{text},"clip_norm":1}}', *why) for text, why in EPSILONS.items()] + [
    (name, text, *why) for name, texts in FIELDS.items() for text, why in texts.items()
]


@pytest.mark.parametrize(("name", "text", "status", "code"), JOBS, ids=[f"{one[0]}={one[1]}" for one in JOBS])
def test_senseless_parameters_of_a_job_reserve_nothing(
    evidence: Evidence, developer: httpx.Client, name: str, text: str, status: int, code: str
) -> None:
    for path in ("/v1/jobs", "/v1/job-plans"):
        with evidence.nothing_changes():
            answer = sent(developer, path, job(), name, text)
        is_refused(evidence, answer, status, code)


BUDGETS = [
    (f'{{"epsilon":{text},"delta":1e-5}}', status, code.replace("invalid_job", "invalid_dataset"))
    for text, (status, code) in EPSILONS.items()
] + [
    (f'{{"epsilon":1,"delta":{text}}}', status, code)
    for text, status, code in (
        ("1", 422, "invalid_dataset"),
        ("1.5", 422, "invalid_dataset"),
        ("0.999", 422, "invalid_dataset"),
        ("0.001", 422, "invalid_dataset"),
        ("0", 422, "invalid_dataset"),
        ("-1e-5", 422, "invalid_dataset"),
        ("5e-324", 422, "invalid_dataset"),
        ("1e308", 422, "invalid_dataset"),
        ("NaN", 400, "invalid_json"),
        ("1e999", 400, "invalid_json"),
        ("null", 422, "invalid_dataset"),
        ("true", 422, "invalid_dataset"),
    )
]


@pytest.mark.parametrize(("text", "status", "code"), BUDGETS, ids=[one[0] for one in BUDGETS])
def test_senseless_budgets_open_nothing(
    evidence: Evidence, developer: httpx.Client, text: str, status: int, code: str
) -> None:
    declared = {"name": "endless", "format": "csv", "schema": SCHEMA, "size_bytes": len(ROWS), "sha256": "0" * 64}
    privacy = json.dumps({**PRIVATE, "budget": "here"}).replace('"here"', text)
    with evidence.nothing_changes():
        answer = sent(developer, "/v1/datasets", declared, "privacy", privacy)
    is_refused(evidence, answer, status, code.replace("invalid_privacy_parameter", "invalid_dataset"))


# --- laundering -----------------------------------------------------------------------------------


def test_a_declared_budget_is_never_changed_nor_taken_off(
    evidence: Evidence, developer: httpx.Client, people: str
) -> None:
    """Promised: a budget is declared once. No route changes one, and a name is not declared again over its dataset."""
    declared = {
        "name": people,
        "format": "csv",
        "schema": SCHEMA,
        "privacy": {**PRIVATE, "budget": {"epsilon": 20.0, "delta": 1e-4}},
        "size_bytes": len(ROWS),
        "sha256": "0" * 64,
    }
    public = {**declared, "privacy": {"visibility": "public", "reason": "laundered"}}
    with evidence.nothing_changes():
        answers = [developer.post("/v1/datasets", json=body) for body in (declared, public)]
        closed = [developer.request(method, f"/v1/datasets/{people}", json=public) for method in ("PUT", "PATCH")]
        closed += [developer.request(method, f"/v1/budgets/{people}", json={}) for method in ("PUT", "PATCH", "DELETE")]
    for answer in answers:
        is_refused(evidence, answer, 409, "name_taken")
    assert {(answer.status_code, code_of(answer)) for answer in closed} == {(405, "method_not_allowed")}


def test_who_trains_by_a_grant_takes_from_the_owners_budget(
    house: House, evidence: Evidence, developer: httpx.Client, people: str
) -> None:
    """Promised: one budget for a dataset, whoever trains on it."""
    grant = house.acme.admin.grants.create("dataset", people, grantee="globex", actions=["dataset:train"])
    with house.http(house.globex.clients["developer"]) as partner:
        theirs = job(dataset=f"acme~{people}", privacy={"epsilon": 2.5, "clip_norm": 1.0})
        taken = partner.post("/v1/jobs", json=theirs)
        assert taken.status_code == 201
        with evidence.nothing_changes():
            more = partner.post("/v1/jobs", json=theirs)
            ours = developer.post("/v1/jobs", json={**theirs, "dataset": people})
        is_refused(evidence, more, 409, "budget_exceeded", tenant="globex")
        is_refused(evidence, ours, 409, "budget_exceeded")
        assert ("acme", "dataset:train", "done") in [
            (one.tenant, one.action, one.outcome) for one in evidence.entries(taken.headers["x-request-id"])
        ]
    house.acme.admin.grants.revoke(grant.id)


def test_the_same_rows_uploaded_again_are_another_dataset_and_the_log_names_both(
    house: House, evidence: Evidence, developer: httpx.Client, people: str
) -> None:
    """Not promised: the platform cannot see that rows are the same, and says so (privacy, *What is not promised*).

    Promised: the first ledger stays as it is, and who deletes and uploads is in the log.
    """
    assert developer.post("/v1/jobs", json=job(dataset=people)).status_code == 201
    first = evidence.state()["privacy_budgets"]
    gone = developer.delete(f"/v1/datasets/{people}")
    assert gone.status_code == 204
    house.acme.clients["developer"].datasets.upload_csv(people, ROWS, schema=SCHEMA, privacy=PRIVATE)
    assert budget(developer, people)["charges"] == []
    assert set(first) < set(evidence.state()["privacy_budgets"])
    assert [(one.tenant, one.action, one.outcome) for one in evidence.entries(gone.headers["x-request-id"])] == [
        ("acme", "dataset:delete", "done")
    ]
    declared = next(one for one in house.acme.admin.audit.entries() if one.action == "dataset:create")
    assert (declared.outcome, declared.facts["epsilon"]) == ("done", "3")


def charged(house: House, developer: httpx.Client, wanted: dict[str, Any], key: str) -> str:
    """Start a job, charge all of its steps as its worker would, and send the same again; return its id."""
    headers = {"idempotency-key": key}
    begun = developer.post("/v1/jobs", json=wanted, headers=headers)
    assert begun.status_code == 201, begun.text
    job_id = ObjectId(begun.json()["id"])
    ground, ledger = house.server.platform.ground, house.server.platform.rooms.ledger
    with ground.database.platform() as tx:
        acme = tx.first(sa.select(tenants).where(tenants.c.slug == "acme"))
        assert acme is not None
        own = tx.as_tenant(acme["id"])
        held = newest_of_job(ledger, own, job_id)
        assert held is not None
        ledger.charge(own, held.id, wanted["steps"], 1, segment=0)
        ledger.commit(own, held.id, 1)
    assert developer.post("/v1/jobs", json=wanted, headers=headers).json()["id"] == job_id
    return job_id


def test_a_replayed_job_is_charged_once_and_a_child_of_a_model_pays_like_a_new_one(
    house: House, evidence: Evidence, developer: httpx.Client, people: str
) -> None:
    """Promised: a replayed request is charged once; going on from a model with the same rows costs what it costs.

    Going on with a public dataset costs nothing: it works on what was released, and paid for.
    """
    wanted = job(dataset=people, into="parent", privacy={"epsilon": 2.0, "clip_norm": 1.0})
    parent = charged(house, developer, wanted, f"{people}-parent")
    found = budget(developer, people)
    assert [(line["job_id"], line["steps"], line["state"]) for line in found["charges"]] == [(parent, 4, "committed")]
    assert (1.9 < found["epsilon_spent"] <= 2.0, found["epsilon_reserved"]) == (True, 0.0)
    child = {"into": "child", "model": {"name": "model"}}
    with evidence.nothing_changes():
        answer = developer.post("/v1/jobs", json={**wanted, **child, "privacy": {"epsilon": 2.5, "clip_norm": 1.0}})
    is_refused(evidence, answer, 409, "budget_exceeded")
    second = {**wanted, **child, "privacy": {"epsilon": 0.5, "clip_norm": 1.0}}
    paid = charged(house, developer, second, f"{people}-child")
    after = budget(developer, people)
    assert {line["job_id"] for line in after["charges"]} == {parent, paid}
    assert found["epsilon_spent"] < after["epsilon_spent"] <= 3.0
    public = developer.post("/v1/jobs", json={**wanted, **child, "dataset": "open", "privacy": None})
    assert public.status_code == 201
    assert budget(developer, people) == after


def test_a_job_cannot_say_that_its_rows_are_of_the_other_kind(evidence: Evidence, developer: httpx.Client) -> None:
    for change, code in (({"dataset": "open"}, "invalid_job"), ({"privacy": None}, "privacy_required")):
        with evidence.nothing_changes():
            answer = developer.post("/v1/jobs", json=job(**change))
        is_refused(evidence, answer, 422, code)
