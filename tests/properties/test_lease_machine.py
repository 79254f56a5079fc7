"""Leases against a simple model: holders that work, sleep and wake as zombies, while the clock steps both ways."""

from collections.abc import Callable

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fakes.core import ACME, GLOBEX, FakeClock, FakeEntropy, FakeLimits
from fakes.storage import fresh
from modelkeep_platform.core.ids import TenantId
from modelkeep_platform.jobs.queue import JobQueue, JobState, Lease, StaleLeaseError
from modelkeep_platform.storage.tables.jobs import job_lines, jobs
from modelkeep_platform.storage.transactions import System, TenantTransaction

LEASE_S = 30
FINAL = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


class Held:
    """The model's idea of one job."""

    def __init__(self, tenant: TenantId) -> None:
        self.tenant = tenant
        self.state = JobState.QUEUED
        self.fence = 0
        self.until = 0
        self.cancel = False
        self.step = 0


class LeaseMachine(RuleBasedStateMachine):
    """Each rule does one thing in a transaction of its own, and says beforehand what must come of it."""

    def __init__(self) -> None:
        super().__init__()
        self.database = fresh("sqlite:///:memory:", tables=[jobs, job_lines])
        self.clock = FakeClock()
        self.queue = JobQueue(clock=self.clock, entropy=FakeEntropy(), limits=FakeLimits(running_jobs=1000))
        self.jobs: dict[str, Held] = {}
        self.leases: list[Lease] = []  # every lease ever given out, in whatever state

    def teardown(self) -> None:
        self.database.close()

    def within(self, tenant: TenantId, work: Callable[[TenantTransaction], object]) -> object:
        with self.database.tenant(tenant, by=System(reason="test")) as tx:
            return work(tx)

    def use(self, lease: Lease, work: Callable[[TenantTransaction], object]) -> Held | None:
        """Do something under a lease; return the job when it took effect, None when it was rightly refused."""
        job = self.jobs[lease.job.id]
        if job.state is JobState.RUNNING and job.fence == lease.fence:
            self.within(job.tenant, work)
            return job
        with pytest.raises(StaleLeaseError):
            self.within(job.tenant, work)
        return None

    @rule(tenant=st.sampled_from([ACME, GLOBEX]))
    def enqueue(self, tenant: TenantId) -> None:
        if sum(job.tenant == tenant and job.state not in FINAL for job in self.jobs.values()) >= 5:
            return
        job_id = self.queue.new_id()
        self.within(
            tenant,
            lambda tx: self.queue.enqueue(
                tx, job_id=job_id, kind="training", name="m", payload=b"", principal="p", steps=9
            ),
        )
        self.jobs[job_id] = Held(tenant)

    @rule(seconds=st.integers(-100, 100))
    def step_the_clock(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule()
    def claim(self) -> None:
        with self.database.platform() as tx:
            lease = self.queue.claim(tx, "holder", lease_s=LEASE_S)
        queued = [job for job in self.jobs.values() if job.state is JobState.QUEUED]
        if lease is None:
            assert queued == []
            return
        job = self.jobs[lease.job.id]
        running = {
            tenant: sum(other.tenant == tenant and other.state is JobState.RUNNING for other in self.jobs.values())
            for tenant in (ACME, GLOBEX)
        }
        assert job in queued
        assert running[job.tenant] == min(running[other.tenant] for other in queued)
        job.state, job.fence, job.until = JobState.RUNNING, job.fence + 1, self.clock.now_s() + LEASE_S
        assert lease.fence == job.fence
        self.leases.append(lease)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        told: list[bool] = []
        job = self.use(lease, lambda tx: told.append(self.queue.renew(tx, lease, lease_s=LEASE_S)))
        if job is not None:
            job.until = self.clock.now_s() + LEASE_S
            assert told == [job.cancel]

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), step=st.integers(1, 9))
    def report(self, data: st.DataObject, step: int) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        job = self.use(lease, lambda tx: self.queue.progress(tx, lease, step=step, epsilon_charged=None))
        if job is not None:
            job.step = step

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), step=st.integers(1, 9))
    def put_back(self, data: st.DataObject, step: int) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        job = self.use(lease, lambda tx: self.queue.put_back(tx, lease, step=step, epsilon_charged=None))
        if job is not None:
            job.state, job.step = JobState.QUEUED, step

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), state=st.sampled_from(FINAL))
    def finish(self, data: st.DataObject, state: JobState) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        job = self.use(lease, lambda tx: self.queue.finish(tx, lease, state))
        if job is not None:
            job.state = state

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.jobs)))
        job = self.jobs[job_id]
        active = self.within(job.tenant, lambda tx: self.queue.request_cancel(tx, job_id))
        assert active is (job.state not in FINAL)
        if job.state is JobState.QUEUED:
            job.state = JobState.CANCELLED
        job.cancel = job.cancel or bool(active)

    @rule(finish=st.booleans())
    def fence_off_what_lapsed(self, finish: bool) -> None:
        with self.database.platform(read_only=True) as tx:
            lapsed = list(self.queue.lapsed(tx))
        now = self.clock.now_s()
        assert {lease.job.id for lease in lapsed} == {
            job_id for job_id, job in self.jobs.items() if job.state is JobState.RUNNING and job.until < now
        }
        for old in lapsed:
            job = self.jobs[old.job.id]
            new: list[Lease] = []
            self.within(job.tenant, lambda tx, old=old, new=new: new.append(self.queue.fence_off(tx, old)))  # type: ignore[misc]
            job.fence += 1
            assert new[0].fence == job.fence
            self.leases.append(new[0])
            if finish:
                self.within(job.tenant, lambda tx, new=new: self.queue.finish(tx, new[0], JobState.FAILED))  # type: ignore[misc]
                job.state = JobState.FAILED

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def fence_off_a_live_or_old_one(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        job = self.jobs[lease.job.id]
        if job.state is JobState.RUNNING and job.fence == lease.fence and job.until < self.clock.now_s():
            return  # it lapsed: another rule
        with pytest.raises(StaleLeaseError):
            self.within(job.tenant, lambda tx: self.queue.fence_off(tx, lease))

    @invariant()
    def every_job_is_as_the_model_says(self) -> None:
        with self.database.platform(read_only=True) as tx:
            rows = {row["id"]: row for row in tx.all(sa.select(jobs))}
        assert set(rows) == set(self.jobs)
        for job_id, job in self.jobs.items():
            row = rows[job_id]
            assert (row["state"], row["fence"], row["step"]) == (job.state, job.fence, job.step)
            assert (row["holder"] is None) == (job.state is not JobState.RUNNING)


TestLeases = LeaseMachine.TestCase
TestLeases.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
