"""The queue: enqueue in the caller's transaction, claim by one conditional UPDATE, finish only under the lease.

Each claim raises the job's fencing number. Whoever lost its lease carries an old number, and nothing it does to
the job takes effect: a zombie cannot finish, report or log. A job whose lease ran out is not run again here; it is
handed to `lapsed`, so that whoever knows the work can fence off the worker first.
"""

import builtins
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa

from modelkeep_platform.core.errors import ConflictError, RateLimitedError
from modelkeep_platform.core.ids import TenantId, new_object_id
from modelkeep_platform.core.ports import Clock, Entropy, LimitSource
from modelkeep_platform.storage.pages import not_ours
from modelkeep_platform.storage.tables.jobs import job_lines, jobs
from modelkeep_platform.storage.transactions import PlatformTransaction, Row, TenantTransaction

MAX_LINES: Final = 1000
_MAX_LINE: Final = 400
_RETRY_S: Final = 30
_NUMBER: Final = re.compile(r"[0-9]{1,15}")


class JobState(StrEnum):
    """Where a job is; the last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


ACTIVE: Final = (JobState.QUEUED, JobState.RUNNING)


class StaleLeaseError(ConflictError):
    """The lease is over or another holder has the job; whatever was asked did not happen."""

    code = "stale_lease"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as it stands."""

    id: str
    tenant: TenantId
    kind: str
    name: str
    payload: bytes
    principal: str
    state: JobState
    cancel: bool
    fence: int
    step: int
    steps: int
    epsilon_charged: float | None
    error_code: str | None
    error_message: str | None
    result_version: int | None
    created_at: int
    started_at: int | None
    finished_at: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to work on a job, until it lapses or is lost."""

    job: Job
    holder: str
    fence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLine:
    """One line of a job's log."""

    number: int
    at: int
    text: str


class JobQueue:
    """Keeps jobs.

    Args:
        clock: times leases.
        entropy: names jobs.
        limits: says how many of a tenant may be queued and running, and how many running.
    """

    def __init__(self, *, clock: Clock, entropy: Entropy, limits: LimitSource) -> None:
        self._limits = limits
        self._clock = clock
        self._entropy = entropy

    def new_id(self) -> str:
        """Return a fresh job id."""
        return new_object_id(self._entropy, "job")

    def enqueue(
        self,
        tx: TenantTransaction,
        *,
        job_id: str,
        kind: str,
        name: str,
        payload: bytes,
        principal: str,
        steps: int,
        stored_bytes: int = 0,
    ) -> Job:
        """Add a job, in the transaction that reserves what it needs.

        Args:
            tx: an open transaction of the job's tenant.
            job_id: made by `new_id`.
            kind: what work it is.
            name: what people know it by.
            payload: what its worker needs to know, sealed.
            principal: who started it.
            steps: how many it has.
            stored_bytes: what it sets aside of its tenant's storage.

        Raises:
            RateLimitedError: the tenant, or the one who starts it, has as many jobs queued and running as it may; they
                end by themselves.
        """
        limits = self._limits.of(tx.owner)
        own = tx.count(jobs, jobs.c.state.in_(ACTIVE) & (jobs.c.principal == principal))
        for who, active, most in (
            ("this account", own, limits.principal_active_jobs),
            ("this tenant", self.active(tx), limits.active_jobs),
        ):
            if active >= most:
                raise RateLimitedError(
                    f"{who} may have {most} jobs queued or running; wait for one to end, or ask the platform's "
                    "operator for more",
                    retry_after_s=_RETRY_S,
                    code="too_many_jobs",
                )
        tx.insert(
            jobs,
            id=job_id,
            kind=kind,
            name=name,
            payload=payload,
            principal=principal,
            state=JobState.QUEUED,
            cancel=False,
            fence=0,
            step=0,
            steps=steps,
            created_at=self._clock.now_s(),
            stored_bytes=stored_bytes,
        )
        found = self.find(tx, job_id)
        if found is None:
            raise RuntimeError("the job just inserted is not there")
        return found

    def anything_waits(self, tx: PlatformTransaction, *, but_of: Collection[TenantId] = ()) -> bool:
        """Return whether any tenant, but those named, has a job queued."""
        return tx.first(sa.select(jobs.c.id).where(*_queued(but_of)).limit(1)) is not None

    def claim(
        self, tx: PlatformTransaction, holder: str, *, lease_s: int, but_of: Collection[TenantId] = ()
    ) -> Lease | None:
        """Take the oldest queued job of the tenant that has fewest running and may have more; None without one.

        Args:
            tx: an open transaction.
            holder: who takes it.
            lease_s: for how long, in seconds.
            but_of: tenants whose jobs are left to others.
        """
        counted = tx.all(
            sa.select(jobs.c.tenant_id, sa.func.count().label("n"))
            .where(jobs.c.state == JobState.RUNNING)
            .group_by(jobs.c.tenant_id)
        )
        running = {row["tenant_id"]: row["n"] for row in counted}
        queued = tx.all(
            sa.select(jobs.c.tenant_id, jobs.c.id).where(*_queued(but_of)).order_by(jobs.c.created_at, jobs.c.id)
        )
        for row in sorted(queued, key=lambda one: running.get(one["tenant_id"], 0)):
            if running.get(row["tenant_id"], 0) >= self._limits.of(TenantId(row["tenant_id"])).running_jobs:
                continue
            now = self._clock.now_s()
            taken = tx.execute(
                sa.update(jobs)
                .where(jobs.c.tenant_id == row["tenant_id"], jobs.c.id == row["id"], jobs.c.state == JobState.QUEUED)
                .values(
                    state=JobState.RUNNING,
                    holder=holder,
                    fence=jobs.c.fence + 1,
                    lease_until=now + lease_s,
                    started_at=sa.func.coalesce(jobs.c.started_at, now),
                )
            )
            if taken.rowcount:
                claimed = tx.first(sa.select(jobs).where(jobs.c.tenant_id == row["tenant_id"], jobs.c.id == row["id"]))
                if claimed is not None:
                    return Lease(job=_job(claimed), holder=holder, fence=claimed["fence"])
        return None

    def renew(self, tx: TenantTransaction, lease: Lease, *, lease_s: int) -> bool:
        """Extend the lease; return whether cancellation was asked for.

        Raises:
            StaleLeaseError: the lease is lost.
        """
        self._change(tx, lease, lease_until=self._clock.now_s() + lease_s)
        row = tx.first(tx.select(jobs, jobs.c.cancel).where(jobs.c.id == lease.job.id))
        return bool(row is not None and row["cancel"])

    def check(self, tx: TenantTransaction, lease: Lease) -> None:
        """Return when the lease holds, in the transaction whose effect hangs on it; raises StaleLeaseError."""
        self._change(tx, lease, holder=lease.holder)

    def progress(self, tx: TenantTransaction, lease: Lease, *, step: int, epsilon_charged: float | None) -> None:
        """Report how far the job is; raises StaleLeaseError."""
        self._change(tx, lease, step=step, epsilon_charged=epsilon_charged)

    def put_back(self, tx: TenantTransaction, lease: Lease, *, step: int, epsilon_charged: float | None) -> None:
        """Let a job wait again, to go on after `step`; raises StaleLeaseError when the lease is lost."""
        self._change(
            tx,
            lease,
            state=JobState.QUEUED,
            step=step,
            epsilon_charged=epsilon_charged,
            holder=None,
            lease_until=None,
        )

    def finish(
        self,
        tx: TenantTransaction,
        lease: Lease,
        state: JobState,
        *,
        error: tuple[str, str] | None = None,
        result_version: int | None = None,
    ) -> None:
        """End the job; raises StaleLeaseError when the lease is lost.

        Args:
            tx: an open transaction of the job's tenant.
            lease: the holder's lease.
            state: how it ended.
            error: code and message, without data.
            result_version: the version it made.
        """
        # A version is counted by itself; what a job that did not succeed left behind is, until `forget_stored`.
        given_back = {"stored_bytes": 0} if state is JobState.SUCCEEDED else {}
        self._change(
            tx,
            lease,
            **given_back,
            payload=b"",  # nobody runs it again, and it holds a graph
            state=state,
            finished_at=self._clock.now_s(),
            error_code=None if error is None else error[0],
            error_message=None if error is None else error[1],
            result_version=result_version,
            holder=None,
            lease_until=None,
        )

    def log(self, tx: TenantTransaction, lease: Lease, text: str) -> None:
        """Add a line to the job's log; past 1000 lines nothing more is kept. Raises StaleLeaseError."""
        self.check(tx, lease)
        newest = tx.first(
            tx.select(job_lines, sa.func.max(job_lines.c.number).label("n")).where(job_lines.c.job_id == lease.job.id)
        )
        number = 0 if newest is None or newest["n"] is None else newest["n"] + 1
        if number < MAX_LINES:
            tx.insert(job_lines, job_id=lease.job.id, number=number, at=self._clock.now_s(), text=text[:_MAX_LINE])

    def request_cancel(self, tx: TenantTransaction, job_id: str) -> bool:
        """Ask for an active job to end; a queued one ends at once. Return whether it was active."""
        queued = tx.change(
            tx.update(jobs)
            .where(jobs.c.id == job_id, jobs.c.state == JobState.QUEUED)
            .values(state=JobState.CANCELLED, cancel=True, finished_at=self._clock.now_s(), stored_bytes=0, payload=b"")
        )
        asked = tx.change(
            tx.update(jobs).where(jobs.c.id == job_id, jobs.c.state == JobState.RUNNING).values(cancel=True)
        )
        return bool(queued or asked)

    def lapsed(self, tx: PlatformTransaction) -> Sequence[Lease]:
        """Return running jobs whose lease is over; `fence_off` gives the right to end one."""
        now = self._clock.now_s()
        rows = tx.all(sa.select(jobs).where(jobs.c.state == JobState.RUNNING, jobs.c.lease_until < now))
        return [Lease(job=_job(row), holder=row["holder"], fence=row["fence"]) for row in rows]

    def fence_off(self, tx: TenantTransaction, lapsed: Lease) -> Lease:
        """Take a job whose lease is over, so that its holder can do nothing more, and return the lease to end it with.

        Raises:
            StaleLeaseError: the holder renewed its lease meanwhile, or the job has ended.
        """
        changed = tx.change(
            tx.update(jobs)
            .where(
                jobs.c.id == lapsed.job.id,
                jobs.c.state == JobState.RUNNING,
                jobs.c.fence == lapsed.fence,
                jobs.c.lease_until < self._clock.now_s(),
            )
            .values(fence=jobs.c.fence + 1)
        )
        if not changed:
            raise StaleLeaseError("the lease on this job is not over any more, or the job has ended")
        return replace(lapsed, fence=lapsed.fence + 1)

    def leftovers(self, tx: PlatformTransaction, *, older_s: int) -> Sequence[tuple[TenantId, str]]:
        """Return jobs that did not succeed, `older_s` seconds ago, and still hold some of their tenant's storage."""
        rows = tx.all(
            sa.select(jobs.c.tenant_id, jobs.c.id).where(
                jobs.c.state.in_((JobState.FAILED, JobState.CANCELLED)),
                jobs.c.stored_bytes > 0,
                jobs.c.finished_at < self._clock.now_s() - older_s,
            )
        )
        return [(TenantId(row["tenant_id"]), row["id"]) for row in rows]

    def forget_stored(self, tx: TenantTransaction, job_id: str) -> None:
        """Note that what an ended job had stored is deleted."""
        where = (jobs.c.id == job_id, jobs.c.state.not_in(ACTIVE))
        tx.change(tx.update(jobs).where(*where).values(stored_bytes=0))

    def active(self, tx: TenantTransaction) -> int:
        """Return how many of the tenant's jobs are queued or running."""
        return tx.count(jobs, jobs.c.state.in_(ACTIVE))

    def running(self, tx: TenantTransaction) -> int:
        """Return how many of the tenant's jobs are running."""
        return tx.count(jobs, jobs.c.state == JobState.RUNNING)

    def find(self, tx: TenantTransaction, job_id: str) -> Job | None:
        """Return the tenant's job, or None."""
        row = tx.first(tx.select(jobs).where(jobs.c.id == job_id))
        return None if row is None else _job(row)

    def list(self, tx: TenantTransaction, *, after: str, limit: int) -> builtins.list[Job]:
        """Return up to `limit` jobs, newest first, after the sort key ``created_at/id``.

        Raises:
            MalformedError: `after` is no such key.
        """
        query = tx.select(jobs).order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit)
        if after:
            at, _, job_id = after.partition("/")
            if not _NUMBER.fullmatch(at):
                raise not_ours()
            query = query.where(
                sa.or_(jobs.c.created_at < int(at), sa.and_(jobs.c.created_at == int(at), jobs.c.id < job_id))
            )
        return [_job(row) for row in tx.all(query)]

    def lines(self, tx: TenantTransaction, job_id: str, *, after: int, limit: int) -> builtins.list[JobLine]:
        """Return lines of a job's log with numbers above `after`."""
        rows = tx.all(
            tx.select(job_lines)
            .where(job_lines.c.job_id == job_id, job_lines.c.number > after)
            .order_by(job_lines.c.number)
            .limit(limit)
        )
        return [JobLine(number=row["number"], at=row["at"], text=row["text"]) for row in rows]

    def _change(self, tx: TenantTransaction, lease: Lease, **values: Any) -> None:  # noqa: ANN401
        # INVARIANT: one conditional UPDATE; the fence decides, not what was read before.
        changed = tx.change(
            tx.update(jobs)
            .where(jobs.c.id == lease.job.id, jobs.c.state == JobState.RUNNING, jobs.c.fence == lease.fence)
            .values(**values)
        )
        if not changed:
            raise StaleLeaseError("the lease on this job is over; another worker has it, or it has ended")


def _queued(but_of: Collection[TenantId]) -> tuple[sa.ColumnElement[bool], ...]:
    queued = jobs.c.state == JobState.QUEUED
    return (queued, jobs.c.tenant_id.not_in(but_of)) if but_of else (queued,)


def sort_key(job: Job) -> str:
    """Return the key after which the next page of jobs begins."""
    return f"{job.created_at}/{job.id}"


def _job(row: Row) -> Job:
    return Job(
        id=row["id"],
        tenant=TenantId(row["tenant_id"]),
        kind=row["kind"],
        name=row["name"],
        payload=bytes(row["payload"]),
        principal=row["principal"],
        state=JobState(row["state"]),
        cancel=bool(row["cancel"]),
        fence=row["fence"],
        step=row["step"],
        steps=row["steps"],
        epsilon_charged=row["epsilon_charged"],
        error_code=row["error_code"],
        error_message=row["error_message"],
        result_version=row["result_version"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
    )
