"""The audit room over a real database: recorder, integrator, reader, and hands that write behind their backs."""

import base64
import json
from typing import Any

import sqlalchemy as sa

from fakes.core import (
    ACME,
    GLOBEX,
    FakeAuthorizer,
    FakeClock,
    FakeEntropy,
    FakeSealer,
    tenant_caller,
)
from fakes.log import FakeSigner
from modelkeep_platform.audit.checkpoint import Checkpoint, verify
from modelkeep_platform.audit.entries import AUDIT_KEY
from modelkeep_platform.audit.integrator import Integrator
from modelkeep_platform.audit.log import AuditLog
from modelkeep_platform.audit.service import AuditService
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import Role
from modelkeep_platform.core.events import Event, Outcome
from modelkeep_platform.core.ids import PLATFORM, ObjectId
from modelkeep_platform.core.ports import Transaction
from modelkeep_platform.core.refs import Kind, ResourceRef
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.tables.audit import audit_entries

ORIGIN = "modelkeep.test/log"
MODEL = ResourceRef(owner=ACME, kind=Kind.MODEL, object_id=ObjectId("mdl_1"))


class Log:
    """One log; analysts may not read it."""

    def __init__(self, database: Database, clock: FakeClock) -> None:
        self.database, self.clock = database, clock
        self.entropy = FakeEntropy(7)
        self.sealer = FakeSealer()
        self.sealer.keys |= {(ACME, AUDIT_KEY), (GLOBEX, AUDIT_KEY), (PLATFORM, AUDIT_KEY)}
        self.signer = FakeSigner()
        self.log = AuditLog(database=database, sealer=self.sealer, clock=clock, entropy=self.entropy)
        self.integrator = self.new_integrator()
        self.service = AuditService(
            database=database,
            authorizer=FakeAuthorizer(
                lambda caller, *_: not hasattr(caller, "roles") or Role.ANALYST not in caller.roles
            ),
            sealer=self.sealer,
            signer=self.signer,
            origin=ORIGIN,
        )

    def new_integrator(self) -> Integrator:
        """Return an integrator as a restarted server has it: it remembers nothing."""
        return Integrator(
            database=self.database, signer=self.signer, origin=ORIGIN, clock=self.clock, entropy=self.entropy
        )

    def record(self, event: Event) -> None:
        with self.database.platform() as tx:
            self.log.record(tx, event)

    def grow(self, count: int) -> Checkpoint:
        """Add entries, integrate them, and return the checkpoint that somebody outside keeps."""
        for _ in range(count):
            self.record(event())
        self.integrator.integrate_now()
        return self.checkpoint()

    def checkpoint(self) -> Checkpoint:
        note = self.service.checkpoint(tenant_caller())
        return verify(note, origin=ORIGIN, public_key=self.signer.public_key())

    def tamper(self, *statements: sa.Executable) -> None:
        """Write into the database as somebody who has it."""
        with self.database.platform() as tx:
            for statement in statements:
                tx.execute(statement)


class CommittedLog:
    """A recorder that is asked what of it was committed: what a transaction took back is not in it."""

    def __init__(self, database: Database, clock: FakeClock) -> None:
        self._database = database
        sealer = FakeSealer()
        sealer.keys |= {(ACME, AUDIT_KEY), (GLOBEX, AUDIT_KEY)}
        self._log = AuditLog(database=database, sealer=sealer, clock=clock, entropy=FakeEntropy(7))

    def record(self, tx: Transaction, event: Event) -> None:
        self._log.record(tx, event)

    def record_soon(self, event: Event) -> None:
        self._log.record_soon(event)

    def entries(self, *actions: str) -> list[dict[str, Any]]:
        """Return the entries of these actions, by default all, in their order."""
        with self._database.platform(read_only=True) as tx:
            rows = tx.all(sa.select(audit_entries.c.body).order_by(audit_entries.c.seq))
        found = [json.loads(row["body"]) for row in rows]
        return [entry for entry in found if not actions or entry["action"] in actions]


def event(**changes: object) -> Event:
    values: dict[str, Any] = {
        "tenant": ACME,
        "action": Action.MODEL_READ,
        "outcome": Outcome.DONE,
        "actor": tenant_caller(ACME, name="alice"),
        "ref": MODEL,
    }
    return Event(**(values | changes))


def hashes(encoded: list[str]) -> list[bytes]:
    return [base64.b64decode(value) for value in encoded]
