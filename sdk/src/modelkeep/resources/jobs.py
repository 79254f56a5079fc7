"""Jobs: what a training run would cost, starting, watching and cancelling it."""

from __future__ import annotations

from typing import Final, TypeAlias

from modelkeep._core.flows import Flow, Mode, Operation, sleep
from modelkeep._core.progress import JobReport, job_report
from modelkeep._core.session import Session, check_same
from modelkeep.errors import JobFailedError, TimeoutError  # noqa: A004 -- ours is the built-in one, too
from modelkeep.resources.base import Resource
from modelkeep.types import Job, JobLine, JobSpec, Plan

_FIRST_WAIT_S: Final = 0.2
_LONGEST_WAIT_S: Final = 2.0
_SUCCEEDED: Final = "succeeded"
_Lines: TypeAlias = list[JobLine]


class Jobs(Resource[Mode]):
    """Training runs of the own tenant. A job is data (docs/reference/jobs.md), never code."""

    @Operation
    def plan(self, spec: JobSpec) -> Flow[Plan]:
        """Say what a job would cost and whether it fits; nothing is spent."""
        return (yield from self._session.post(Plan, "v1", "job-plans", body=dict(spec), keyed=False))

    @Operation
    def create(self, spec: JobSpec) -> Flow[Job]:
        """Start a job; its cost is reserved first.

        Raises:
            BudgetExceededError: it does not fit; `largest_epsilon` does.
        """
        job = yield from self._session.post(Job, "v1", "jobs", body=dict(spec))
        for name, found in (("dataset", job.dataset), ("into", job.into)):
            check_same(spec.get(name, ""), found, name)
        return job

    @Operation
    def list(self, *, limit: int | None = None) -> Flow[list[Job]]:
        """List jobs, newest first, at most `limit`."""
        return (yield from self._session.list(Job, "v1", "jobs", limit=limit))

    @Operation
    def get(self, job_id: str) -> Flow[Job]:
        """Show a job and its progress."""
        return (yield from _get(self._session, job_id))

    @Operation
    def wait(
        self, job_id: str, *, progress: JobReport = False, timeout_s: float | None = None, check: bool = True
    ) -> Flow[Job]:
        """Wait until a job ends.

        Args:
            job_id: the job.
            progress: a function that gets the job each time it is looked at, or true for a bar with steps and ε.
            timeout_s: how long to wait; None for as long as it takes. The job goes on when the time is over.
            check: whether a job that failed or was cancelled raises.

        Raises:
            JobFailedError: the job did not succeed, and `check` is true.
            TimeoutError: the job is still going after `timeout_s`.
        """
        started = self._session.site.now_s()
        wait_s = _FIRST_WAIT_S
        with job_report(progress) as report:
            while True:
                job = yield from _get(self._session, job_id)
                report(job)
                if job.done:
                    break
                if timeout_s is not None and self._session.site.now_s() - started > timeout_s:
                    raise TimeoutError(f"the job is still {job.state} after {timeout_s:g} s; it goes on")
                yield from sleep(wait_s)
                wait_s = min(_LONGEST_WAIT_S, wait_s * 1.2)
        if check and job.state != _SUCCEEDED:
            reason = "" if job.error is None else f": {job.error.message} ({job.error.code})"
            raise JobFailedError(f"the job `{job.id}` {job.state}{reason}", job=job)
        return job

    @Operation
    def cancel(self, job_id: str) -> Flow[Job]:
        """Cancel a job; what it ran stays charged, the rest of its budget returns."""
        job = yield from self._session.post(Job, "v1", "jobs", job_id, "cancel")
        check_same(job_id, job.id, "job")
        return job

    @Operation
    def logs(self, job_id: str, *, limit: int | None = None) -> Flow[_Lines]:
        """Read a job's log; it holds no data."""
        return (yield from self._session.list(JobLine, "v1", "jobs", job_id, "logs", limit=limit))


def _get(session: Session, job_id: str) -> Flow[Job]:
    job = yield from session.get(Job, "v1", "jobs", job_id)
    check_same(job_id, job.id, "job")
    return job
