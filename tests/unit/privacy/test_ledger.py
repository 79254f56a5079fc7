"""The ledger: write-once, reserve, charge, commit, release, fences, refusals."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fakes.core import ACME, GLOBEX, FakeClock, FakeEntropy
from modelkeep_platform.core.errors import (
    BudgetError,
    ConflictError,
    IntegrityError,
    ModelkeepError,
    UnavailableError,
    UnprocessableError,
)
from modelkeep_platform.core.ids import ObjectId
from modelkeep_platform.privacy.budgets import ReservationState
from modelkeep_platform.privacy.grid import fit_grid
from modelkeep_platform.privacy.ledger import BudgetLedger
from modelkeep_platform.privacy.plan import MechanismPlan, RanMechanism, calibrate
from modelkeep_platform.privacy.statements import CHARGES_SHOWN, RESERVATION
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.prepared import PreparedUpdate
from modelkeep_platform.storage.tables.privacy import privacy_budgets, privacy_reservations
from modelkeep_platform.storage.transactions import Row, System, TenantTransaction

DATASET = ObjectId("ds_1")
GRID = fit_grid(epsilon=2.5, delta=1e-5)


def plan(epsilon: float, *, sample_rate: float = 0.25, steps: int = 100) -> MechanismPlan:
    return calibrate(
        epsilon=epsilon, grid=GRID, sample_rate=sample_rate, steps=steps, clip_norm=0.5, n_public=455, delta=1e-5
    )


def largest_epsilon(tx: TenantTransaction, ledger: BudgetLedger, sample_rate: float, steps: int) -> float:
    shape: dict[str, Any] = {"sample_rate": sample_rate, "steps": steps, "clip_norm": 0.5, "n_public": 455}
    return ledger.plan(tx, DATASET, epsilon=1.0, **shape).largest_epsilon


def job(number: int) -> ObjectId:
    return ObjectId(f"job_{number}")


@pytest.fixture
def ledger(clock: FakeClock, entropy: FakeEntropy) -> BudgetLedger:
    return BudgetLedger(clock=clock, entropy=entropy)


@pytest.fixture
def tx(database: Database, ledger: BudgetLedger) -> Iterator[TenantTransaction]:
    with database.tenant(ACME, by=System(reason="test")) as tx:
        ledger.open(tx, DATASET, 2.5, 1e-5)
        yield tx


def refusal(call: Callable[..., object], *args: object, **kwargs: object) -> ModelkeepError:
    with pytest.raises(ModelkeepError) as raised:
        call(*args, **kwargs)
    return raised.value


def test_a_new_budget_is_unspent(tx: TenantTransaction, ledger: BudgetLedger) -> None:
    view = ledger.view(tx, DATASET)
    assert (view.epsilon, view.delta) == (2.5, 1e-5)
    assert (view.epsilon_spent, view.epsilon_reserved, view.charges) == (0.0, 0.0, ())


def test_a_budget_is_write_once(tx: TenantTransaction, ledger: BudgetLedger) -> None:
    error = refusal(ledger.open, tx, DATASET, 5.0, 1e-5)
    assert isinstance(error, ConflictError)
    assert error.error_code == "budget_exists"
    assert ledger.view(tx, DATASET).epsilon == 2.5


def test_the_grid_is_frozen_in_the_row(tx: TenantTransaction) -> None:
    row = tx.first(tx.select(privacy_budgets))
    assert row is not None
    assert row["grid"] == GRID.to_json()


@pytest.mark.parametrize("method", ["view", "plan", "reserve"])
def test_a_dataset_without_a_budget_is_refused(tx: TenantTransaction, ledger: BudgetLedger, method: str) -> None:
    public = ObjectId("ds_public")
    shape = {"epsilon": 1.0, "sample_rate": 0.5, "steps": 5, "clip_norm": 1.0, "n_public": 10}
    error = {
        "view": lambda: refusal(ledger.view, tx, public),
        "plan": lambda: refusal(ledger.plan, tx, public, **shape),
        "reserve": lambda: refusal(ledger.reserve, tx, public, job(1), plan(1.0)),
    }[method]()
    assert isinstance(error, UnprocessableError)
    assert error.error_code == "no_budget"


def test_what_held_nothing_and_took_nothing_is_not_shown(tx: TenantTransaction, ledger: BudgetLedger) -> None:
    released = ledger.reserve(tx, DATASET, job(1), plan(0.5), fence=1)
    ledger.release(tx, released.id, 1)
    charged = ledger.reserve(tx, DATASET, job(2), plan(0.5), fence=1)
    ledger.charge(tx, charged.id, 3, 1)
    ledger.release(tx, charged.id, 1)
    ledger.reserve(tx, DATASET, job(3), plan(0.5), fence=1)
    assert [(line.job_id, line.steps) for line in ledger.view(tx, DATASET).charges] == [(job(2), 3), (job(3), 0)]


def test_of_many_charges_the_newest_are_shown_oldest_first(tx: TenantTransaction, ledger: BudgetLedger) -> None:
    held = ledger.reserve(tx, DATASET, job(0), plan(0.2), fence=1)
    row = tx.first(RESERVATION, reservation_id=held.id)
    assert row is not None
    kept = {name: value for name, value in row.items() if name != "tenant_id"}
    for number in range(1, CHARGES_SHOWN + 2):
        again = {"reservation_id": f"res_{number}", "job_id": job(number), "created_at": row["created_at"] + number}
        tx.insert(privacy_reservations, **{**kept, **again})
    shown = [line.job_id for line in ledger.view(tx, DATASET).charges]
    assert shown == [job(number) for number in range(2, CHARGES_SHOWN + 2)]


def test_reserve_charge_commit(tx: TenantTransaction, ledger: BudgetLedger, clock: FakeClock) -> None:
    held = ledger.reserve(tx, DATASET, job(1), plan(2.0), fence=1)
    assert (held.steps, held.charged_steps, held.state) == (100, 0, ReservationState.OPEN)
    reserved = ledger.view(tx, DATASET)
    assert reserved.epsilon_spent == 0.0
    assert 1.99 < reserved.epsilon_reserved <= 2.0
    clock.advance(5)
    for segment in range(4):
        held = ledger.charge(tx, held.id, 25, 1, segment=segment)
    assert held.charged_steps == 100
    ran = RanMechanism(steps=100, noise_multiplier=held.plan.noise_multiplier, sample_rate=0.25, clip_norm=0.5)
    assert ledger.commit(tx, held.id, 1, ran=ran).state is ReservationState.COMMITTED
    view = ledger.view(tx, DATASET)
    assert view.epsilon_spent == reserved.epsilon_reserved
    assert view.epsilon_reserved == 0.0
    (line,) = view.charges
    assert dataclasses.asdict(line) == {
        "job_id": "job_1",
        "noise_multiplier": held.plan.noise_multiplier,
        "sample_rate": 0.25,
        "steps": 100,
        "reserved_steps": 0,
        "state": "committed",
        "at": 1_800_000_005,
    }


def test_a_charge_moves_from_reserved_to_spent(tx: TenantTransaction, ledger: BudgetLedger) -> None:
    held = ledger.reserve(tx, DATASET, job(1), plan(2.0))
    together = ledger.view(tx, DATASET).epsilon_reserved
    ledger.charge(tx, held.id, 40, 0)
    view = ledger.view(tx, DATASET)
    assert 0.0 < view.epsilon_spent < together
    assert view.epsilon_spent + view.epsilon_reserved == pytest.approx(together, abs=2e-6)


def test_the_epsilon_of_a_job_is_told_by_the_datasets_conversion(tx: TenantTransaction, ledger: BudgetLedger) -> None:
    held = ledger.reserve(tx, DATASET, job(1), plan(1.5))
    assert ledger.epsilon_of(tx, held) == 0.0
    ledger.charge(tx, held.id, 40, 0)
    other = ledger.reserve(tx, DATASET, job(2), plan(1.0))
    held = ledger.charge(tx, held.id, 60, 0)
    assert ledger.epsilon_of(tx, other) == 0.0
    assert 1.499 < ledger.epsilon_of(tx, held) <= 1.5
    assert ledger.epsilon_of(tx, held) == ledger.view(tx, DATASET).epsilon_spent


def test_release_returns_only_what_was_not_charged(tx: TenantTransaction, ledger: BudgetLedger) -> None:
    held = ledger.reserve(tx, DATASET, job(1), plan(2.0), fence=1)
    ledger.charge(tx, held.id, 50, 1, segment=0)
    spent = ledger.view(tx, DATASET).epsilon_spent
    released = ledger.release(tx, held.id, 2)
    assert released.state is ReservationState.RELEASED
    view = ledger.view(tx, DATASET)
    assert (view.epsilon_spent, view.epsilon_reserved) == (spent, 0.0)
    assert view.charges[0].steps == 50
    row = tx.first(tx.select(privacy_budgets))
    assert row is not None
    assert set(row["reserved"]) <= set("[0, ]")


def test_a_release_before_any_charge_returns_everything(tx: TenantTransaction, ledger: BudgetLedger) -> None:
    held = ledger.reserve(tx, DATASET, job(1), plan(2.5))
    ledger.release(tx, held.id, 0)
    assert ledger.view(tx, DATASET).epsilon_spent == 0.0
    ledger.reserve(tx, DATASET, job(2), plan(2.5))


def test_what_does_not_fit_is_refused_with_what_would(tx: TenantTransaction, ledger: BudgetLedger) -> None:
    first = ledger.reserve(tx, DATASET, job(1), plan(2.0))
    ledger.charge(tx, first.id, 100, 0)
    ledger.commit(tx, first.id, 0)
    before = ledger.view(tx, DATASET)
    error = refusal(ledger.reserve, tx, DATASET, job(2), plan(2.0))
    assert isinstance(error, BudgetError)
    assert error.error_code == "budget_exceeded"
    largest = error.details["largest_epsilon"]
    assert isinstance(largest, float)
    assert error.details == {
        "requested": 2.0,
        "largest_epsilon": largest,
        "epsilon_limit": 2.5,
        "epsilon_spent": before.epsilon_spent,
    }
    assert f"{largest:g}" in error.message
    assert ledger.view(tx, DATASET) == before
    assert largest == largest_epsilon(tx, ledger, 0.25, 100)
    held = ledger.reserve(tx, DATASET, job(2), plan(largest))
    assert held.state is ReservationState.OPEN
    assert ledger.view(tx, DATASET).epsilon_spent <= 2.5


def test_a_plan_says_what_will_happen(tx: TenantTransaction, ledger: BudgetLedger) -> None:
    shape: dict[str, Any] = {"sample_rate": 0.25, "steps": 100, "clip_norm": 0.5, "n_public": 455}
    first = ledger.plan(tx, DATASET, epsilon=2.0, **shape)
    assert first.mechanism == plan(2.0)
    assert (first.fits, first.epsilon_spent_before) == (True, 0.0)
    assert 2.499 < first.largest_epsilon <= 2.5
    assert first.epsilon_spent_after <= 2.0
    ledger.reserve(tx, DATASET, job(1), first.mechanism)
    second = ledger.plan(tx, DATASET, epsilon=2.0, **shape)
    assert not second.fits
    assert second.epsilon_spent_before == first.epsilon_spent_after
    assert 2.7 < second.epsilon_spent_after < 3.0
    third = ledger.plan(tx, DATASET, epsilon=second.largest_epsilon, **shape)
    assert third.fits
    assert ledger.view(tx, DATASET).epsilon_spent == 0.0


@pytest.mark.parametrize(("rate", "steps"), [(1.0, 1), (0.25, 100), (0.1, 150), (0.01, 2000), (0.001, 20_000)])
@pytest.mark.parametrize("spent", [0.5, 1.4, 2.2, 2.48])
def test_a_job_at_the_largest_epsilon_is_admitted(
    tx: TenantTransaction, ledger: BudgetLedger, rate: float, steps: int, spent: float
) -> None:
    ledger.reserve(tx, DATASET, job(1), plan(spent))
    largest = largest_epsilon(tx, ledger, rate, steps)
    assert largest == round(largest, 4)
    if largest > 0.0:
        ledger.reserve(tx, DATASET, job(2), plan(largest, sample_rate=rate, steps=steps))
    else:
        assert spent > 2.4


def test_a_replayed_reservation_is_the_same_one(tx: TenantTransaction, ledger: BudgetLedger) -> None:
    first = ledger.reserve(tx, DATASET, job(1), plan(2.0), fence=3)
    assert ledger.reserve(tx, DATASET, job(1), plan(2.0), fence=3) == first
    assert len(ledger.view(tx, DATASET).charges) == 1


def test_a_replayed_charge_is_charged_once(tx: TenantTransaction, ledger: BudgetLedger) -> None:
    held = ledger.reserve(tx, DATASET, job(1), plan(2.0))
    once = ledger.charge(tx, held.id, 10, 0, segment=0)
    assert ledger.charge(tx, held.id, 10, 0, segment=0) == once
    error = refusal(ledger.charge, tx, held.id, 11, 0, segment=0)
    assert error.error_code == "segment_mismatch"
    assert ledger.get(tx, held.id).charged_steps == 10


def test_charges_without_a_number_are_each_new(tx: TenantTransaction, ledger: BudgetLedger) -> None:
    held = ledger.reserve(tx, DATASET, job(1), plan(2.0))
    ledger.charge(tx, held.id, 10, 0, segment=1)
    ledger.charge(tx, held.id, 10, 0)
    assert ledger.charge(tx, held.id, 10, 0).charged_steps == 30


def test_a_restarted_worker_is_charged_again_for_the_same_segment(tx: TenantTransaction, ledger: BudgetLedger) -> None:
    held = ledger.reserve(tx, DATASET, job(1), plan(2.0), fence=1)
    ledger.charge(tx, held.id, 10, 1, segment=0)
    assert ledger.charge(tx, held.id, 10, 2, segment=0).charged_steps == 20


def test_more_steps_than_reserved_cannot_be_charged(tx: TenantTransaction, ledger: BudgetLedger) -> None:
    held = ledger.reserve(tx, DATASET, job(1), plan(2.0))
    ledger.charge(tx, held.id, 90, 0)
    error = refusal(ledger.charge, tx, held.id, 11, 0)
    assert error.error_code == "reservation_exhausted"
    assert ledger.get(tx, held.id).charged_steps == 90


@pytest.mark.parametrize("steps", [0, -5, 10**9])
def test_a_senseless_charge_is_refused(tx: TenantTransaction, ledger: BudgetLedger, steps: int) -> None:
    held = ledger.reserve(tx, DATASET, job(1), plan(2.0))
    assert refusal(ledger.charge, tx, held.id, steps, 0).error_code == "invalid_privacy_parameter"


def test_a_zombie_worker_is_refused_everywhere(tx: TenantTransaction, ledger: BudgetLedger) -> None:
    held = ledger.reserve(tx, DATASET, job(1), plan(2.0), fence=1)
    ledger.charge(tx, held.id, 10, 1, segment=0)
    ledger.charge(tx, held.id, 10, 2, segment=0)
    before = ledger.view(tx, DATASET)
    for call in (
        lambda: ledger.charge(tx, held.id, 10, 1, segment=1),
        lambda: ledger.charge(tx, held.id, 10, 1, segment=0),
        lambda: ledger.commit(tx, held.id, 1),
        lambda: ledger.release(tx, held.id, 1),
        lambda: ledger.reserve(tx, DATASET, job(1), plan(2.0), fence=1),
    ):
        error = refusal(call)
        assert isinstance(error, ConflictError)
        assert error.error_code == "stale_lease"
    assert ledger.view(tx, DATASET) == before
    assert ledger.charge(tx, held.id, 10, 2, segment=1).charged_steps == 30


def test_a_closed_reservation_stays_closed(tx: TenantTransaction, ledger: BudgetLedger) -> None:
    held = ledger.reserve(tx, DATASET, job(1), plan(2.0))
    ledger.release(tx, held.id, 0)
    for call in (ledger.commit, ledger.release):
        assert refusal(call, tx, held.id, 5).error_code == "reservation_closed"
    assert refusal(ledger.charge, tx, held.id, 1, 5).error_code == "reservation_closed"


def test_an_unknown_reservation_is_refused(tx: TenantTransaction, ledger: BudgetLedger) -> None:
    assert refusal(ledger.charge, tx, ObjectId("res_none"), 1, 0).error_code == "no_reservation"


def test_a_restarted_job_keeps_its_charges_and_reserves_anew(tx: TenantTransaction, ledger: BudgetLedger) -> None:
    first = ledger.reserve(tx, DATASET, job(1), plan(1.0), fence=1)
    ledger.charge(tx, first.id, 30, 1)
    spent = ledger.view(tx, DATASET).epsilon_spent
    second = ledger.reserve(tx, DATASET, job(1), plan(1.0), fence=2)
    assert second.id != first.id
    view = ledger.view(tx, DATASET)
    assert view.epsilon_spent == spent
    assert {(line.steps, line.state) for line in view.charges} == {(30, "released"), (0, "open")}
    assert ledger.reserve(tx, DATASET, job(1), plan(1.0), fence=2) == second


def test_a_plan_that_costs_more_than_it_says_is_refused(tx: TenantTransaction, ledger: BudgetLedger) -> None:
    honest = plan(2.0)
    for changed in (
        dataclasses.replace(honest, epsilon=1.0),
        dataclasses.replace(honest, noise_multiplier=1.0),
        dataclasses.replace(honest, steps=200),
        dataclasses.replace(honest, sample_rate=0.5),
        dataclasses.replace(honest, delta=1e-3),
    ):
        error = refusal(ledger.reserve, tx, DATASET, job(1), changed)
        assert isinstance(error, UnprocessableError)
        assert error.error_code == "plan_mismatch"
    assert ledger.view(tx, DATASET).charges == ()


def test_a_run_that_exceeds_its_charge_cannot_commit(tx: TenantTransaction, ledger: BudgetLedger) -> None:
    held = ledger.reserve(tx, DATASET, job(1), plan(2.0))
    ledger.charge(tx, held.id, 10, 0)
    ran = RanMechanism(steps=11, noise_multiplier=held.plan.noise_multiplier, sample_rate=0.25, clip_norm=0.5)
    error = refusal(ledger.commit, tx, held.id, 0, ran=ran)
    assert isinstance(error, IntegrityError)
    assert error.error_code == "ran_more_than_charged"
    assert ledger.get(tx, held.id).state is ReservationState.OPEN


def test_a_commit_returns_what_was_not_charged(tx: TenantTransaction, ledger: BudgetLedger) -> None:
    held = ledger.reserve(tx, DATASET, job(1), plan(2.0))
    ledger.charge(tx, held.id, 10, 0)
    ledger.commit(tx, held.id, 0)
    assert ledger.view(tx, DATASET).epsilon_reserved == 0.0


def test_a_lost_race_is_tried_again_and_a_hopeless_one_gives_up(
    tx: TenantTransaction, ledger: BudgetLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = tx.change
    lost = {"left": 3}

    def losing(statement: PreparedUpdate, **parameters: object) -> int:
        if lost["left"] > 0:
            lost["left"] -= 1
            return 0
        return change(statement, **parameters)

    monkeypatch.setattr(tx, "change", losing, raising=False)
    held = ledger.reserve(tx, DATASET, job(1), plan(1.0))
    lost["left"] = 3
    assert ledger.charge(tx, held.id, 10, 0).charged_steps == 10
    lost["left"] = 10**6
    for call in (lambda: ledger.charge(tx, held.id, 10, 0), lambda: ledger.reserve(tx, DATASET, job(2), plan(0.5))):
        error = refusal(call)
        assert isinstance(error, UnavailableError)
        assert error.error_code == "budget_busy"


def test_an_update_decided_on_old_numbers_changes_nothing(
    tx: TenantTransaction, ledger: BudgetLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Another writer moves the budget between each of the first five reads and the UPDATE that follows.
    real, moves = ledger._row, {"left": 5}

    def moving(inner: TenantTransaction, dataset_id: ObjectId) -> Row | None:
        row = real(inner, dataset_id)
        if moves["left"] and row is not None:
            moves["left"] -= 1
            inner.change(inner.update(privacy_budgets).values(version=row["version"] + 1))
        return row

    monkeypatch.setattr(ledger, "_row", moving)
    wanted = plan(2.0)
    ledger.reserve(tx, DATASET, job(1), wanted)
    row = tx.first(tx.select(privacy_budgets))
    assert row is not None
    assert (moves["left"], row["version"]) == (0, 7)
    assert json.loads(row["reserved"]) == list(wanted.cost(GRID))


def test_budgets_of_tenants_do_not_meet(database: Database, ledger: BudgetLedger) -> None:
    with database.tenant(ACME, by=System(reason="test")) as tx:
        ledger.open(tx, DATASET, 2.5, 1e-5)
        ledger.reserve(tx, DATASET, job(1), plan(2.0))
    with database.tenant(GLOBEX, by=System(reason="test")) as tx:
        assert refusal(ledger.view, tx, DATASET).error_code == "no_budget"
        ledger.open(tx, DATASET, 2.5, 1e-5)
        assert ledger.view(tx, DATASET).charges == ()
        assert tx.all(tx.select(privacy_reservations)) == []


def test_a_refused_reservation_leaves_no_trace_when_its_transaction_ends(
    database: Database, ledger: BudgetLedger
) -> None:
    with database.tenant(ACME, by=System(reason="test")) as tx:
        ledger.open(tx, DATASET, 2.5, 1e-5)
        first = ledger.reserve(tx, DATASET, job(1), plan(2.4), fence=1)
        ledger.charge(tx, first.id, 100, 1)
    with pytest.raises(BudgetError), database.tenant(ACME, by=System(reason="test")) as tx:
        ledger.reserve(tx, DATASET, job(1), plan(2.4), fence=2)
    with database.tenant(ACME, by=System(reason="test"), read_only=True) as tx:
        assert ledger.get(tx, first.id).state is ReservationState.OPEN
