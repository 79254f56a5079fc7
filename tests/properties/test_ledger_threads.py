"""Many threads on one budget: together they never overspend, and every charge counts once."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from fakes.core import ACME, FakeClock
from modelkeep_platform.core.errors import BudgetError, ConflictError
from modelkeep_platform.core.ids import ObjectId
from modelkeep_platform.privacy.grid import fit_grid
from modelkeep_platform.privacy.ledger import BudgetLedger
from modelkeep_platform.privacy.plan import calibrate
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.transactions import System
from modelkeep_platform.telemetry.system import SystemEntropy

DATASET = ObjectId("ds_1")
GRID = fit_grid(epsilon=2.5, delta=1e-5)
PLAN = calibrate(epsilon=1.0, grid=GRID, delta=1e-5, sample_rate=0.25, steps=60, clip_norm=1.0, n_public=100)
THREADS = 8


def opened(database: Database) -> BudgetLedger:
    ledger = BudgetLedger(clock=FakeClock(), entropy=SystemEntropy())
    with database.tenant(ACME, by=System(reason="test")) as tx:
        ledger.open(tx, DATASET, 2.5, 1e-5)
    return ledger


def most_that_fit() -> int:
    count = 0
    while GRID.fits([(count + 1) * unit for unit in PLAN.cost(GRID)]):
        count += 1
    return count


def test_concurrent_reservations_never_exceed_the_budget(database: Database) -> None:
    ledger = opened(database)
    start = Barrier(THREADS)

    def reserve(number: int) -> bool:
        start.wait()
        try:
            with database.tenant(ACME, by=System(reason="test")) as tx:
                ledger.reserve(tx, DATASET, ObjectId(f"job_{number}"), PLAN)
        except BudgetError:
            return False
        return True

    with ThreadPoolExecutor(THREADS) as pool:
        admitted = sum(pool.map(reserve, range(THREADS)))
    assert admitted == most_that_fit()
    assert 1 < admitted < THREADS
    with database.tenant(ACME, by=System(reason="test"), read_only=True) as tx:
        view = ledger.view(tx, DATASET)
    assert view.epsilon_spent + view.epsilon_reserved <= 2.5
    assert len(view.charges) == admitted


def test_concurrent_charges_of_one_reservation_add_up_and_stop_at_its_end(database: Database) -> None:
    ledger = opened(database)
    with database.tenant(ACME, by=System(reason="test")) as tx:
        held = ledger.reserve(tx, DATASET, ObjectId("job_1"), PLAN)
    start = Barrier(THREADS)

    def charge(segment: int) -> str:
        start.wait()
        try:
            with database.tenant(ACME, by=System(reason="test")) as tx:
                ledger.charge(tx, held.id, 10, 0, segment=segment)
        except ConflictError as error:
            return error.error_code
        return "charged"

    with ThreadPoolExecutor(THREADS) as pool:
        outcomes = Counter(pool.map(charge, range(THREADS)))
    assert outcomes == {"charged": 6, "reservation_exhausted": 2}
    with database.tenant(ACME, by=System(reason="test"), read_only=True) as tx:
        assert ledger.get(tx, held.id).charged_steps == 60
        assert ledger.view(tx, DATASET).epsilon_reserved == 0.0


def test_the_same_segment_from_many_threads_is_charged_once(database: Database) -> None:
    ledger = opened(database)
    with database.tenant(ACME, by=System(reason="test")) as tx:
        held = ledger.reserve(tx, DATASET, ObjectId("job_1"), PLAN)
    start = Barrier(THREADS)

    def charge(_number: int) -> int:
        start.wait()
        with database.tenant(ACME, by=System(reason="test")) as tx:
            return ledger.charge(tx, held.id, 10, 0, segment=0).charged_steps

    with ThreadPoolExecutor(THREADS) as pool:
        assert set(pool.map(charge, range(THREADS))) == {10}
