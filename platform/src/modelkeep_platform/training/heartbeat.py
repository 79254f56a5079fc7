"""The heartbeat of a run: keeps its lease, and says when it must stop."""

import threading
import time
from typing import Final

from modelkeep_platform.jobs.queue import JobQueue, Lease
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.transactions import System
from modelkeep_platform.training.faults import JobFailedError

LEASE_S: Final = 30
MAX_JOB_S: Final = 6 * 3600.0
MAX_SILENCE_S: Final = 3600.0
_EVERY_S: Final = 1.0
_SYSTEM: Final = System(reason="keep a job's lease")


class CancelledError(Exception):
    """The owner asked for the job to end."""


class StoppingError(Exception):
    """The server is stopping, and the job can go on later from where it is."""


class Heartbeat:
    """Beats while a job runs.

    `stoppable` says whether a beat tells that the server is stopping: while a segment runs, or a version is made, that
    has to wait.

    Args:
        database: where the lease is.
        queue: keeps it.
        lease: the right to run the job.
        stopping: set when the server stops.
        max_job_s: how long the job may take from now, in seconds.
    """

    def __init__(
        self, *, database: Database, queue: JobQueue, lease: Lease, stopping: threading.Event, max_job_s: float
    ) -> None:
        self._database = database
        self._queue = queue
        self._lease = lease
        self._stopping = stopping
        self.stoppable = True
        self._ends_at = time.monotonic() + max_job_s
        self._beaten_at = float("-inf")

    @property
    def stopping(self) -> bool:
        """Return whether the server is stopping."""
        return self._stopping.is_set()

    def beat(self, *, force: bool = False) -> None:
        """Renew the lease, unless it was within the last second.

        Args:
            force: renew it whenever it was.

        Raises:
            StoppingError: the server is stopping, and the job is `stoppable`.
            JobFailedError: the job took longer than a job may.
            StaleLeaseError: the lease is lost.
            CancelledError: the owner cancelled the job.
        """
        if self.stoppable and self.stopping:
            raise StoppingError
        now = time.monotonic()
        if now > self._ends_at:
            raise JobFailedError("the job took longer than a job may; take fewer steps", code="job_timeout")
        if not force and now - self._beaten_at < _EVERY_S:
            return
        self._beaten_at = now
        with self._database.tenant(self._lease.job.tenant, by=_SYSTEM) as tx:
            cancelled = self._queue.renew(tx, self._lease, lease_s=LEASE_S)
        if cancelled:
            raise CancelledError
