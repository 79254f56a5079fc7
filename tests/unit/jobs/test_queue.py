"""The queue: one holder a job, fair between tenants, and nothing that a lost lease does takes effect."""

from collections.abc import Callable

import pytest

from fakes.core import ACME, GLOBEX, FakeClock, FakeEntropy, FakeLimits
from fakes.storage import statements
from modelkeep_platform.core.errors import MalformedError, RateLimitedError
from modelkeep_platform.core.ids import TenantId
from modelkeep_platform.core.limits import TenantLimits
from modelkeep_platform.jobs.queue import (
    MAX_LINES,
    Job,
    JobQueue,
    JobState,
    Lease,
    StaleLeaseError,
    sort_key,
)
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.tables.jobs import jobs
from modelkeep_platform.storage.transactions import System, TenantTransaction

BY = System(reason="test")
LEASE_S = 30
MAX_ACTIVE = 20


class Room:
    """A queue over a database, each call in a transaction of its own."""

    def __init__(self, database: Database, clock: FakeClock, entropy: FakeEntropy) -> None:
        self.database, self.clock = database, clock
        self.limits = FakeLimits(active_jobs=MAX_ACTIVE, principal_active_jobs=MAX_ACTIVE, running_jobs=MAX_ACTIVE)
        self.queue = JobQueue(clock=clock, entropy=entropy, limits=self.limits)

    def add(self, tenant: TenantId = ACME, name: str = "m", principal: str = "p-1") -> Job:
        with self.database.tenant(tenant, by=BY) as tx:
            return self.queue.enqueue(
                tx, job_id=self.queue.new_id(), kind="training", name=name, payload=b"p", principal=principal, steps=10
            )

    def claim(self, holder: str = "h1") -> Lease:
        with self.database.platform() as tx:
            lease = self.queue.claim(tx, holder, lease_s=LEASE_S)
        assert lease is not None
        return lease

    def lapsed(self) -> list[Lease]:
        with self.database.platform(read_only=True) as tx:
            return list(self.queue.lapsed(tx))

    def find(self, job: Job) -> Job:
        with self.database.tenant(job.tenant, by=BY, read_only=True) as tx:
            found = self.queue.find(tx, job.id)
        assert found is not None
        return found

    def within(self, work: Callable[[TenantTransaction], object], tenant: TenantId = ACME) -> object:
        with self.database.tenant(tenant, by=BY) as tx:
            return work(tx)


@pytest.fixture
def room(database: Database, clock: FakeClock, entropy: FakeEntropy) -> Room:
    return Room(database, clock, entropy)


def test_a_job_goes_from_queued_to_running_to_its_end(room: Room) -> None:
    job = room.add()
    assert (job.state, job.fence, job.started_at) == (JobState.QUEUED, 0, None)
    room.clock.advance(5)
    lease = room.claim()
    assert (lease.job.id, lease.job.state, lease.fence, lease.holder) == (job.id, JobState.RUNNING, 1, "h1")
    assert lease.job.payload == b"p"
    assert room.within(lambda tx: room.queue.renew(tx, lease, lease_s=LEASE_S)) is False
    room.within(lambda tx: room.queue.progress(tx, lease, step=4, epsilon_charged=0.5))
    room.clock.advance(5)
    room.within(lambda tx: room.queue.finish(tx, lease, JobState.SUCCEEDED, result_version=3))
    ended = room.find(job)
    assert (ended.state, ended.step, ended.epsilon_charged, ended.result_version) == (JobState.SUCCEEDED, 4, 0.5, 3)
    assert (ended.started_at, ended.finished_at) == (job.created_at + 5, job.created_at + 10)


def test_with_nothing_queued_there_is_nothing_to_claim(room: Room) -> None:
    with room.database.platform() as tx:
        assert room.queue.claim(tx, "h1", lease_s=LEASE_S) is None


def test_a_job_is_claimed_once(room: Room) -> None:
    room.add()
    room.claim()
    with room.database.platform() as tx:
        assert room.queue.claim(tx, "h2", lease_s=LEASE_S) is None


def test_the_oldest_is_first_and_whoever_has_fewest_running_goes_before(room: Room) -> None:
    first = [room.add(name=f"a{n}") for n in range(3)]
    room.clock.advance(1)
    guest = room.add(GLOBEX, name="b")
    claimed = [room.claim().job.name for _ in range(4)]
    assert claimed[0] in {job.name for job in first}
    assert claimed[1] == guest.name
    assert set(claimed[2:]) | {claimed[0]} == {"a0", "a1", "a2"}


def test_a_tenant_runs_so_many_at_once_and_the_rest_waits_for_it_alone(room: Room) -> None:
    room.limits.own[ACME] = TenantLimits(running_jobs=1)
    for number in range(3):
        room.add(name=f"a{number}")
        room.clock.advance(1)
    first = room.claim()
    room.add(GLOBEX, name="b")
    assert (first.job.name, room.claim().job.name) == ("a0", "b")
    with room.database.platform() as tx:
        assert room.queue.claim(tx, "h1", lease_s=LEASE_S) is None
    room.within(lambda tx: room.queue.finish(tx, first, JobState.SUCCEEDED))
    assert room.claim().job.name == "a1"
    room.limits.own[ACME] = TenantLimits(running_jobs=0)
    with room.database.platform() as tx:
        assert room.queue.claim(tx, "h1", lease_s=LEASE_S) is None
        assert room.queue.running(tx.as_tenant(ACME)) == 1, "what runs goes on"


def test_jobs_of_tenants_that_are_left_out_wait_and_no_other(room: Room) -> None:
    room.add(name="a")
    with room.database.platform() as tx:
        assert not room.queue.anything_waits(tx, but_of={ACME})
        assert room.queue.claim(tx, "h1", lease_s=LEASE_S, but_of={ACME}) is None
        assert room.queue.anything_waits(tx, but_of={GLOBEX})
    room.add(GLOBEX, name="b")
    with room.database.platform() as tx:
        assert room.queue.anything_waits(tx, but_of={ACME})
        taken = room.queue.claim(tx, "h1", lease_s=LEASE_S, but_of={ACME})
    assert taken is not None
    assert taken.job.name == "b"


def test_jobs_of_one_tenant_go_in_order(room: Room) -> None:
    for number in range(3):
        room.add(name=f"a{number}")
        room.clock.advance(1)
    assert [room.claim().job.name for _ in range(3)] == ["a0", "a1", "a2"]


def test_a_tenant_has_so_many_active_jobs_and_another_is_not_concerned(room: Room) -> None:
    for _ in range(MAX_ACTIVE):
        room.add()
    with pytest.raises(RateLimitedError) as caught:
        room.add()
    assert (caught.value.error_code, caught.value.retry_after_s) == ("too_many_jobs", 30)
    lease = room.claim()
    with pytest.raises(RateLimitedError):
        room.add()
    room.add(GLOBEX)
    room.within(lambda tx: room.queue.finish(tx, lease, JobState.FAILED, error=("job_failed", "no")))
    room.add()


def test_an_account_has_so_many_active_jobs_and_another_of_its_tenant_is_not_concerned(room: Room) -> None:
    room.limits.own[ACME] = TenantLimits(principal_active_jobs=2)
    for _ in range(2):
        room.add(principal="one")
    with pytest.raises(RateLimitedError, match="this account may have 2 jobs") as caught:
        room.add(principal="one")
    assert caught.value.error_code == "too_many_jobs"
    room.add(principal="two")


# --- leases ----------------------------------------------------------------------------------------


def every_use(room: Room, lease: Lease) -> list[Callable[[TenantTransaction], object]]:
    return [
        lambda tx: room.queue.renew(tx, lease, lease_s=LEASE_S),
        lambda tx: room.queue.progress(tx, lease, step=9, epsilon_charged=9.0),
        lambda tx: room.queue.check(tx, lease),
        lambda tx: room.queue.log(tx, lease, "zombie"),
        lambda tx: room.queue.finish(tx, lease, JobState.SUCCEEDED, result_version=9),
    ]


def refused(room: Room, lease: Lease) -> None:
    for use in every_use(room, lease):
        with pytest.raises(StaleLeaseError) as caught:
            room.within(use)
        assert caught.value.error_code == "stale_lease"


def test_a_lease_lapses_only_after_its_last_second(room: Room) -> None:
    room.add()
    lease = room.claim()
    room.clock.advance(LEASE_S)
    assert room.lapsed() == []
    room.clock.advance(1)
    assert [found.job.id for found in room.lapsed()] == [lease.job.id]
    room.within(lambda tx: room.queue.renew(tx, lease, lease_s=LEASE_S))
    assert room.lapsed() == []


def test_a_zombie_can_do_nothing_once_it_is_fenced_off(room: Room) -> None:
    job = room.add()
    zombie = room.claim()
    room.clock.advance(LEASE_S + 1)
    (lapsed,) = room.lapsed()

    def end(tx: TenantTransaction) -> None:
        fenced = room.queue.fence_off(tx, lapsed)
        assert fenced.fence == zombie.fence + 1
        room.queue.finish(tx, fenced, JobState.FAILED, error=("interrupted", "stopped"))

    room.within(end)
    before = room.find(job)
    refused(room, zombie)
    assert room.find(job) == before
    assert (before.state, before.error_code, before.step) == (JobState.FAILED, "interrupted", 0)
    with room.database.tenant(ACME, by=BY, read_only=True) as tx:
        assert room.queue.lines(tx, job.id, after=-1, limit=10) == []


def test_fencing_off_alone_stops_the_zombie(room: Room) -> None:
    room.add()
    zombie = room.claim()
    room.clock.advance(LEASE_S + 1)
    room.within(lambda tx: room.queue.fence_off(tx, room.lapsed()[0]))
    refused(room, zombie)


def test_a_holder_that_renewed_in_time_is_not_fenced_off(room: Room) -> None:
    room.add()
    lease = room.claim()
    room.clock.advance(LEASE_S + 1)
    (lapsed,) = room.lapsed()
    room.within(lambda tx: room.queue.renew(tx, lease, lease_s=LEASE_S))
    with pytest.raises(StaleLeaseError):
        room.within(lambda tx: room.queue.fence_off(tx, lapsed))
    room.within(lambda tx: room.queue.finish(tx, lease, JobState.SUCCEEDED))


def test_a_lapsed_job_is_fenced_off_by_one_alone(room: Room) -> None:
    room.add()
    room.claim()
    room.clock.advance(LEASE_S + 1)
    one, other = room.lapsed(), room.lapsed()
    room.within(lambda tx: room.queue.fence_off(tx, one[0]))
    with pytest.raises(StaleLeaseError):
        room.within(lambda tx: room.queue.fence_off(tx, other[0]))


def test_a_finished_job_ends_once(room: Room) -> None:
    job = room.add()
    lease = room.claim()
    room.within(lambda tx: room.queue.finish(tx, lease, JobState.FAILED, error=("job_failed", "no")))
    before = room.find(job)
    refused(room, lease)
    room.clock.advance(3600)
    assert room.lapsed() == []
    assert room.find(job) == before


def test_the_lease_of_another_tenants_job_changes_nothing(room: Room) -> None:
    job = room.add(GLOBEX)
    lease = room.claim()
    refused(room, lease)  # in transactions of ACME
    assert room.find(job).state is JobState.RUNNING


# --- cancel ----------------------------------------------------------------------------------------


def cancel(room: Room, job: Job) -> object:
    return room.within(lambda tx: room.queue.request_cancel(tx, job.id))


def test_a_queued_job_is_cancelled_at_once(room: Room) -> None:
    job = room.add()
    assert cancel(room, job) is True
    assert (room.find(job).state, room.find(job).finished_at) == (JobState.CANCELLED, job.created_at)
    with room.database.platform() as tx:
        assert room.queue.claim(tx, "h1", lease_s=LEASE_S) is None
    assert cancel(room, job) is False


def test_the_holder_of_a_running_job_is_told(room: Room) -> None:
    job = room.add()
    lease = room.claim()
    assert cancel(room, job) is True
    assert room.find(job).state is JobState.RUNNING
    assert room.within(lambda tx: room.queue.renew(tx, lease, lease_s=LEASE_S)) is True
    room.within(lambda tx: room.queue.finish(tx, lease, JobState.CANCELLED))
    assert cancel(room, job) is False


def test_another_tenants_job_cannot_be_cancelled(room: Room) -> None:
    job = room.add(GLOBEX)
    assert cancel(room, job) is False
    assert room.find(job).state is JobState.QUEUED


# --- logs and lists --------------------------------------------------------------------------------


def test_a_log_is_bounded_in_lines_and_in_length(room: Room) -> None:
    job = room.add()
    lease = room.claim()

    def write(tx: TenantTransaction) -> None:
        for number in range(MAX_LINES + 5):
            room.queue.log(tx, lease, f"{number} " + "x" * 500)

    room.within(write)
    with room.database.tenant(ACME, by=BY, read_only=True) as tx:
        lines = room.queue.lines(tx, job.id, after=-1, limit=MAX_LINES * 2)
        assert [line.number for line in room.queue.lines(tx, job.id, after=7, limit=2)] == [8, 9]
    assert [line.number for line in lines] == list(range(MAX_LINES))
    assert {len(line.text) for line in lines} == {400}


def test_pages_of_jobs_neither_repeat_nor_miss_one(room: Room) -> None:
    names = [f"m{number}" for number in range(7)]
    for number, name in enumerate(names):
        room.add(name=name)
        room.clock.advance(number % 2)
    room.add(GLOBEX)
    seen: list[Job] = []
    with room.database.tenant(ACME, by=BY, read_only=True) as tx:
        while page := room.queue.list(tx, after=sort_key(seen[-1]) if seen else "", limit=3):
            seen += page
    assert sorted(job.name for job in seen) == names
    assert [job.created_at for job in seen] == sorted((job.created_at for job in seen), reverse=True)


@pytest.mark.parametrize("after", ["x/job_1", "-1/job_1", "1e3/", "²/job_1", "9" * 30 + "/job_1", "/"])
def test_a_forged_cursor_is_malformed(room: Room, after: str) -> None:
    with room.database.tenant(ACME, by=BY, read_only=True) as tx, pytest.raises(MalformedError) as caught:
        room.queue.list(tx, after=after, limit=3)
    assert caught.value.error_code == "invalid_page"


def test_claiming_reads_no_payload_but_its_own(room: Room) -> None:
    room.add()
    room.add()
    with statements(room.database) as ran:
        room.claim()
    assert sum(jobs.c.payload.name in statement for _, statement in ran) == 1
