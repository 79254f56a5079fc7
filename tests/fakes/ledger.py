"""What tests ask of the budget ledger that the platform knows otherwise."""

from modelkeep_platform.core.ids import ObjectId
from modelkeep_platform.privacy.budgets import Reservation
from modelkeep_platform.privacy.ledger import BudgetLedger
from modelkeep_platform.privacy.statements import RESERVATIONS_OF_JOB
from modelkeep_platform.storage.transactions import TenantTransaction


def newest_of_job(ledger: BudgetLedger, tx: TenantTransaction, job_id: ObjectId) -> Reservation | None:
    """Return the job's newest reservation, if it has one; on the platform its id is in the job's row."""
    row = tx.first(RESERVATIONS_OF_JOB, job_id=job_id)
    return None if row is None else ledger.get(tx, row["reservation_id"])
