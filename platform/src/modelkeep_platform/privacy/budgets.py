"""What the ledger shows: views of a budget, its reservations and charges, and a planned job."""

from dataclasses import dataclass
from enum import StrEnum

from modelkeep_platform.core.ids import ObjectId
from modelkeep_platform.privacy.plan import MechanismPlan


class ReservationState(StrEnum):
    """`open` may still be charged; `committed` and `released` have returned what was not charged."""

    OPEN = "open"
    COMMITTED = "committed"
    RELEASED = "released"


class Freeze(StrEnum):
    """Why nothing may be reserved of a budget: not at all, `restored` until compared, `exhausted` for good."""

    NONE = ""
    RESTORED = "restored"
    EXHAUSTED = "exhausted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """A job's claim on the budget, and how much of it was charged.

    Args:
        id: its random id.
        dataset_id: whose budget.
        job_id: who holds it.
        plan: what is charged, step by step.
        steps: steps reserved.
        charged_steps: steps charged so far; they never come back.
        state: see `ReservationState`.
        fence: the highest fencing number seen; lower ones are refused.
        epoch: the number of the ledger epoch it was reserved in; in a later one it never moves again.
    """

    id: ObjectId
    dataset_id: ObjectId
    job_id: ObjectId
    plan: MechanismPlan
    steps: int
    charged_steps: int
    state: ReservationState
    fence: int
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeView:
    """One job's line in a budget: what it was charged, and what it still holds reserved (in steps)."""

    job_id: ObjectId
    noise_multiplier: float
    sample_rate: float
    steps: int
    reserved_steps: int
    state: ReservationState
    at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetView:
    """A dataset's budget, by the one conversion.

    Args:
        dataset_id: whose.
        epsilon: ε_G, the most that may ever be lost.
        delta: δ.
        epsilon_spent: ε of everything charged, rounded up to a millionth. Budgets do not subtract: what a job may
            still get is `PlannedJob.largest_epsilon`, which depends on its shape.
        epsilon_reserved: how much `epsilon_spent` would grow if everything reserved were charged.
        charges: a line for each reservation that holds or was charged anything, oldest first; the newest 1 000.
    """

    dataset_id: ObjectId
    epsilon: float
    delta: float
    epsilon_spent: float
    epsilon_reserved: float
    charges: tuple[ChargeView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedJob:
    """What a job would cost; nothing is reserved.

    Args:
        mechanism: the calibrated plan.
        fits: whether it would be admitted now.
        largest_epsilon: the largest ε another job of this shape (q, steps) could get now; 0.0 when none.
        epsilon_spent_before: ε of what is charged and reserved now.
        epsilon_spent_after: the same with this job.
    """

    mechanism: MechanismPlan
    fits: bool
    largest_epsilon: float
    epsilon_spent_before: float
    epsilon_spent_after: float
