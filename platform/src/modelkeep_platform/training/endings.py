"""How a job ends: one transaction for its version, its budget, its log, its state and its audit entry, or nothing.

A job ends once. Whoever ends it holds its lease, or fences off whoever held it, and the UPDATE that ends it finds it
running; so of a cancellation, a lapse and a success exactly one happens, whatever their order.

- It succeeds: the version becomes visible, the reservation is committed against what ran, the job names its version.
- It ends otherwise: what was never charged returns, and the version that it began is dropped. What was charged stays.

Bytes go after the transaction, and no key opens them by then: what a crash leaves is cleared by `uploads.orphans`.
"""

import logging
from contextlib import ExitStack
from typing import Final

from modelkeep_platform.core.callers import TenantCaller
from modelkeep_platform.core.events import Event, Outcome
from modelkeep_platform.core.ids import ObjectId, TenantId
from modelkeep_platform.core.ports import EpochSource, Recorder, Sealer
from modelkeep_platform.core.refs import Kind, ResourceRef
from modelkeep_platform.jobs.queue import Job, JobQueue, JobState, Lease, StaleLeaseError
from modelkeep_platform.models.trained import TrainedModels, TrainedVersion
from modelkeep_platform.privacy.budgets import ReservationState
from modelkeep_platform.privacy.ledger import BudgetLedger
from modelkeep_platform.privacy.plan import RanMechanism
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.transactions import PlatformTransaction, TenantTransaction
from modelkeep_platform.training.heartbeat import LEASE_S, CancelledError
from modelkeep_platform.training.rows import subject_of
from modelkeep_platform.uploads.artifacts import Artifacts
from modelkeep_platform.workers.errors import FrameError

LEFTOVERS_S: Final = 24 * 3600
_OUTCOMES: Final = {
    JobState.SUCCEEDED: Outcome.DONE,
    JobState.FAILED: Outcome.FAILED,
    JobState.CANCELLED: Outcome.ABANDONED,
}

_log = logging.getLogger(__name__)


class JobEndings:
    """Ends jobs.

    Args:
        database: where jobs are.
        queue: keeps them.
        ledger: takes back what was reserved for them.
        trained: shows or drops what they made.
        artifacts: their checkpoints and weights.
        sealer: destroys their keys.
        recorder: writes how they ended.
        epoch: moved when a version becomes visible.
    """

    def __init__(
        self,
        *,
        database: Database,
        queue: JobQueue,
        ledger: BudgetLedger,
        trained: TrainedModels,
        artifacts: Artifacts,
        sealer: Sealer,
        recorder: Recorder,
        epoch: EpochSource,
    ) -> None:
        self._database = database
        self._queue = queue
        self._ledger = ledger
        self._trained = trained
        self._artifacts = artifacts
        self._sealer = sealer
        self._recorder = recorder
        self._epoch = epoch

    def succeed(
        self, lease: Lease, made: TrainedVersion, *, ran: RanMechanism | None, epsilon_charged: float | None
    ) -> None:
        """End a job with the version that it made.

        Args:
            lease: the holder's lease.
            made: the version, its bytes stored.
            ran: what ran of a private job; None on public data.
            epsilon_charged: ε of all its steps.

        Raises:
            CancelledError: its owner cancelled it before; nothing became visible.
            StaleLeaseError: the lease is lost; nothing became visible.
            ConflictError: the model was deleted meanwhile.
            IntegrityError: what ran is not what was charged; the result is held.
        """
        job = lease.job
        with self._database.platform() as tx:
            own = tx.as_tenant(job.tenant)
            # INVARIANT: version, budget and job end under a lease that holds now and a job that nobody cancelled; the
            # row stays locked from here to the commit, so whoever fences off or cancels comes before or after it all.
            if self._queue.renew(own, lease, lease_s=LEASE_S):
                raise CancelledError
            self._trained.publish(own, made, job_id=ObjectId(job.id))
            self._commit(tx, own, lease, ran)
            self._queue.progress(own, lease, step=job.steps, epsilon_charged=epsilon_charged)
            self._queue.log(own, lease, f"trained; `{job.name}` version {made.version}")
            self._queue.finish(own, lease, JobState.SUCCEEDED, result_version=made.version)
            self._sealer.destroy_key(own, job.tenant, ObjectId(job.id))
            self._record(tx, job, JobState.SUCCEEDED, fence=lease.fence)
        self._epoch.refresh()
        self._artifacts.discard(job.tenant, ObjectId(job.id))

    def end(
        self, lease: Lease, state: JobState, error: tuple[str, str] | None = None, *, fence_off: bool = False
    ) -> bool:
        """End a job that did not succeed; its worker is gone, or is fenced off here.

        Args:
            lease: the holder's lease.
            state: `failed` or `cancelled`.
            error: code and message, without data.
            fence_off: take the job from a holder whose lease is over.

        Returns:
            Whether it was ended here: another may have ended it, or hold it.
        """
        job = lease.job
        try:
            with self._database.platform() as tx:
                own = tx.as_tenant(job.tenant)
                if fence_off:
                    lease = self._queue.fence_off(own, lease)
                found = self._queue.find(own, job.id)
                if found is not None and found.cancel:
                    # Whoever was told that it is cancelled finds it cancelled, whatever died before its worker heard.
                    state, error = JobState.CANCELLED, None
                self._queue.finish(own, lease, state, error=error)
                self._release(tx, own, job.id, lease.fence)
                dropped = self._trained.drop(own, job.id)
                self._record(tx, job, state, fence=lease.fence, error=error)
        except StaleLeaseError:
            _log.warning("job %s was ended by another", job.id)
            return False
        if dropped is not None:
            self._artifacts.discard(job.tenant, *dropped)
        return True

    def cancel(self, tx: PlatformTransaction, job: Job, *, by: TenantCaller) -> bool:
        """End a job that waits, in `tx`; ask one that runs to end.

        Returns:
            Whether it ended here: call `discard` when `tx` is committed.
        """
        own = tx.as_tenant(job.tenant)
        if not self._queue.request_cancel(own, job.id):
            return False
        found = self._queue.find(own, job.id)
        if found is None or found.state is not JobState.CANCELLED:
            return False
        # It ended in this very transaction: nobody had claimed it, and nobody will.
        self._release(tx, own, job.id, found.fence + 1)
        self._sealer.destroy_key(own, job.tenant, ObjectId(job.id))
        self._record(tx, job, JobState.CANCELLED, fence=found.fence, by=by)
        return True

    def discard(self, job: Job) -> None:
        """Delete the checkpoints of a job that ended while it waited; no key opens them by now."""
        self._artifacts.discard(job.tenant, ObjectId(job.id))

    def clear_leftovers(self) -> int:
        """Delete what jobs that failed or were cancelled a day ago had stored; return how many jobs'."""
        with self._database.platform(read_only=True) as tx:
            found = self._queue.leftovers(tx, older_s=LEFTOVERS_S)
        # Each by itself: one that cannot be cleared away keeps none behind it from being.
        with ExitStack() as each:
            for tenant, job_id in found:
                each.callback(self._clear, tenant, job_id)
        return len(found)

    def _clear(self, tenant: TenantId, job_id: str) -> None:
        with self._database.platform() as tx:
            own = tx.as_tenant(tenant)
            self._queue.forget_stored(own, job_id)
            # Of a job that a restore ended, nobody has dropped what it began to make.
            self._trained.drop(own, job_id)
            self._sealer.destroy_key(own, tenant, ObjectId(job_id))
            tx.bump_epoch()
        self._artifacts.discard(tenant, ObjectId(job_id))

    def _commit(self, tx: PlatformTransaction, own: TenantTransaction, lease: Lease, ran: RanMechanism | None) -> None:
        paid = _reservation(tx, own, lease.job.id)
        # INVARIANT: nothing is released whose steps were not all charged before they ran.
        if (ran is None) != (paid is None):
            raise FrameError("the worker does not say what ran, and was ended")
        if paid is not None:
            self._ledger.commit(*paid, lease.fence, ran=ran)

    def _release(self, tx: PlatformTransaction, own: TenantTransaction, job_id: str, fence: int) -> None:
        paid = _reservation(tx, own, job_id)
        if paid is not None and self._ledger.get(*paid).state is ReservationState.OPEN:
            self._ledger.release(*paid, fence)

    def _record(
        self,
        tx: PlatformTransaction,
        job: Job,
        state: JobState,
        *,
        fence: int,
        error: tuple[str, str] | None = None,
        by: TenantCaller | None = None,
    ) -> None:
        facts: dict[str, str | int | bool] = {"state": str(state), "fence": fence}
        if error is not None:
            facts["error"] = error[0]
        event = Event(
            tenant=job.tenant,
            action="job:end",
            outcome=_OUTCOMES[state],
            actor=by,
            ref=ResourceRef(owner=job.tenant, kind=Kind.JOB, object_id=ObjectId(job.id)),
            facts=facts,
        )
        self._recorder.record(tx, event)


def _reservation(
    tx: PlatformTransaction, own: TenantTransaction, job_id: str
) -> tuple[TenantTransaction, ObjectId] | None:
    """Return a job's reservation with the same transaction over its ledger: that of the dataset's owner."""
    subject = subject_of(own, job_id)
    if subject is None or subject.reservation is None:
        return None
    return tx.as_tenant(subject.dataset_owner), subject.reservation
