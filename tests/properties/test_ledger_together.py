"""One budget and several callers at the same instant, some of whom die before their commit, against a simple model."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fakes.core import ACME, FakeClock, FakeEntropy
from fakes.faulty_blobs import Crash
from fakes.ledger import newest_of_job
from fakes.storage import fresh
from fakes.together import in_some_order, together
from modelkeep_platform.core.errors import BudgetError, ConflictError
from modelkeep_platform.core.ids import ObjectId
from modelkeep_platform.privacy.grid import fit_grid
from modelkeep_platform.privacy.ledger import BudgetLedger
from modelkeep_platform.privacy.plan import calibrate
from modelkeep_platform.storage.tables.privacy import privacy_budgets, privacy_charges, privacy_reservations
from modelkeep_platform.storage.transactions import System, TenantTransaction

DATASET = ObjectId("ds_1")
GRID = fit_grid(epsilon=2.5, delta=1e-5)
STEPS = 12
PLAN = calibrate(epsilon=1.0, grid=GRID, delta=1e-5, sample_rate=0.25, steps=STEPS, clip_norm=1.0, n_public=100)
COST = PLAN.step_cost(GRID)
BY = System(reason="test")


@dataclass
class Held:
    """The model of one attempt's reservation."""

    charged: int = 0
    open: bool = True
    fence: int = 0
    segments: dict[tuple[int, int], int] = field(default_factory=dict)


Books = dict[int, list[Held]]
"""Of each job its attempts, the newest last."""


def every(books: Books) -> list[Held]:
    return [held for attempts in books.values() for held in attempts]


def units(books: Books, *, reserved: bool) -> list[int]:
    steps = sum(STEPS if held.open and reserved else held.charged for held in every(books))
    return [steps * cost for cost in COST]


@dataclass(frozen=True)
class Call:
    """What a caller asks of the ledger; whether it dies before its commit.

    Args:
        what: ``reserve``, ``charge``, ``commit`` or ``release``.
        job: of which job.
        fence: the caller's fencing number.
        segment: of a charge.
        steps: of a charge.
        dies: whether the process dies when all but the commit is done.
    """

    what: str
    job: int
    fence: int
    segment: int
    steps: int
    dies: bool


def apply(books: Books, call: Call) -> str:
    """Do the same to the model; return the code of the refusal, ``died`` or ``done``."""
    if call.what == "reserve":
        return _reserve(books, call)
    if call.job not in books:
        return "no_reservation"
    held = books[call.job][-1]
    if call.fence < held.fence:
        return "stale_lease"
    known = held.segments.get((call.fence, call.segment)) if call.what == "charge" else None
    if known is not None:
        return "segment_mismatch" if known != call.steps else "died" if call.dies else "done"
    if not held.open:
        return "reservation_closed"
    if call.what == "charge" and call.steps > STEPS - held.charged:
        return "reservation_exhausted"
    if call.dies:
        return "died"
    held.fence = call.fence
    if call.what == "charge":
        held.charged += call.steps
        held.segments[call.fence, call.segment] = call.steps
    held.open = call.what == "charge"
    return "done"


def _reserve(books: Books, call: Call) -> str:
    attempts = books.get(call.job, [])
    if attempts and attempts[-1].fence > 0:
        return "stale_lease"
    if attempts and attempts[-1].open:
        # Asked again by the same holder it is the same reservation.
        return "died" if call.dies else "done"
    wanted = [unit + STEPS * cost for unit, cost in zip(units(books, reserved=True), COST, strict=True)]
    if not GRID.fits(wanted):
        return "budget_exceeded"
    if call.dies:
        return "died"
    books.setdefault(call.job, []).append(Held())
    return "done"


JOBS = st.integers(0, 5)
CALLS = st.builds(
    Call,
    what=st.sampled_from(["reserve", "reserve", "charge", "charge", "charge", "commit", "release"]),
    job=JOBS,
    fence=st.integers(0, 2),
    segment=st.integers(0, 2),
    steps=st.integers(1, 6),
    dies=st.sampled_from([False, False, False, True]),
)


class LedgerTogether(RuleBasedStateMachine):
    """Each rule lets callers meet at one instant; some order of them must explain all that they were told."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        tables = [privacy_budgets, privacy_reservations, privacy_charges]
        self.database = fresh(f"sqlite:///{Path(self.folder.name) / 'platform.db'}", tables=tables)
        self.ledger = BudgetLedger(clock=FakeClock(), entropy=FakeEntropy())
        with self.database.tenant(ACME, by=BY) as tx:
            self.ledger.open(tx, DATASET, 2.5, 1e-5)
        self.books: Books = {}

    def teardown(self) -> None:
        self.database.close()
        self.folder.cleanup()

    def perform(self, call: Call) -> str:
        try:
            with self.database.tenant(ACME, by=BY) as tx:
                self._ask(tx, call)
                if call.dies:
                    raise Crash
        except (ConflictError, BudgetError) as error:
            return error.error_code
        except Crash:
            return "died"
        return "done"

    def _ask(self, tx: TenantTransaction, call: Call) -> None:
        job = ObjectId(f"job_{call.job}")
        if call.what == "reserve":
            self.ledger.reserve(tx, DATASET, job, PLAN)
            return
        held = newest_of_job(self.ledger, tx, job)
        real = ObjectId("res_none") if held is None else held.id
        if call.what == "charge":
            self.ledger.charge(tx, real, call.steps, call.fence, segment=call.segment)
            return
        moves: dict[str, Callable[[TenantTransaction, ObjectId, int], object]] = {
            "commit": self.ledger.commit,
            "release": self.ledger.release,
        }
        moves[call.what](tx, real, call.fence)

    @rule(calls=st.lists(CALLS, min_size=2, max_size=4))
    def meet(self, calls: list[Call]) -> None:
        told = together(self.perform, calls)
        after = in_some_order(self.books, apply, calls, told)
        assert after, (self.books, list(zip(calls, told, strict=True)))
        self.books = self._stored(after)

    def _stored(self, possible: list[Books]) -> Books:
        with self.database.tenant(ACME, by=BY, read_only=True) as tx:
            rows = tx.all(tx.select(privacy_reservations))
        found = sorted(
            (row["job_id"], row["attempt"], row["charged_steps"], row["state"] == "open", row["fence"]) for row in rows
        )
        for books in possible:
            if found == sorted(
                (f"job_{job}", number, held.charged, held.open, held.fence)
                for job, attempts in books.items()
                for number, held in enumerate(attempts, start=1)
            ):
                return books
        raise AssertionError((found, possible))

    @precondition(lambda self: self.books)
    @invariant()
    def nothing_is_overspent_or_lost(self) -> None:
        spent, held = units(self.books, reserved=False), units(self.books, reserved=True)
        assert GRID.fits(held)
        with self.database.tenant(ACME, by=BY, read_only=True) as tx:
            assert self.ledger.view(tx, DATASET).epsilon_spent == GRID.epsilon(spent)
            charges = tx.all(tx.select(privacy_charges))
        assert sum(row["steps"] for row in charges) == sum(one.charged for one in every(self.books))


TestLedgerTogether = LedgerTogether.TestCase
TestLedgerTogether.settings = settings(
    max_examples=15,
    stateful_step_count=10,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # threads do not repeat themselves: nothing to shrink
)
