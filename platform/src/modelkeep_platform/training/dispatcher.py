"""The dispatcher: claims jobs and sees each through its worker, charging every segment before its first noisy step.

Each thread runs one job at a time; the last that is free is kept for a tenant that has no other. A job that succeeds
ends with its version. Whatever else ends one, the order is the same: the worker is killed, so that it can do nothing
more; then one transaction returns what was not charged and ends the job. A server that stops ends no job that comes to
the end of its segment in time: it waits again. A job whose lease ran out (its server died) is ended like any other by
whoever finds it; what it was charged stays charged.
"""

import logging
import threading
import time
from typing import Final, Protocol

from modelkeep_platform.core.errors import ModelkeepError
from modelkeep_platform.core.ids import TenantId
from modelkeep_platform.core.ports import Entropy
from modelkeep_platform.jobs.queue import JobState, Lease, StaleLeaseError
from modelkeep_platform.training.heartbeat import LEASE_S, CancelledError
from modelkeep_platform.training.run import Parts, Run
from modelkeep_platform.workers.errors import WorkerError, WorkerTimeoutError
from modelkeep_platform.workers.process import WorkerProcess

SLOTS: Final = 2
CLOSE_S: Final = 10.0
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
        runner: starts workers.
        entropy: names this holder.
        slots: how many jobs run at once. Of several the last that is free is for a tenant that has none of the others,
            so that the long jobs of one leave another a place.
    """

    def __init__(
        self,
        *,
        parts: Parts,
        runner: Runner,
        entropy: Entropy,
        slots: int = SLOTS,
    ) -> None:
        self._parts = parts
        self._stopping = parts.stopping
        self._runner = runner
        self._workers: set[WorkerProcess] = set()
        self._holder = entropy.random_bytes(16).hex()
        self._slots = slots
        self._claiming = threading.Lock()
        self._running: list[TenantId] = []
        self._looking = threading.Lock()
        self._looked_at = float("-inf")
        self._lapsed: set[tuple[str, int]] = set()
        # The kernel kills a worker when the thread that started it ends, so a slot is a thread that stays.
        self._threads = [
            threading.Thread(target=self._serve, name=f"dispatcher-{number}", daemon=True) for number in range(slots)
        ]

    def start(self) -> None:
        """Begin to claim jobs."""
        for thread in self._threads:
            thread.start()

    def close(self, *, limit_s: float = CLOSE_S) -> None:
        """Stop: running jobs end their segment, keep a checkpoint and wait again for a server.

        Args:
            limit_s: how long they may take for it, in seconds; after that a worker is killed, and its job ended as
                interrupted.
        """
        self._stopping.set()
        end_s = time.monotonic() + limit_s
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=max(0.0, end_s - time.monotonic()))
        # A slot that still waits for its worker (a long segment, half of a frame, a full socket) sees it die.
        for worker in list(self._workers):
            worker.kill_soon()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=limit_s)

    def _serve(self) -> None:
        while not self._stopping.is_set():
            try:
                if self._look_is_due():
                    self.end_lapsed()
                if not self.run_one():
                    self._stopping.wait(_IDLE_S)
            except Exception:  # noqa: BLE001 -- the thread's own edge
                # A slot outlives whatever goes wrong; a job that could not be ended lapses and is ended then.
                _log.exception("a slot of the dispatcher met an error and goes on")
                self._stopping.wait(1.0)

    def _look_is_due(self) -> bool:
        with self._looking:
            now = time.monotonic()
            due = now - self._looked_at > _LAPSED_EVERY_S
            self._looked_at = now if due else self._looked_at
            return due

    def end_lapsed(self) -> int:
        """End jobs whose server died; what they were charged stays charged. Return how many.

        A job is taken for lapsed when its lease is over at two looks in a row: when the clock steps forward, a holder
        that lives renews its lease between them.
        """
        with self._parts.database.platform(read_only=True) as tx:
            lapsed = {(lease.job.id, lease.fence): lease for lease in self._parts.queue.lapsed(tx)}
        with self._looking:
            before, self._lapsed = self._lapsed, set(lapsed)
        again = [lease for key, lease in lapsed.items() if key in before]
        return sum(self._end_lapsed(lease) for lease in again)

    def _end_lapsed(self, lease: Lease) -> bool:
        try:
            return self._parts.endings.end(lease, JobState.FAILED, _INTERRUPTED, fence_off=True)
        except Exception:  # noqa: BLE001 -- one job's edge
            # Those behind it, of other tenants, are ended all the same.
            _log.exception("job %s lapsed and could not be ended; it is tried again", lease.job.id)
            return False

    def run_one(self) -> bool:
        """Claim and run one job; return whether there was one."""
        with self._claiming:
            lease = self._claim()
            if lease is None:
                return False
            self._running.append(lease.job.tenant)
        try:
            failure = self._see_through(lease)
            if failure is not None:
                self._parts.endings.end(lease, *failure)
        finally:
            with self._claiming:
                self._running.remove(lease.job.tenant)
        return True

    def _claim(self) -> Lease | None:
        # INVARIANT: no tenant has every place of a process that has several.
        last = 0 < len(self._running) == self._slots - 1
        others = frozenset(self._running) if last else frozenset()
        with self._parts.database.platform(read_only=True) as tx:
            # Most looks find nothing, and then nobody waits for this one to write.
            if not self._parts.queue.anything_waits(tx, but_of=others):
                return None
        with self._parts.database.platform() as tx:
            return self._parts.queue.claim(tx, self._holder, lease_s=LEASE_S, but_of=others)

    def _see_through(self, lease: Lease) -> tuple[JobState, tuple[str, str] | None] | None:
        """Run a job; return how it ended otherwise than by its success, with code and message of a failure."""
        worker: WorkerProcess | None = None
        error = ("internal", "something went wrong on the platform")
        try:
            worker = self._runner.start()
            self._workers.add(worker)
            Run(self._parts, lease, worker).work()
        except CancelledError:
            return JobState.CANCELLED, None
        except StaleLeaseError:
            _log.warning("job %s was taken over", lease.job.id)
        except ModelkeepError as exc:
            # `close` kills workers that keep their slots.
            struck = self._stopping.is_set() and isinstance(exc, WorkerError | WorkerTimeoutError)
            error = _INTERRUPTED if struck else (exc.error_code, exc.message)
        except Exception as exc:  # noqa: BLE001 -- the job's edge
            # The type alone: the message of a foreign exception may hold what it was working on.
            _log.error("job %s failed: %s", lease.job.id, type(exc).__name__)
        else:
            return None
        finally:
            if worker is not None:
                self._workers.discard(worker)
                worker.kill()
        return JobState.FAILED, error
