"""One queue and several servers at the same instant, some of which die before their commit, against a simple model."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fakes.core import ACME, GLOBEX, FakeClock, FakeEntropy, FakeLimits
from fakes.faulty_blobs import Crash
from fakes.storage import fresh
from fakes.together import in_some_order, together
from modelkeep_platform.jobs.queue import JobQueue, JobState, Lease, StaleLeaseError
from modelkeep_platform.storage.tables.jobs import job_lines, jobs
from modelkeep_platform.storage.transactions import PlatformTransaction, System

BY = System(reason="test")
LEASE_S = 30


@dataclass
class Job:
    """The model of a job."""

    tenant: str
    state: str = "queued"
    fence: int = 0
    over: bool = False  # its lease
    cancel: bool = False


@dataclass
class Board:
    """The model of the queue: jobs in the order in which they are claimed."""

    jobs: dict[str, Job] = field(default_factory=dict)

    def next(self) -> str | None:
        """Return the job that is claimed next."""
        running = [job.tenant for job in self.jobs.values() if job.state == "running"]
        queued = [(running.count(job.tenant), at, name) for at, (name, job) in enumerate(self.jobs.items())]
        fitting = [one for one in queued if self.jobs[one[2]].state == "queued"]
        return min(fitting)[2] if fitting else None


@dataclass(frozen=True)
class Call:
    """What a server asks of the queue; whether it dies before its commit.

    Args:
        what: ``claim``, ``renew``, ``finish``, ``put_back``, ``cancel`` or ``fence_off``.
        job: which job, by its place; not for a claim.
        fence: the fencing number of the lease that it acts under.
        dies: whether the process dies when all but the commit is done.
    """

    what: str
    job: int
    fence: int
    dies: bool


def apply(board: Board, call: Call) -> str:
    """Do the same to the model; return what the caller is told."""
    if call.what == "claim":
        name = board.next()
        if name is None:
            return "died" if call.dies else "nothing"
        if call.dies:
            return "died"
        job = board.jobs[name]
        job.state, job.fence, job.over = "running", job.fence + 1, False
        return f"{name} {job.fence}"
    job = list(board.jobs.values())[call.job % len(board.jobs)]
    if call.what == "cancel":
        return _cancel(job, call)
    if job.state != "running" or job.fence != call.fence or (call.what == "fence_off" and not job.over):
        return "stale_lease"
    if call.dies:
        return "died"
    if call.what == "renew":
        job.over = False
        return "cancelled" if job.cancel else "done"
    if call.what == "finish":
        job.state = "failed"
    elif call.what == "put_back":
        job.state = "queued"
    else:
        job.fence += 1
    return "done"


def _cancel(job: Job, call: Call) -> str:
    active = job.state in ("queued", "running")
    if call.dies:
        return "died"
    if active:
        job.cancel = True
        job.state = "cancelled" if job.state == "queued" else job.state
    return "done" if active else "ended"


CALLS = st.builds(
    Call,
    what=st.sampled_from(["claim", "claim", "renew", "finish", "put_back", "cancel", "fence_off", "fence_off"]),
    job=st.integers(0, 3),
    fence=st.integers(1, 3),
    dies=st.sampled_from([False, False, False, True]),
)


class LeasesTogether(RuleBasedStateMachine):
    """Each rule lets servers meet at one instant; some order of them must explain all that they were told."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.database = fresh(f"sqlite:///{Path(self.folder.name) / 'platform.db'}", tables=[jobs, job_lines])
        self.clock = FakeClock()
        self.queue = JobQueue(clock=self.clock, entropy=FakeEntropy(), limits=FakeLimits(running_jobs=1000))
        self.board = Board()

    def teardown(self) -> None:
        self.database.close()
        self.folder.cleanup()

    @initialize()
    def enqueue(self) -> None:
        for tenant in (ACME, ACME, GLOBEX, ACME):
            name = self.queue.new_id()
            with self.database.tenant(tenant, by=BY) as tx:
                self.queue.enqueue(tx, job_id=name, kind="training", name="m", payload=b"", principal="p", steps=9)
            self.board.jobs[name] = Job(tenant)
            self.clock.advance(1)

    @rule()
    def leases_are_over(self) -> None:
        self.clock.advance(LEASE_S + 1)
        for job in self.board.jobs.values():
            job.over = True

    def perform(self, call: Call) -> str:
        try:
            with self.database.platform() as tx:
                told = self._ask(tx, call)
                if call.dies:
                    raise Crash
        except StaleLeaseError as error:
            return error.error_code
        except Crash:
            return "died"
        return told

    def _ask(self, tx: PlatformTransaction, call: Call) -> str:
        if call.what == "claim":
            claimed = self.queue.claim(tx, "holder", lease_s=LEASE_S)
            return "nothing" if claimed is None else f"{claimed.job.id} {claimed.fence}"
        name = list(self.board.jobs)[call.job % len(self.board.jobs)]
        own = tx.as_tenant(self.board.jobs[name].tenant)  # type: ignore[arg-type]
        found = self.queue.find(own, name)
        assert found is not None
        lease = Lease(job=found, holder="holder", fence=call.fence)
        if call.what == "cancel":
            return "done" if self.queue.request_cancel(own, name) else "ended"
        if call.what == "renew":
            return "cancelled" if self.queue.renew(own, lease, lease_s=LEASE_S) else "done"
        if call.what == "finish":
            self.queue.finish(own, lease, JobState.FAILED)
        elif call.what == "put_back":
            self.queue.put_back(own, lease, step=1, epsilon_charged=None)
        else:
            self.queue.fence_off(own, lease)
        return "done"

    @rule(calls=st.lists(CALLS, min_size=2, max_size=4))
    def meet(self, calls: list[Call]) -> None:
        told = together(self.perform, calls)
        after = in_some_order(self.board, apply, calls, told)
        assert after, (self.board, list(zip(calls, told, strict=True)))
        fitting = [board for board in after if self._stored() == _shown(board)]
        assert fitting, (after, self._stored())
        self.board = fitting[0]

    def _stored(self) -> dict[str, tuple[str, int, bool]]:
        with self.database.platform(read_only=True) as tx:
            rows = tx.all(sa.select(jobs))
        return {row["id"]: (row["state"], row["fence"], bool(row["cancel"])) for row in rows}

    @invariant()
    def whose_lease_is_over_is_found_and_nobody_else(self) -> None:
        with self.database.platform(read_only=True) as tx:
            lapsed = {lease.job.id for lease in self.queue.lapsed(tx)}
        assert lapsed == {name for name, job in self.board.jobs.items() if job.state == "running" and job.over}


def _shown(board: Board) -> dict[str, tuple[str, int, bool]]:
    return {name: (job.state, job.fence, job.cancel) for name, job in board.jobs.items()}


TestLeasesTogether = LeasesTogether.TestCase
TestLeasesTogether.settings = settings(
    max_examples=15,
    stateful_step_count=10,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # threads do not repeat themselves: nothing to shrink
)
