"""Why the ledger refuses: one sentence and one code for each reason."""

from modelkeep_platform.core.errors import BudgetError, ConflictError, UnavailableError, UnprocessableError
from modelkeep_platform.privacy.budgets import Freeze, Reservation
from modelkeep_platform.privacy.grid import MICRO, OrderGrid, Vector
from modelkeep_platform.privacy.plan import MechanismPlan, largest_that_fits
from modelkeep_platform.storage.transactions import Row


def refuse_lower_fence(found: Reservation, fence: int) -> None:
    """Raise ConflictError (``stale_lease``) when a higher fencing number was seen."""
    if fence < found.fence:
        message = "another worker has taken this job over; stop"
        raise ConflictError(message, code="stale_lease")


def refuse_earlier_epoch(epoch: int, budget: Row) -> None:
    """Raise ConflictError (``stale_ledger_epoch``) when the budget has come to another ledger epoch than `epoch`."""
    if epoch != budget["epoch"]:
        message = (
            "the platform was restored since the job reserved; nothing of it is charged or returned; start the job anew"
        )
        raise ConflictError(message, code="stale_ledger_epoch")


def refuse_frozen(budget: Row) -> None:
    """Raise BudgetError (``budget_frozen``) unless something may be reserved; ``details`` has the ``reason``."""
    if budget["frozen"] == Freeze.NONE:
        return
    if budget["frozen"] == Freeze.RESTORED:
        message = "the platform was restored from a backup; training waits until budgets were compared with the log"
    else:
        message = "what this budget lost after the backup that was restored cannot be known; it counts as spent"
    raise BudgetError(message, code="budget_frozen", details={"reason": budget["frozen"]})


def exceeded(grid: OrderGrid, spent: Vector, mechanism: MechanismPlan) -> BudgetError:
    """Say that a plan does not fit on top of `spent`, and what would."""
    largest = largest_that_fits(grid, spent, mechanism.sample_rate, mechanism.steps)
    offer = f"the largest that fits is {largest:g}" if largest > 0.0 else "no job of this shape fits any more"
    return BudgetError(
        f"`epsilon` {mechanism.epsilon:g} with {mechanism.steps} steps at sampling rate {mechanism.sample_rate:g} "
        f"exceeds what is left of this dataset's budget of {grid.epsilon_micro / MICRO:g}; {offer}",
        details={
            "requested": mechanism.epsilon,
            "largest_epsilon": largest,
            "epsilon_limit": grid.epsilon_micro / MICRO,
            "epsilon_spent": grid.epsilon(spent),
        },
    )


def no_budget() -> UnprocessableError:
    """Say that the dataset has none, as public ones do."""
    return UnprocessableError("this dataset has no privacy budget; train on it without `privacy`", code="no_budget")


def busy() -> UnavailableError:
    """Say that others changed the budget each time it was tried."""
    return UnavailableError("the budget is being changed by others; try again", code="budget_busy")
