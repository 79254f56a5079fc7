"""The audit log: entries of predictions committed in groups, their integration into the tree, and proofs."""

import sqlite3
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.harness import Figure, Floor, each_us, interleave
from fakes.audit import MODEL, ORIGIN, event
from fakes.core import ACME, FakeAuthorizer, tenant_caller
from fakes.log import FakeSigner
from fakes.storage import fresh
from modelkeep_platform.audit.entries import AUDIT_KEY
from modelkeep_platform.audit.integrator import Integrator
from modelkeep_platform.audit.log import AuditLog
from modelkeep_platform.audit.merkle import root_of
from modelkeep_platform.audit.service import AuditService
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.decisions import Decision, Side
from modelkeep_platform.keys.roots.port import RootKey
from modelkeep_platform.keys.service import KeyService
from modelkeep_platform.storage.transactions import System
from modelkeep_platform.telemetry.system import SystemClock, SystemEntropy

TITLE = "Audit log"
GROUP = 2_000
BY = System(reason="a benchmark")


def measure(folder: Path) -> list[Figure]:
    """Measure appends with names sealed and fsync on, against bare inserts of as many rows of as many bytes."""
    room = _Room(folder)
    bare = _Bare(folder / "bare.db")
    room.append()
    room.integrator.integrate_now()
    appended, inserted = interleave(lambda: room.rate(room.append), lambda: room.rate(bare.insert))
    size = room.integrator.integrate_now()

    def integrate() -> float:
        room.append()
        return room.rate(room.integrator.integrate_now)

    (integrated,) = interleave(integrate)
    caller, proofs = tenant_caller(ACME), count()
    leaves = [at.to_bytes(32, "big") for at in range(size)]
    proof, whole = interleave(
        each_us(lambda: room.service.inclusion(caller, next(proofs) * 7 % size), times=100),
        each_us(lambda: root_of(leaves), times=2),
    )
    room.database.close()
    return [
        Figure(
            name=f"appends, in groups of {GROUP}",
            unit="entries/s",
            ours=appended,
            against="bare SQLite, the same bytes, one transaction",
            theirs=inserted,
            more_is_better=True,
            floor=Floor(at_least=10_000, ratio=0.08),
        ),
        Figure(name="integration: index, tree, checkpoint", unit="entries/s", ours=integrated, more_is_better=True),
        Figure(
            name=f"proof that an entry is among {size}",
            unit="µs",
            ours=proof,
            against="hashing the whole tree",
            theirs=whole,
        ),
    ]


class _Room:
    def __init__(self, folder: Path) -> None:
        from fakes.root_keys import FakeRootKey

        clock, entropy, signer, root = SystemClock(), SystemEntropy(), FakeSigner(), FakeRootKey()
        typed: RootKey = root
        self.database = fresh(f"sqlite:///{folder / 'platform.db'}")
        keys = KeyService(database=self.database, root=typed, clock=clock, entropy=entropy)
        with self.database.tenant(ACME, by=BY) as tx:
            keys.create_tenant_key(tx, ACME)
            keys.create_key(tx, ACME, AUDIT_KEY)
        self.log = AuditLog(database=self.database, sealer=keys, clock=clock, entropy=entropy)
        self.integrator = Integrator(database=self.database, signer=signer, origin=ORIGIN, clock=clock, entropy=entropy)
        self.service = AuditService(
            database=self.database, authorizer=FakeAuthorizer(), sealer=keys, signer=signer, origin=ORIGIN
        )
        decision = Decision(
            allow=True,
            action=Action.MODEL_PREDICT,
            ref=MODEL,
            caller_tenant=ACME,
            sides=(Side(tenant=ACME, policies=("developers-use-models",), policy_version=1),),
        )
        self._event = event(action=Action.MODEL_PREDICT, decision=decision, facts={"version": 1})

    def append(self) -> None:
        for _ in range(GROUP):
            self.log.record_soon(self._event)
        self.log.flush()

    def rate(self, work: Callable[[], Any]) -> float:
        began = time.perf_counter()
        work()
        return GROUP / (time.perf_counter() - began)


class _Bare:
    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        for statement in (
            "PRAGMA journal_mode=WAL",
            "PRAGMA synchronous=FULL",
            "CREATE TABLE entry (seq INTEGER PRIMARY KEY, id TEXT UNIQUE, tenant TEXT, at INT, salt BLOB, body BLOB)",
        ):
            self._connection.execute(statement)
        self._next = 0

    def insert(self) -> None:
        rows = [(f"log_{self._next + at:026d}", str(ACME), 0, b"s" * 32, b"b" * 700) for at in range(GROUP)]
        self._next += GROUP
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany("INSERT INTO entry (id, tenant, at, salt, body) VALUES (?, ?, ?, ?, ?)", rows)
        self._connection.execute("COMMIT")
