"""Cycles of the budget ledger: reserve, charge and commit, one transaction each, and all three in one."""

import sqlite3
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

from benchmarks.harness import Figure, Floor, interleave
from fakes.core import ACME, FakeClock, FakeEntropy
from fakes.storage import fresh
from modelkeep_platform.core.ids import ObjectId
from modelkeep_platform.privacy.grid import fit_grid
from modelkeep_platform.privacy.ledger import BudgetLedger
from modelkeep_platform.privacy.plan import MechanismPlan, calibrate
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.transactions import System, TenantTransaction

TITLE = "Budget ledger"
BY = System(reason="a benchmark")
DATASET = ObjectId("ds_1")
EPSILON, DELTA = 100.0, 1e-6


def measure(folder: Path) -> list[Figure]:
    """Measure cycles with and without fsync, against the same number of bare SQLite transactions of three UPDATEs."""
    durable, quick = _database(folder / "durable.db", durable=True), _database(folder / "quick.db", durable=False)
    plan = calibrate(
        epsilon=10.0,
        delta=DELTA,
        sample_rate=0.01,
        steps=100,
        clip_norm=1.0,
        n_public=10_000,
        grid=fit_grid(epsilon=EPSILON, delta=DELTA),
    )
    jobs = count()
    cycle = _Cycle(plan, jobs)
    bare_durable, bare_quick = _Bare(folder / "bare1.db", "FULL"), _Bare(folder / "bare2.db", "OFF")
    sides = interleave(
        _rate(lambda: cycle.in_one(quick), times=30),
        _rate(lambda: cycle.in_three(durable), times=30),
        _rate(bare_quick.one, times=300),
        _rate(bare_durable.three, times=50),
    )
    durable.close()
    quick.close()
    in_one, in_three, one, three = sides
    return [
        Figure(
            name="reserve, charge, commit in one transaction, no fsync",
            unit="cycles/s",
            ours=in_one,
            against="bare SQLite, the same rows by hand, no fsync",
            theirs=one,
            more_is_better=True,
            floor=Floor(at_least=1000, ratio=0.02),
        ),
        Figure(
            name="reserve, charge, commit, each its own durable transaction",
            unit="cycles/s",
            ours=in_three,
            against="bare SQLite, the same rows by hand, three durable transactions",
            theirs=three,
            more_is_better=True,
        ),
    ]


class _Cycle:
    def __init__(self, plan: MechanismPlan, jobs: "count[int]") -> None:
        self._plan, self._jobs = plan, jobs
        self._ledger = BudgetLedger(clock=FakeClock(), entropy=FakeEntropy(3))
        self._datasets: dict[int, ObjectId] = {}

    def in_one(self, database: Database) -> None:
        with database.tenant(ACME, by=BY) as tx:
            found = self._reserve(tx)
            self._ledger.charge(tx, found, 1, 0)
            self._ledger.commit(tx, found, 0)

    def in_three(self, database: Database) -> None:
        with database.tenant(ACME, by=BY) as tx:
            found = self._reserve(tx)
        with database.tenant(ACME, by=BY) as tx:
            self._ledger.charge(tx, found, 1, 0)
        with database.tenant(ACME, by=BY) as tx:
            self._ledger.commit(tx, found, 0)

    def _reserve(self, tx: TenantTransaction) -> ObjectId:
        return self._ledger.reserve(tx, DATASET, ObjectId(f"job_{next(self._jobs)}"), self._plan).id


def _database(path: Path, *, durable: bool) -> Database:
    database = fresh(f"sqlite:///{path}", durable=durable)
    with database.tenant(ACME, by=BY) as tx:
        BudgetLedger(clock=FakeClock(), entropy=FakeEntropy(1)).open(tx, DATASET, EPSILON, DELTA)
    return database


class _Bare:
    """What one would write by hand: two tables, five statements, no grid, no checks, no fences."""

    def __init__(self, path: Path, synchronous: str) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        for statement in (
            "PRAGMA journal_mode=WAL",
            f"PRAGMA synchronous={synchronous}",
            "CREATE TABLE budget (id TEXT PRIMARY KEY, charged REAL, reserved REAL)",
            "CREATE TABLE reservation (id INTEGER PRIMARY KEY, job TEXT, plan TEXT, charged INTEGER, state TEXT)",
            "INSERT INTO budget VALUES ('ds_1', 0, 0)",
        ):
            self._connection.execute(statement)

    def one(self) -> None:
        self._within(self._reserve, self._charge, self._commit)

    def three(self) -> None:
        for move in (self._reserve, self._charge, self._commit):
            self._within(move)

    def _within(self, *moves: Callable[[], None]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        for move in moves:
            move()
        self._connection.execute("COMMIT")

    def _reserve(self) -> None:
        self._connection.execute("UPDATE budget SET reserved = reserved + 1 WHERE id = 'ds_1'")
        self._connection.execute(
            "INSERT INTO reservation (job, plan, charged, state) VALUES ('j', ?, 0, 'open')", ("x" * 200,)
        )

    def _charge(self) -> None:
        self._connection.execute("UPDATE budget SET reserved = reserved - 1, charged = charged + 1 WHERE id = 'ds_1'")
        self._connection.execute("UPDATE reservation SET charged = 1 WHERE id = (SELECT max(id) FROM reservation)")

    def _commit(self) -> None:
        self._connection.execute("UPDATE reservation SET state = 'done' WHERE id = (SELECT max(id) FROM reservation)")


def _rate(work: Callable[[], object], *, times: int) -> Callable[[], float]:
    def side() -> float:
        began = time.perf_counter()
        for _ in range(times):
            work()
        return times / (time.perf_counter() - began)

    return side
