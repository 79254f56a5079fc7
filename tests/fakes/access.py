"""The access room over real storage: Acme and Globex, their policies and grants, and names that resolve."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from fakes.core import ACME, GLOBEX, FakeClock, FakeEntropy, FakeLimits, FakeRecorder
from fakes.storage import fresh
from modelkeep_platform.access.grants import GrantService
from modelkeep_platform.access.policies import PolicyService
from modelkeep_platform.access.service import PolicyAuthorizer
from modelkeep_platform.access.store import AccessStore
from modelkeep_platform.core.callers import Caller, TenantCaller
from modelkeep_platform.core.errors import ModelkeepError
from modelkeep_platform.core.events import Event, Outcome
from modelkeep_platform.core.ids import ObjectId, TenantId
from modelkeep_platform.core.refs import Kind, ResourceRef, missing
from modelkeep_platform.core.refusals import Quota
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.epoch import EpochWatcher
from modelkeep_platform.storage.tables.access import active_policies, grants, policy_versions
from modelkeep_platform.storage.transactions import System

INITECH = TenantId("cccccccc-0000-4000-8000-000000000003")
TENANTS = {"acme": ACME, "globex": GLOBEX, "initech": INITECH}
BY = System(reason="test")
MODEL = ResourceRef(owner=ACME, kind=Kind.MODEL, object_id=ObjectId("mdl_acme"))
DATASET = ResourceRef(owner=ACME, kind=Kind.DATASET, object_id=ObjectId("dst_acme"))
FOREIGN = ResourceRef(owner=GLOBEX, kind=Kind.MODEL, object_id=ObjectId("mdl_globex"))
_NAMES = {(ACME, "m"): MODEL, (ACME, "d"): DATASET, (GLOBEX, "m"): FOREIGN}


def quick_database(path: Path) -> Database:
    """Make a database with every table that does not wait for the disk: what is durable is tested elsewhere."""
    return fresh(f"sqlite:///{path}", durable=False)


class Names:
    """Slugs of three tenants."""

    def id_of(self, slug: str) -> TenantId | None:
        return TENANTS.get(slug)

    def slug_of(self, tenant: TenantId) -> str:
        return next(slug for slug, known in TENANTS.items() if known == tenant)


class Process:
    """One server process: what it keeps in memory, over a database that it shares."""

    def __init__(self, database: Database, clock: FakeClock, recorder: FakeRecorder) -> None:
        self.epoch = EpochWatcher(database=database, clock=clock)
        self.epoch.refresh()
        self.store = AccessStore(database=database)
        self.limits = FakeLimits()
        self.authorizer = PolicyAuthorizer(
            database=database,
            store=self.store,
            recorder=recorder,
            epoch=self.epoch,
            clock=clock,
            refusals_per_minute=lambda tenant: Quota(
                self.limits.of(tenant).refusals_per_minute, self.limits.of(tenant).principal_refusals_per_minute
            ),
        )
        self.policies = PolicyService(
            database=database,
            authorizer=self.authorizer,
            recorder=recorder,
            epoch=self.epoch,
            clock=clock,
            limits=self.limits,
        )
        self.grants = GrantService(
            database=database,
            authorizer=self.authorizer,
            recorder=recorder,
            epoch=self.epoch,
            clock=clock,
            entropy=FakeEntropy(),
            resolvers={Kind.MODEL: resolver(Kind.MODEL), Kind.DATASET: resolver(Kind.DATASET)},
            tenants=Names(),
        )


class AccessRoom(Process):
    """A process, and hands that reach into the database behind its back."""

    def __init__(self, database: Database, clock: FakeClock, recorder: FakeRecorder) -> None:
        super().__init__(database, clock, recorder)
        self.database, self.clock, self.recorder = database, clock, recorder
        for tenant in TENANTS.values():
            with database.tenant(tenant, by=BY) as tx:
                self.policies.install_default(tx, tenant)

    def another(self) -> Process:
        """Start another process over the same database."""
        return Process(self.database, self.clock, self.recorder)

    def put_policy(self, tenant: TenantId, text: str, *, sha256: str | None = None) -> int:
        """Make `text` a tenant's active version without asking anybody; return its number."""
        with self.database.tenant(tenant, by=BY) as tx:
            version = len(tx.all(tx.select(policy_versions))) + 1
            digest = sha256 or hashlib.sha256(text.encode()).hexdigest()
            tx.insert(policy_versions, version=version, text=text, sha256=digest, created_at=1, created_by="test")
            tx.change(tx.update(active_policies).values(version=version))
            tx.bump_epoch()
        self.epoch.refresh()
        return version

    def put_grant(
        self, ref: ResourceRef, grantee: TenantId, actions: Sequence[str] | str, *, expires_at: int | None = None
    ) -> str:
        """Write a grant's row without asking anybody; `actions` as a text is stored as it is."""
        with self.database.tenant(ref.owner, by=BY) as tx:
            grant_id = f"grt_{len(tx.all(tx.select(grants)))}"
            tx.insert(
                grants,
                id=grant_id,
                kind=ref.kind,
                object_id=ref.object_id,
                name="m",
                grantee=grantee,
                actions=actions if isinstance(actions, str) else json.dumps(actions),
                created_at=1,
                created_by="test",
                expires_at=expires_at,
            )
            tx.bump_epoch()
        self.epoch.refresh()
        return grant_id

    def state(self) -> list[tuple[object, ...]]:
        """Return every stored row of every tenant, and the epoch."""
        rows: list[tuple[object, ...]] = [(self.database.epoch(),)]
        for tenant in TENANTS.values():
            with self.database.tenant(tenant, by=BY, read_only=True) as tx:
                for table in (policy_versions, active_policies, grants):
                    rows += sorted((table.name, *row.values()) for row in tx.all(tx.select(table)))
        return rows

    def refusals(self) -> list[Event]:
        """Return what was recorded as denied."""
        return [event for event in self.recorder.events if event.outcome is Outcome.DENIED]


def resolver(kind: Kind) -> "Resolver":
    """Return what resolves names of `kind`, in one tenant or as ``owner~name``."""
    return Resolver(kind)


class Resolver:
    """Looks names up as the registries do."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind

    def __call__(self, caller: TenantCaller, name: str) -> ResourceRef:
        slug, _, own = name.rpartition("~")
        owner = TENANTS[slug] if slug else caller.tenant
        ref = _NAMES.get((owner, own))
        return ref if ref is not None and ref.kind is self._kind else missing(owner, self._kind)


def refused(event: Event, caller: Caller) -> tuple[str, str]:
    """Check that `event` is a refusal of `caller` in its own log; return action and reason."""
    assert event.outcome is Outcome.DENIED
    assert event.tenant == caller.tenant
    assert event.actor == caller
    return str(event.action), str(event.facts["reason"])


def codes(error: ModelkeepError) -> tuple[str, str]:
    """Return an error's code and message."""
    return error.error_code, error.message
