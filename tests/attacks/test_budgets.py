"""Attempts to get more out of a dataset than its budget: the lines *Budgets* of the design's list of attacks."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fakes.core import ACME, FakeClock, FakeEntropy
from fakes.storage import fresh
from modelkeep_platform.core.errors import BudgetError, ConflictError, IntegrityError, UnprocessableError
from modelkeep_platform.core.ids import ObjectId
from modelkeep_platform.privacy.epochs import begin_restored_epoch, end_freeze
from modelkeep_platform.privacy.grid import fit_grid
from modelkeep_platform.privacy.ledger import BudgetLedger
from modelkeep_platform.privacy.plan import MechanismPlan, RanMechanism, calibrate
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.transactions import System, TenantTransaction

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
        found = ledger.reservation_of(tenant_tx, JOB)
        if found is not None and found.state == "open":
            ledger.release(tenant_tx, found.id, 2)
    assert spent(database, ledger) == (now_spent, 0.0)
    database.close()
