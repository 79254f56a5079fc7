"""The budget ledger: reserve, charge each segment before its first noisy step, then commit or release.

What it guarantees
- One budget for a dataset, shared by all who may train on it; charged and reserved together always hold at some
  order of the frozen grid, so any interleaving of adaptively chosen jobs is (ε_G, δ)-DP (docs/adr/0050).
- Sums are of whole numbers, rounded up once: nothing undercounts. ε_G is write-once.
- What was charged never returns, whatever crashes. A release returns only what was not charged.
- Every move is a conditional UPDATE (`version`), not a property of one database's lock.
- A worker with a lower fencing number than the highest seen is refused (code ``stale_lease``).
- What was reserved in an earlier ledger epoch (before a restore, `privacy.epochs`) never moves again: it is charged,
  committed and released by nobody (code ``stale_ledger_epoch``), and stays reserved.

Every method runs in the caller's open transaction of the dataset's owner: the effect and its audit entry commit
together. The ledger decides no access and writes no audit entry itself.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from modelkeep_platform.core.errors import ConflictError, UnprocessableError
from modelkeep_platform.core.ids import ObjectId, new_object_id
from modelkeep_platform.core.ports import Clock, Entropy
from modelkeep_platform.privacy.budgets import BudgetView, PlannedJob, Reservation, ReservationState
from modelkeep_platform.privacy.checks import check_steps
from modelkeep_platform.privacy.grid import MICRO, OrderGrid, Vector, fit_grid
from modelkeep_platform.privacy.plan import (
    MechanismPlan,
    RanMechanism,
    assert_ran_within,
    calibrate,
    largest_that_fits,
)
from modelkeep_platform.privacy.refusals import (
    busy,
    exceeded,
    no_budget,
    refuse_earlier_epoch,
    refuse_frozen,
    refuse_lower_fence,
)
from modelkeep_platform.privacy.rows import (
    charge_view,
    dump_plan,
    dump_vector,
    load_vector,
    plus,
    reservation_of_row,
    shown,
    times,
)
from modelkeep_platform.privacy.statements import (
    BUDGET,
    LAST_SEGMENT,
    MOVE_BUDGET,
    MOVE_RESERVATION,
    NEWEST_CHARGES,
    RESERVATION,
    RESERVATIONS_OF_JOB,
    SEGMENT,
)
from modelkeep_platform.storage.tables.privacy import privacy_budgets, privacy_charges, privacy_reservations
from modelkeep_platform.storage.transactions import Row, TenantTransaction

_ATTEMPTS: Final = 32

_Move = Callable[[Vector, Vector], tuple[Vector, Vector]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """A reservation and its budget, as read in one transaction and found to be of one ledger epoch."""

    reservation: Reservation
    row: Row
    budget: Row


class BudgetLedger:
    """Keeps the privacy budgets of datasets.

    Args:
        clock: dates entries.
        entropy: makes reservation ids.
    """

    def __init__(self, *, clock: Clock, entropy: Entropy) -> None:
        self._clock = clock
        self._entropy = entropy

    def open(self, tx: TenantTransaction, dataset_id: ObjectId, epsilon: float, delta: float) -> BudgetView:
        """Open a dataset's budget, once and for all.

        Args:
            tx: a transaction of the dataset's owner.
            dataset_id: the dataset.
            epsilon: ε_G, kept in millionths, rounded down.
            delta: δ.

        Raises:
            UnprocessableError: a parameter outside its range.
            ConflictError: code ``budget_exists``: ε_G is write-once.
        """
        grid = fit_grid(epsilon=epsilon, delta=delta)
        if self._row(tx, dataset_id) is not None:
            message = "this dataset already has a privacy budget, and a budget never changes"
            raise ConflictError(message, code="budget_exists")
        zero = dump_vector((0,) * len(grid.orders))
        tx.insert(
            privacy_budgets,
            dataset_id=dataset_id,
            grid=grid.to_json(),
            charged=zero,
            reserved=zero,
            version=1,
            created_at=self._clock.now_s(),
            epoch=tx.ledger_epoch(),
        )
        return self.view(tx, dataset_id)

    def view(self, tx: TenantTransaction, dataset_id: ObjectId) -> BudgetView:
        """Return the budget, what is spent and reserved, and by whom.

        Raises:
            UnprocessableError: code ``no_budget``: the dataset has none, as public ones do.
        """
        grid, charged, reserved = self._state(tx, dataset_id)
        spent = grid.epsilon_units(charged)
        together = grid.epsilon_units(plus(charged, reserved))
        rows = tx.all(NEWEST_CHARGES, dataset_id=dataset_id)
        return BudgetView(
            dataset_id=dataset_id,
            epsilon=grid.epsilon_micro / MICRO,
            delta=grid.delta,
            epsilon_spent=shown(spent),
            epsilon_reserved=shown(together - spent),
            charges=tuple(charge_view(row) for row in reversed(rows)),
        )

    def plan(
        self,
        tx: TenantTransaction,
        dataset_id: ObjectId,
        *,
        epsilon: float,
        sample_rate: float,
        steps: int,
        clip_norm: float,
        n_public: int,
        unit: str = "row",
    ) -> PlannedJob:
        """Calibrate a job on the dataset's grid and say whether it would be admitted; reserve nothing.

        Raises:
            UnprocessableError: a parameter outside its range, or code ``no_budget`` or ``epsilon_too_small``.
        """
        grid, charged, reserved = self._state(tx, dataset_id)
        mechanism = calibrate(
            epsilon=epsilon,
            delta=grid.delta,
            sample_rate=sample_rate,
            steps=steps,
            clip_norm=clip_norm,
            n_public=n_public,
            unit=unit,
            grid=grid,
        )
        before = plus(charged, reserved)
        after = plus(before, mechanism.cost(grid))
        return PlannedJob(
            mechanism=mechanism,
            fits=grid.fits(after),
            largest_epsilon=largest_that_fits(grid, before, mechanism.sample_rate, mechanism.steps),
            epsilon_spent_before=grid.epsilon(before),
            epsilon_spent_after=grid.epsilon(after),
        )

    def reserve(
        self, tx: TenantTransaction, dataset_id: ObjectId, job_id: ObjectId, mechanism: MechanismPlan, fence: int = 0
    ) -> Reservation:
        """Reserve what the whole plan costs, or nothing.

        The same job asking again with the same fence gets its reservation back (a replayed request). With a
        higher fence (the job was restarted) its open reservation is released first: what it charged stays.

        Args:
            tx: a transaction of the dataset's owner.
            dataset_id: whose budget.
            job_id: who will hold it.
            mechanism: what will run; its cost is computed from σ, q and steps, not from the ε it claims.
            fence: the job's fencing number; 0 before any worker has it.

        Raises:
            BudgetError: it does not fit; nothing was spent. ``details`` has ``requested``, ``largest_epsilon``,
                ``epsilon_limit`` and ``epsilon_spent``.
            ConflictError: code ``stale_lease``: a higher fence was seen for this job; ``stale_ledger_epoch``: the job
                is from before a restore.
            UnprocessableError: code ``no_budget``, or ``plan_mismatch`` when the plan costs more than it claims.
        """
        budget = self._budget_row(tx, dataset_id)
        grid = OrderGrid.from_json(budget["grid"])
        if mechanism.delta != grid.delta or grid.epsilon(mechanism.cost(grid)) > mechanism.epsilon:
            message = "the plan costs more than it says on this dataset; plan the job again"
            raise UnprocessableError(message, code="plan_mismatch")
        row = self._newest(tx, job_id)
        if row is not None:
            earlier = reservation_of_row(row)
            refuse_earlier_epoch(earlier.epoch, budget)
            refuse_lower_fence(earlier, fence)
            if earlier.fence == fence and earlier.state is ReservationState.OPEN and earlier.plan == mechanism:
                return earlier
            if earlier.state is ReservationState.OPEN:
                self.release(tx, earlier.id, fence)
                budget = self._budget_row(tx, dataset_id)
        reservation_id = self._admit(tx, budget, grid, mechanism)
        now = self._clock.now_s()
        tx.insert(
            privacy_reservations,
            reservation_id=reservation_id,
            dataset_id=dataset_id,
            job_id=job_id,
            attempt=1 if row is None else row["attempt"] + 1,
            plan=dump_plan(mechanism),
            step_cost=dump_vector(mechanism.step_cost(grid)),
            steps=mechanism.steps,
            charged_steps=0,
            state=ReservationState.OPEN,
            fence=fence,
            version=1,
            created_at=now,
            updated_at=now,
            epoch=budget["epoch"],
        )
        return Reservation(
            id=reservation_id,
            dataset_id=dataset_id,
            job_id=job_id,
            plan=mechanism,
            steps=mechanism.steps,
            charged_steps=0,
            state=ReservationState.OPEN,
            fence=fence,
            epoch=budget["epoch"],
        )

    def charge(
        self, tx: TenantTransaction, reservation_id: ObjectId, steps: int, fence: int, *, segment: int | None = None
    ) -> Reservation:
        """Charge a segment of steps; commit it before the first of them runs.

        Args:
            tx: a transaction of the dataset's owner.
            reservation_id: what it is charged against.
            steps: how many steps, at least 1.
            fence: the worker's fencing number; a higher one than before takes the reservation over.
            segment: the segment's number. The same number again, from the same fence, charges nothing; without
                it, each call is a new segment. A restarted worker has another fence and is charged again.

        Raises:
            ConflictError: code ``stale_lease``, ``stale_ledger_epoch``, ``reservation_closed``,
                ``reservation_exhausted`` (more steps than reserved) or ``segment_mismatch`` (the same segment with
                another number of steps).
        """
        check_steps(steps)
        held = self._held(tx, reservation_id, fence)
        if segment is None:
            segment = self._next_segment(tx, reservation_id, fence)
        elif (charged := self._charged_in(tx, reservation_id, fence, segment)) is not None:
            if charged != steps:
                message = f"segment {segment} was charged with {charged} steps, not {steps}"
                raise ConflictError(message, code="segment_mismatch")
            return held.reservation
        changed = self._change(tx, reservation_id, fence, charged=steps, state=ReservationState.OPEN, read=held)
        tx.insert(
            privacy_charges,
            reservation_id=reservation_id,
            fence=fence,
            segment=segment,
            steps=steps,
            charged_at=self._clock.now_s(),
            epoch=changed.epoch,
        )
        return changed

    def commit(
        self, tx: TenantTransaction, reservation_id: ObjectId, fence: int, *, ran: RanMechanism | None = None
    ) -> Reservation:
        """Close a finished run; what was reserved and not charged returns.

        Args:
            tx: a transaction of the dataset's owner.
            reservation_id: the run's.
            fence: the worker's fencing number.
            ran: what sampler and noise report; compared with the plan and the charged steps.

        Raises:
            ConflictError: code ``stale_lease``, ``stale_ledger_epoch`` or ``reservation_closed``.
            IntegrityError: code ``ran_more_than_charged``; nothing changes and the result must be held.
        """
        held = self._held(tx, reservation_id, fence)
        if ran is not None:
            assert_ran_within(held.reservation.plan, ran, charged_steps=held.reservation.charged_steps)
        return self._change(tx, reservation_id, fence, charged=0, state=ReservationState.COMMITTED, read=held)

    def release(self, tx: TenantTransaction, reservation_id: ObjectId, fence: int) -> Reservation:
        """Close a run that failed, was cancelled or was fenced off; only what was not charged returns.

        Call it with the fence of the worker that says it stopped, or with a higher one, after which that worker
        can charge no more.

        Raises:
            ConflictError: code ``stale_lease``, ``stale_ledger_epoch`` or ``reservation_closed``.
        """
        return self._change(tx, reservation_id, fence, charged=0, state=ReservationState.RELEASED)

    def get(self, tx: TenantTransaction, reservation_id: ObjectId) -> Reservation:
        """Return a reservation; raises ConflictError (``no_reservation``) when there is none."""
        return reservation_of_row(self._reservation_row(tx, reservation_id))

    def epsilon_of(self, tx: TenantTransaction, reservation: Reservation) -> float:
        """Return ε of what this reservation was charged, alone, by the dataset's own conversion."""
        grid = self._state(tx, reservation.dataset_id)[0]
        return grid.epsilon(times(reservation.plan.step_cost(grid), reservation.charged_steps))

    def _newest(self, tx: TenantTransaction, job_id: ObjectId) -> Row | None:
        return tx.first(RESERVATIONS_OF_JOB, job_id=job_id)

    def _admit(self, tx: TenantTransaction, budget: Row, grid: OrderGrid, mechanism: MechanismPlan) -> ObjectId:
        refuse_frozen(budget)
        cost = mechanism.cost(grid)

        def add(charged: Vector, reserved: Vector) -> tuple[Vector, Vector]:
            # INVARIANT: charged and reserved together hold at some order.
            spent = plus(charged, reserved)
            if not grid.fits(plus(spent, cost)):
                raise exceeded(grid, spent, mechanism)
            return charged, plus(reserved, cost)

        self._move(tx, budget, add)
        return new_object_id(self._entropy, "res")

    def _change(
        self,
        tx: TenantTransaction,
        reservation_id: ObjectId,
        fence: int,
        *,
        charged: int,
        state: ReservationState,
        read: _Held | None = None,
    ) -> Reservation:
        # One conditional UPDATE of the reservation, then one of the budget, in one transaction. Rows that were read
        # just now serve the first attempt: were they out of date, the UPDATE would change nothing.
        for _ in range(_ATTEMPTS):
            held, read = read or self._held(tx, reservation_id, fence), None
            found = held.reservation
            if found.state is not ReservationState.OPEN:
                message = "the job's reservation is closed"
                raise ConflictError(message, code="reservation_closed")
            if charged > found.steps - found.charged_steps:
                message = f"{charged} steps are more than the {found.steps - found.charged_steps} still reserved"
                raise ConflictError(message, code="reservation_exhausted")
            after = dataclasses.replace(found, charged_steps=found.charged_steps + charged, state=state, fence=fence)
            changed = tx.change(
                MOVE_RESERVATION,
                of_reservation=reservation_id,
                read_version=held.row["version"],
                charged_steps=after.charged_steps,
                state=state,
                fence=fence,
                version=held.row["version"] + 1,
                updated_at=self._clock.now_s(),
            )
            if changed == 1:
                self._settle(tx, after, held, charged)
                return after
        raise busy()

    def _settle(self, tx: TenantTransaction, after: Reservation, held: _Held, charged: int) -> None:
        returned = 0 if after.state is ReservationState.OPEN else after.steps - after.charged_steps
        if charged == returned == 0:
            return
        step_cost = load_vector(held.row["step_cost"])

        def settle(spent: Vector, reserved: Vector) -> tuple[Vector, Vector]:
            return (
                plus(spent, times(step_cost, charged)),
                plus(reserved, times(step_cost, -charged - returned)),
            )

        self._move(tx, held.budget, settle)

    def _move(self, tx: TenantTransaction, read: Row, move: _Move) -> None:
        # The budget as it was read before serves the first attempt; each that is read anew must be of the same epoch.
        row = read
        for _ in range(_ATTEMPTS):
            charged, reserved = move(load_vector(row["charged"]), load_vector(row["reserved"]))
            changed = tx.change(
                MOVE_BUDGET,
                of_dataset=row["dataset_id"],
                read_version=row["version"],
                charged=dump_vector(charged),
                reserved=dump_vector(reserved),
                version=row["version"] + 1,
            )
            if changed == 1:
                return
            row = self._budget_row(tx, row["dataset_id"])
            refuse_earlier_epoch(read["epoch"], row)
        raise busy()

    def _held(self, tx: TenantTransaction, reservation_id: ObjectId, fence: int) -> _Held:
        row = self._reservation_row(tx, reservation_id)
        found = reservation_of_row(row)
        budget = self._budget_row(tx, found.dataset_id)
        refuse_earlier_epoch(found.epoch, budget)
        refuse_lower_fence(found, fence)
        return _Held(reservation=found, row=row, budget=budget)

    def _state(self, tx: TenantTransaction, dataset_id: ObjectId) -> tuple[OrderGrid, Vector, Vector]:
        row = self._budget_row(tx, dataset_id)
        return OrderGrid.from_json(row["grid"]), load_vector(row["charged"]), load_vector(row["reserved"])

    def _budget_row(self, tx: TenantTransaction, dataset_id: ObjectId) -> Row:
        row = self._row(tx, dataset_id)
        if row is None:
            raise no_budget()
        return row

    def _row(self, tx: TenantTransaction, dataset_id: ObjectId) -> Row | None:
        return tx.first(BUDGET, dataset_id=dataset_id)

    def _reservation_row(self, tx: TenantTransaction, reservation_id: ObjectId) -> Row:
        row = tx.first(RESERVATION, reservation_id=reservation_id)
        if row is None:
            message = "the job has no reservation; reserve before charging"
            raise ConflictError(message, code="no_reservation")
        return row

    def _charged_in(self, tx: TenantTransaction, reservation_id: ObjectId, fence: int, segment: int) -> int | None:
        row = tx.first(SEGMENT, reservation_id=reservation_id, fence=fence, segment=segment)
        return None if row is None else row["steps"]

    def _next_segment(self, tx: TenantTransaction, reservation_id: ObjectId, fence: int) -> int:
        row = tx.first(LAST_SEGMENT, reservation_id=reservation_id, fence=fence)
        return 0 if row is None or row["segment"] is None else row["segment"] + 1
