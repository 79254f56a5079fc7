"""The dispatcher: claims jobs and sees each through its worker, charging every segment before its first noisy step.

Each thread runs one job at a time. Whatever ends a job, the order is the same: the worker is killed, so that it can do
nothing more; then one transaction returns what was not charged and ends the job. A job whose lease ran out (its server
died) is ended the same way by whoever finds it; what it was charged stays charged.
"""

import logging
import threading
import time
from typing import Final, Protocol

from modelkeep_platform.core.errors import ModelkeepError
from modelkeep_platform.core.events import Event, Outcome
from modelkeep_platform.core.ids import ObjectId
from modelkeep_platform.core.ports import Entropy, Recorder
from modelkeep_platform.core.refs import Kind, ResourceRef
from modelkeep_platform.jobs.queue import JobState, Lease, StaleLeaseError
from modelkeep_platform.privacy.budgets import ReservationState
from modelkeep_platform.storage.transactions import System, TenantTransaction
from modelkeep_platform.training.run import LEASE_S, CancelledError, Parts, Run, StoppingError
from modelkeep_platform.training.service import reservation_of
from modelkeep_platform.workers.errors import WorkerError, WorkerTimeoutError
from modelkeep_platform.workers.process import WorkerProcess

SLOTS: Final = 2
CLOSE_S: Final = 10.0
LEFTOVERS_S: Final = 24 * 3600
_IDLE_S: Final = 0.2
_LAPSED_EVERY_S: Final = 5.0
_INTERRUPTED: Final = ("interrupted", "the server stopped while the job ran; start it again")

_log = logging.getLogger(__name__)


class Runner(Protocol):
    """Starts workers."""

    def start(self) -> WorkerProcess:
        """Start one."""


class Dispatcher:
    """Runs jobs.

    Args:
        parts: what every run stands on.
        recorder: writes how jobs ended.
        runner: starts workers.
        entropy: names this holder.
        slots: how many jobs run at once.
    """

    def __init__(
        self,
        *,
        parts: Parts,
        recorder: Recorder,
        runner: Runner,
        entropy: Entropy,
        slots: int = SLOTS,
    ) -> None:
        self._parts = parts
        self._stopping = parts.stopping
        self._recorder = recorder
        self._runner = runner
        self._workers: set[WorkerProcess] = set()
        self._holder = entropy.random_bytes(16).hex()
        # The kernel kills a worker when the thread that started it ends, so a slot is a thread that stays.
        self._threads = [
            threading.Thread(target=self._serve, name=f"dispatcher-{number}", daemon=True) for number in range(slots)
        ]

    def start(self) -> None:
        """Begin to claim jobs."""
        for thread in self._threads:
            thread.start()

    def close(self, *, limit_s: float = CLOSE_S) -> None:
        """Stop: running jobs end as interrupted, at once where a worker can be told, else when it is killed.

        Args:
            limit_s: how long a worker may keep its slot from ending, in seconds.
        """
        self._stopping.set()
        end_s = time.monotonic() + limit_s
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=max(0.0, end_s - time.monotonic()))
        # A slot that still waits for its worker (half of a frame, a full socket) sees it die.
        for worker in list(self._workers):
            worker.kill_soon()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=limit_s)

    def _serve(self) -> None:
        looked_at = float("-inf")
        while not self._stopping.is_set():
            try:
                if time.monotonic() - looked_at > _LAPSED_EVERY_S:
                    looked_at = time.monotonic()
                    self.end_lapsed()
                if not self.run_one():
                    self._stopping.wait(_IDLE_S)
            except Exception:  # noqa: BLE001 -- the thread's own edge
                # A slot outlives whatever goes wrong; a job that could not be ended lapses and is ended then.
                _log.exception("a slot of the dispatcher met an error and goes on")
                self._stopping.wait(1.0)

    def end_lapsed(self) -> int:
        """End jobs whose server died; what they were charged stays charged. Return how many."""
        with self._parts.database.platform(read_only=True) as tx:
            lapsed = self._parts.queue.lapsed(tx)
        return sum(self._end(lease, JobState.FAILED, _INTERRUPTED, fence_off=True) for lease in lapsed)

    def clear_leftovers(self) -> int:
        """Delete checkpoints of jobs that failed or were cancelled a day ago; return how many jobs'."""
        with self._parts.database.platform(read_only=True) as tx:
            found = self._parts.queue.leftovers(tx, older_s=LEFTOVERS_S)
        for tenant, job_id in found:
            self._parts.uploads.delete(tenant, ObjectId(job_id))
            with self._parts.database.tenant(tenant, by=System(reason="clear a checkpoint")) as own:
                self._parts.queue.forget_stored(own, job_id)
        return len(found)

    def run_one(self) -> bool:
        """Claim and run one job; return whether there was one."""
        with self._parts.database.platform() as tx:
            lease = self._parts.queue.claim(tx, self._holder, lease_s=LEASE_S)
        if lease is None:
            return False
        worker: WorkerProcess | None = None
        state, error, version = JobState.FAILED, ("internal", "something went wrong on the platform"), None
        try:
            worker = self._runner.start()
            self._workers.add(worker)
            version = Run(self._parts, lease, worker).work()
            state = JobState.SUCCEEDED
        except CancelledError:
            state = JobState.CANCELLED
        except StoppingError:
            error = _INTERRUPTED
        except StaleLeaseError:
            _log.warning("job %s was taken over", lease.job.id)
        except ModelkeepError as exc:
            # `close` kills workers that keep their slots.
            struck = self._stopping.is_set() and isinstance(exc, WorkerError | WorkerTimeoutError)
            error = _INTERRUPTED if struck else (exc.error_code, exc.message)
        except Exception as exc:  # noqa: BLE001 -- the job's edge
            # The type alone: the message of a foreign exception may hold what it was working on.
            _log.error("job %s failed: %s", lease.job.id, type(exc).__name__)
        finally:
            if worker is not None:
                self._workers.discard(worker)
                worker.kill()
        self._end(lease, state, error if state is JobState.FAILED else None, version)
        return True

    def _end(
        self,
        lease: Lease,
        state: JobState,
        error: tuple[str, str] | None,
        version: int | None = None,
        *,
        fence_off: bool = False,
    ) -> bool:
        """Return what was not charged and end the job, unless another has; the worker is gone, or is fenced off."""
        try:
            with self._parts.database.platform() as tx:
                own = tx.as_tenant(lease.job.tenant)
                if fence_off:
                    lease = self._parts.queue.fence_off(own, lease)
                self._parts.queue.finish(own, lease, state, error=error, result_version=version)
                reservation, owner = reservation_of(own, lease.job.id)
                if reservation is not None and state is not JobState.SUCCEEDED:
                    self._release(tx.as_tenant(owner), reservation, lease)
                facts: dict[str, str | int] = {"state": str(state), "fence": lease.fence}
                if error is not None:
                    facts["error"] = error[0]
                event = Event(
                    tenant=lease.job.tenant,
                    action="job:end",
                    outcome=Outcome.DONE if state is JobState.SUCCEEDED else Outcome.FAILED,
                    ref=ResourceRef(owner=lease.job.tenant, kind=Kind.JOB, object_id=ObjectId(lease.job.id)),
                    facts=facts,
                )
                self._recorder.record(tx, event)
            if state is JobState.SUCCEEDED:
                self._parts.uploads.delete(lease.job.tenant, ObjectId(lease.job.id))
        except StaleLeaseError:
            _log.warning("job %s was ended by another", lease.job.id)
            return False
        return True

    def _release(self, owners: TenantTransaction, reservation: ObjectId, lease: Lease) -> None:
        if self._parts.ledger.get(owners, reservation).state is ReservationState.OPEN:
            self._parts.ledger.release(owners, reservation, lease.fence)
