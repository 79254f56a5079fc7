"""The ledger against a simple model: any sequence of reservations, charges, restarts, zombies, restores, closings."""

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fakes.core import ACME, FakeClock, FakeEntropy
from fakes.storage import fresh
from modelkeep_platform.core.errors import BudgetError, ConflictError
from modelkeep_platform.core.ids import ObjectId
from modelkeep_platform.privacy.budgets import ReservationState
from modelkeep_platform.privacy.epochs import begin_restored_epoch, end_freeze
from modelkeep_platform.privacy.grid import UNITS, fit_grid
from modelkeep_platform.privacy.ledger import BudgetLedger
from modelkeep_platform.privacy.plan import MechanismPlan
from modelkeep_platform.storage.tables.privacy import privacy_budgets, privacy_charges, privacy_reservations
from modelkeep_platform.storage.transactions import System, TenantTransaction

DATASET = ObjectId("ds_1")
GRID = fit_grid(epsilon=2.5, delta=1e-5)
NOISES = (3.0, 6.0, 12.0)


class Held:
    """The model's idea of one reservation."""

    def __init__(self, noise: float, steps: int, fence: int, epoch: int, real: ObjectId) -> None:
        self.step = GRID.step(noise_multiplier=noise, sample_rate=0.25)
        self.steps, self.fence, self.epoch, self.real = steps, fence, epoch, real
        self.charged = 0
        self.open = True
        self.segments: dict[tuple[int, int], int] = {}


class LedgerMachine(RuleBasedStateMachine):
    """Each rule does one thing in a transaction of its own, and says beforehand what must come of it."""

    def __init__(self) -> None:
        super().__init__()
        self.database = fresh("sqlite:///:memory:", tables=[privacy_budgets, privacy_reservations, privacy_charges])
        self.ledger = BudgetLedger(clock=FakeClock(), entropy=FakeEntropy())
        self.jobs: dict[str, list[Held]] = {}
        self.epoch = 1
        self.within(lambda tx: self.ledger.open(tx, DATASET, 2.5, 1e-5))

    def teardown(self) -> None:
        self.database.close()

    def within(self, work: Callable[[TenantTransaction], object]) -> object:
        with self.database.tenant(ACME, by=System(reason="test")) as tx:
            return work(tx)

    def refused(self, code: str, work: Callable[[TenantTransaction], object]) -> None:
        with pytest.raises(ConflictError) as raised:
            self.within(work)
        assert raised.value.error_code == code

    def total(self, *, reserved: bool) -> list[int]:
        result = [0] * len(GRID.orders)
        for held in (held for attempts in self.jobs.values() for held in attempts):
            steps = held.steps if reserved and held.open else held.charged
            result = [unit + steps * cost for unit, cost in zip(result, held.step, strict=True)]
        return result

    @rule(
        job=st.integers(0, 4),
        noise=st.sampled_from(NOISES),
        steps=st.integers(1, 120),
        restart=st.booleans(),
    )
    def reserve(self, job: int, noise: float, steps: int, restart: bool) -> None:
        # A job of an earlier epoch reserves nothing: that is another rule.
        job_id = ObjectId(f"job_{self.epoch}_{job}")
        attempts = self.jobs.setdefault(job_id, [])
        latest = attempts[-1] if attempts else None
        if latest is not None and latest.open and not restart:
            return  # asking again with the same fence is another rule
        fence = 0 if latest is None else latest.fence + (1 if restart else 0)
        plan = MechanismPlan(
            noise_multiplier=noise,
            sample_rate=0.25,
            steps=steps,
            clip_norm=1.0,
            n_public=10,
            delta=1e-5,
            epsilon=100.0,
        )
        others = self.total(reserved=True)
        if latest is not None and latest.open:
            back = latest.steps - latest.charged
            others = [unit - back * cost for unit, cost in zip(others, latest.step, strict=True)]
        wanted = [unit + cost for unit, cost in zip(others, plan.cost(GRID), strict=True)]
        if not GRID.fits(wanted):
            with pytest.raises(BudgetError) as raised:
                self.within(lambda tx: self.ledger.reserve(tx, DATASET, job_id, plan, fence))
            assert raised.value.details["epsilon_limit"] == 2.5
            return
        found = self.within(lambda tx: self.ledger.reserve(tx, DATASET, job_id, plan, fence))
        if latest is not None and latest.open:
            latest.open, latest.fence = False, fence
        attempts.append(Held(noise, steps, fence, self.epoch, getattr(found, "id")))  # noqa: B009 -- typed object

    def pick(self, data: st.DataObject) -> Held:
        return data.draw(st.sampled_from([held for attempts in self.jobs.values() for held in attempts]))

    @precondition(lambda self: any(self.jobs.values()))
    @rule(data=st.data(), segment=st.integers(0, 5), steps=st.integers(1, 40), ahead=st.integers(-1, 1))
    def charge(self, data: st.DataObject, segment: int, steps: int, ahead: int) -> None:
        held = self.pick(data)
        fence = held.fence + ahead

        def work(tx: TenantTransaction) -> object:
            return self.ledger.charge(tx, held.real, steps, fence, segment=segment)

        known = held.segments.get((fence, segment))
        if held.epoch != self.epoch:
            self.refused("stale_ledger_epoch", work)
        elif ahead < 0:
            self.refused("stale_lease", work)
        elif known is not None:
            if known == steps:
                self.within(work)
            else:
                self.refused("segment_mismatch", work)
        elif not held.open:
            self.refused("reservation_closed", work)
        elif steps > held.steps - held.charged:
            self.refused("reservation_exhausted", work)
        else:
            self.within(work)
            held.charged += steps
            held.fence = fence
            held.segments[fence, segment] = steps

    @precondition(lambda self: any(self.jobs.values()))
    @rule(data=st.data(), ahead=st.integers(-1, 2), how=st.sampled_from(["commit", "release"]))
    def close(self, data: st.DataObject, ahead: int, how: str) -> None:
        held = self.pick(data)
        fence = held.fence + ahead

        def work(tx: TenantTransaction) -> object:
            return (self.ledger.commit if how == "commit" else self.ledger.release)(tx, held.real, fence)

        if held.epoch != self.epoch:
            self.refused("stale_ledger_epoch", work)
        elif ahead < 0:
            self.refused("stale_lease", work)
        elif not held.open:
            self.refused("reservation_closed", work)
        else:
            self.within(work)
            held.open, held.fence = False, fence

    @precondition(lambda self: any(self.jobs.values()))
    @rule(data=st.data(), steps=st.integers(1, 40))
    def crash_before_the_commit(self, data: st.DataObject, steps: int) -> None:
        held = self.pick(data)

        def work(tx: TenantTransaction) -> object:
            self.ledger.charge(tx, held.real, steps, held.fence, segment=99)
            raise KeyboardInterrupt

        with pytest.raises((KeyboardInterrupt, ConflictError)):
            self.within(work)

    @precondition(lambda self: any(self.jobs.values()) and self.epoch < 3)
    @rule(chance=st.integers(0, 4))
    def restore(self, chance: int) -> None:
        if chance:
            return
        with self.database.platform() as tx:
            begin_restored_epoch(tx, clock=FakeClock(), entropy=FakeEntropy())
            end_freeze(tx, freed=True)
        self.epoch += 1

    @precondition(lambda self: self.epoch > 1)
    @rule(data=st.data(), ahead=st.integers(0, 2))
    def reserve_for_a_job_from_before_the_restore(self, data: st.DataObject, ahead: int) -> None:
        job_id = data.draw(st.sampled_from([job for job, held in self.jobs.items() if held]))
        latest = self.jobs[job_id][-1]
        if latest.epoch != self.epoch:
            plan = MechanismPlan(
                noise_multiplier=12.0,
                sample_rate=0.25,
                steps=1,
                clip_norm=1.0,
                n_public=10,
                delta=1e-5,
                epsilon=100.0,
            )
            self.refused(
                "stale_ledger_epoch",
                lambda tx: self.ledger.reserve(tx, DATASET, ObjectId(job_id), plan, latest.fence + ahead),
            )

    @invariant()
    def the_ledger_says_what_the_model_says(self) -> None:
        if not hasattr(self, "jobs"):
            return
        spent, together = self.total(reserved=False), self.total(reserved=True)
        # INVARIANT: never overspent, whatever is charged of what is reserved.
        assert GRID.fits(together)
        with self.database.tenant(ACME, by=System(reason="test"), read_only=True) as tx:
            view = self.ledger.view(tx, DATASET)
        assert view.epsilon_spent == GRID.epsilon(spent)
        grown = GRID.epsilon_units(together) - GRID.epsilon_units(spent)
        assert abs(view.epsilon_reserved * UNITS - grown) <= UNITS // 10**6
        assert sorted((line.steps, line.state is ReservationState.OPEN) for line in view.charges) == sorted(
            (held.charged, held.open)
            for attempts in self.jobs.values()
            for held in attempts
            if held.charged or held.open
        )


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)
