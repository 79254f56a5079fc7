"""Rows of training jobs, read within an open transaction: what a job is about, beside what the queue knows of it."""

from dataclasses import dataclass

from modelkeep_platform.core.ids import ObjectId, TenantId
from modelkeep_platform.storage.tables.training import training_jobs
from modelkeep_platform.storage.transactions import TenantTransaction


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What a job trains on, and the reservation that pays for it; none on public data.

    The reservation stands in the ledger of the dataset's owner, who may be another tenant than the job's.
    """

    dataset: str
    dataset_owner: TenantId
    dataset_id: ObjectId
    reservation: ObjectId | None


def subject_of(tx: TenantTransaction, job_id: str) -> Subject | None:
    """Return what a job of the transaction's tenant is about; None when the row is gone, which only damage explains."""
    row = tx.first(tx.select(training_jobs).where(training_jobs.c.job_id == job_id))
    if row is None:
        return None
    return Subject(
        dataset=row["dataset"],
        dataset_owner=TenantId(row["dataset_owner"]),
        dataset_id=ObjectId(row["dataset_id"]),
        reservation=row["reservation_id"],
    )
