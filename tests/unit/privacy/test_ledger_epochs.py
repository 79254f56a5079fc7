"""A restore begins a new ledger epoch: what was reserved before is charged, committed and returned by nobody."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from fakes.core import ACME, GLOBEX, FakeClock, FakeEntropy
from modelkeep_platform.core.errors import BudgetError, ConflictError, IntegrityError
from modelkeep_platform.core.ids import ObjectId
from modelkeep_platform.privacy.budgets import BudgetView, Reservation
from modelkeep_platform.privacy.epochs import begin_restored_epoch, current_epoch, end_freeze
from modelkeep_platform.privacy.grid import fit_grid
from modelkeep_platform.privacy.ledger import BudgetLedger
from modelkeep_platform.privacy.plan import MechanismPlan, RanMechanism, calibrate
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.tables.privacy import (
    ledger_epochs,
    privacy_budgets,
    privacy_charges,
    privacy_reservations,
)
from modelkeep_platform.storage.transactions import System, TenantTransaction
from modelkeep_platform.telemetry.system import SystemEntropy

DATASET, JOB = ObjectId("ds_1"), ObjectId("job_1")
GRID = fit_grid(epsilon=2.5, delta=1e-5)
BY = System(reason="test")


def plan(epsilon: float) -> MechanismPlan:
    return calibrate(epsilon=epsilon, grid=GRID, sample_rate=0.25, steps=100, clip_norm=0.5, n_public=455, delta=1e-5)


RAN = RanMechanism(steps=40, noise_multiplier=plan(1.0).noise_multiplier, sample_rate=0.25, clip_norm=0.5)


@pytest.fixture
def ledger(clock: FakeClock, entropy: FakeEntropy) -> BudgetLedger:
    return BudgetLedger(clock=clock, entropy=entropy)


@pytest.fixture
def held(database: Database, ledger: BudgetLedger) -> Reservation:
    """Forty of a hundred steps charged, under the fence 1."""
    with database.tenant(ACME, by=BY) as tx:
        ledger.open(tx, DATASET, 2.5, 1e-5)
        reserved = ledger.reserve(tx, DATASET, JOB, plan(1.0), fence=1)
        return ledger.charge(tx, reserved.id, 40, 1, segment=0)


def restored(database: Database, *, freed: bool | None = None) -> None:
    with database.platform() as tx:
        begin_restored_epoch(tx, clock=FakeClock(), entropy=SystemEntropy())
        if freed is not None:
            end_freeze(tx, freed=freed)


def everything(database: Database) -> list[list[dict[str, Any]]]:
    tables = (privacy_budgets, privacy_reservations, privacy_charges)
    with database.platform(read_only=True) as tx:
        return [[dict(row) for row in tx.all(sa.select(table))] for table in tables]


def shown(database: Database, ledger: BudgetLedger) -> BudgetView:
    with database.tenant(ACME, by=BY, read_only=True) as tx:
        return ledger.view(tx, DATASET)


MOVES: dict[str, Callable[[BudgetLedger, TenantTransaction, ObjectId], object]] = {
    "charge": lambda ledger, tx, held: ledger.charge(tx, held, 10, 1, segment=1),
    "charge of the segment it was charged for": lambda ledger, tx, held: ledger.charge(tx, held, 40, 1, segment=0),
    "charge without a number": lambda ledger, tx, held: ledger.charge(tx, held, 10, 1),
    "charge under a higher fence": lambda ledger, tx, held: ledger.charge(tx, held, 10, 9, segment=0),
    "charge under a lower fence": lambda ledger, tx, held: ledger.charge(tx, held, 10, 0, segment=0),
    "commit": lambda ledger, tx, held: ledger.commit(tx, held, 1),
    "commit of what ran": lambda ledger, tx, held: ledger.commit(tx, held, 1, ran=RAN),
    "release": lambda ledger, tx, held: ledger.release(tx, held, 1),
    "release under a higher fence": lambda ledger, tx, held: ledger.release(tx, held, 9),
}


@pytest.mark.parametrize("freed", [None, True, False], ids=["frozen", "freed", "exhausted"])
@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES.keys())
def test_what_was_reserved_before_a_restore_never_moves_again(
    database: Database,
    ledger: BudgetLedger,
    held: Reservation,
    move: Callable[[BudgetLedger, TenantTransaction, ObjectId], object],
    freed: bool | None,
) -> None:
    restored(database, freed=freed)
    before = everything(database)
    with database.tenant(ACME, by=BY) as tx, pytest.raises(ConflictError) as raised:
        move(ledger, tx, held.id)
    assert raised.value.error_code == "stale_ledger_epoch"
    assert everything(database) == before


@pytest.mark.parametrize("fence", [1, 2], ids=["the same fence", "restarted"])
@pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
def test_a_job_from_before_a_restore_reserves_nothing(
    database: Database, ledger: BudgetLedger, held: Reservation, fence: int, closed: bool
) -> None:
    if closed:
        with database.tenant(ACME, by=BY) as tx:
            ledger.commit(tx, held.id, 1)
    restored(database, freed=True)
    before = everything(database)
    with database.tenant(ACME, by=BY) as tx, pytest.raises(ConflictError) as raised:
        ledger.reserve(tx, DATASET, JOB, plan(1.0), fence)
    assert raised.value.error_code == "stale_ledger_epoch"
    assert everything(database) == before


def test_what_was_reserved_counts_as_spent_for_good(
    database: Database, ledger: BudgetLedger, held: Reservation
) -> None:
    before = shown(database, ledger)
    assert before.epsilon_reserved > 0
    for _ in range(2):
        restored(database, freed=True)
        after = shown(database, ledger)
        assert (after.epsilon_spent, after.epsilon_reserved) == (before.epsilon_spent, before.epsilon_reserved)
    # It would fit on top of what was charged, had the rest come back.
    wanted, step = plan(2.35), plan(1.0).step_cost(GRID)
    assert GRID.fits([40 * unit + cost for unit, cost in zip(step, wanted.cost(GRID), strict=True)])
    with database.tenant(ACME, by=BY) as tx, pytest.raises(BudgetError) as raised:
        ledger.reserve(tx, DATASET, ObjectId("job_2"), wanted)
    assert raised.value.error_code == "budget_exceeded"


def test_new_jobs_are_of_the_new_epoch(database: Database, ledger: BudgetLedger, held: Reservation) -> None:
    restored(database, freed=True)
    with database.tenant(ACME, by=BY) as tx:
        new = ledger.reserve(tx, DATASET, ObjectId("job_2"), plan(1.0), fence=1)
        ledger.charge(tx, new.id, 40, 1, segment=0)
        assert ledger.commit(tx, new.id, 1, ran=RAN).epoch == 2
    assert (held.epoch, new.epoch) == (1, 2)
    budgets, reservations, charges = everything(database)
    assert [row["epoch"] for row in budgets] == [2]
    assert {row["reservation_id"]: row["epoch"] for row in reservations} == {held.id: 1, new.id: 2}
    assert {row["reservation_id"]: row["epoch"] for row in charges} == {held.id: 1, new.id: 2}


def test_a_frozen_budget_gives_nothing_to_new_jobs(database: Database, ledger: BudgetLedger, held: Reservation) -> None:
    for freed, reason in ((None, "restored"), (False, "exhausted")):
        restored(database, freed=freed)
        with database.tenant(ACME, by=BY) as tx, pytest.raises(BudgetError) as raised:
            ledger.reserve(tx, DATASET, ObjectId("job_2"), plan(0.5))
        assert (raised.value.error_code, raised.value.details) == ("budget_frozen", {"reason": reason})


def test_an_exhausted_budget_stays_so_through_another_restore(
    database: Database, ledger: BudgetLedger, held: Reservation
) -> None:
    restored(database, freed=False)
    restored(database, freed=True)
    with database.tenant(ACME, by=BY) as tx, pytest.raises(BudgetError) as raised:
        ledger.reserve(tx, DATASET, ObjectId("job_2"), plan(0.5))
    assert raised.value.details == {"reason": "exhausted"}


def test_a_budget_opened_after_a_restore_is_of_its_epoch_and_free(database: Database, ledger: BudgetLedger) -> None:
    restored(database)
    with database.tenant(GLOBEX, by=BY) as tx:
        ledger.open(tx, DATASET, 2.5, 1e-5)
        new = ledger.reserve(tx, DATASET, JOB, plan(1.0))
        assert ledger.charge(tx, new.id, 10, 0, segment=0).epoch == 2


def test_a_process_that_stayed_connected_is_refused(
    database: Database, ledger: BudgetLedger, held: Reservation
) -> None:
    url = str(database.engine.url)
    still_up = Database(url)
    with still_up.tenant(ACME, by=BY, read_only=True) as tx:
        assert ledger.get(tx, held.id) == held
    restored(database, freed=True)
    with still_up.tenant(ACME, by=BY) as tx, pytest.raises(ConflictError) as raised:
        ledger.release(tx, held.id, 1)
    assert raised.value.error_code == "stale_ledger_epoch"
    still_up.close()


@pytest.fixture
def overtaken(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[TenantTransaction]:
    """A transaction whose first conditional UPDATE of a budget comes after a restore that it did not see.

    With SQLite's lock that cannot happen; the ledger does not rest on it.
    """
    with database.platform() as platform:
        tx = platform.as_tenant(ACME)
        change, seen = tx.change, {"restored": False}

        def late(statement: Any, **parameters: object) -> int:
            if "charged" in parameters and not seen["restored"]:
                seen["restored"] = True
                begin_restored_epoch(platform, clock=FakeClock(), entropy=SystemEntropy())
            return change(statement, **parameters)

        monkeypatch.setattr(tx, "change", late)
        yield tx


@pytest.mark.parametrize("how", ["charge", "release", "reserve"])
def test_a_move_that_a_restore_overtakes_is_refused(
    held: Reservation, overtaken: TenantTransaction, ledger: BudgetLedger, how: str
) -> None:
    moves: dict[str, Callable[[], object]] = {
        "charge": lambda: ledger.charge(overtaken, held.id, 10, 1, segment=1),
        "release": lambda: ledger.release(overtaken, held.id, 1),
        "reserve": lambda: ledger.reserve(overtaken, DATASET, ObjectId("job_2"), plan(0.5)),
    }
    with pytest.raises(ConflictError) as raised:
        moves[how]()
    assert raised.value.error_code == "stale_ledger_epoch"


def test_the_number_grows_by_one_and_the_id_is_new(database: Database, clock: FakeClock) -> None:
    with database.platform() as tx:
        first = current_epoch(tx)
        assert (first.number, first.reason) == (1, "installed")
        for number in (2, 3):
            begun, _ = begin_restored_epoch(tx, clock=clock, entropy=SystemEntropy())
            assert (begun.number, begun.reason, begun.began_at) == (number, "restored", clock.now_s())
            assert begun == current_epoch(tx)
            assert tx.ledger_epoch() == number
            assert begun.facts() == {"ledger_epoch": number, "ledger_epoch_id": begun.id}
        rows = tx.all(sa.select(ledger_epochs).order_by(ledger_epochs.c.number))
    assert [row["number"] for row in rows] == [1, 2, 3]
    assert len({row["id"] for row in rows}) == 3


def test_two_restores_of_one_backup_have_one_number_and_two_ids(
    database: Database, ledger: BudgetLedger, held: Reservation
) -> None:
    ids = set()
    for _ in range(2):
        with pytest.raises(LookupError), database.platform() as tx:  # rolled back: the backup stays what it was
            begun, frozen = begin_restored_epoch(tx, clock=FakeClock(), entropy=SystemEntropy())
            assert (begun.number, frozen) == (2, 1)
            ids.add(begun.id)
            raise LookupError
    assert len(ids) == 2


def test_an_epoch_cannot_be_begun_twice(database: Database) -> None:
    with pytest.raises(sa.exc.IntegrityError), database.platform() as tx:
        tx.execute(sa.insert(ledger_epochs).values(number=1, id="led_again", began_at=0, reason="restored"))


def test_a_ledger_without_an_epoch_opens_nothing(database: Database, ledger: BudgetLedger) -> None:
    with database.platform() as tx:
        tx.execute(sa.delete(ledger_epochs))
    with database.platform() as tx, pytest.raises(IntegrityError) as raised:
        current_epoch(tx)
    assert raised.value.error_code == "ledger_epoch_missing"
    with database.tenant(ACME, by=BY) as own, pytest.raises(IntegrityError) as raised:
        ledger.open(own, DATASET, 2.5, 1e-5)
    assert raised.value.error_code == "ledger_epoch_missing"
