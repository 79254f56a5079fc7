"""Tenants' own policies: immutable versions, one of them active.

Publishing validates strictly, refuses what would lock every administrator out, makes a new version and activates
it in one transaction. Rollback activates an older version. The guard is asked apart, so nothing published here can
lift it.
"""

import hashlib
from dataclasses import dataclass

import cedarpy
import sqlalchemy as sa

from modelkeep_platform.access.engine import Verdict, ask, question
from modelkeep_platform.access.shipped import shipped
from modelkeep_platform.access.validation import validate
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import PrincipalKind, Role, TenantCaller
from modelkeep_platform.core.errors import UnprocessableError
from modelkeep_platform.core.events import Event, Outcome
from modelkeep_platform.core.ids import ObjectId, PrincipalId, TenantId
from modelkeep_platform.core.ports import Authorizer, Clock, EpochSource, Recorder
from modelkeep_platform.core.refs import Kind, ResourceRef, collection, missing
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.pages import Page, PageRequest, page_of
from modelkeep_platform.storage.tables.access import active_policies, policy_versions
from modelkeep_platform.storage.transactions import PlatformTransaction, Row, TenantTransaction


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyVersion:
    """One immutable version; `state` is ``active`` or ``retired``."""

    version: int
    state: str
    created_at: int
    created_by: str
    sha256: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyChecked:
    """The text would be accepted."""

    valid: bool
    warnings: tuple[str, ...]


class PolicyService:
    """Publishes policies.

    Args:
        database: where versions are.
        authorizer: decides who may.
        recorder: writes what was done.
        epoch: moved by each change.
        clock: stamps versions.
    """

    def __init__(
        self, *, database: Database, authorizer: Authorizer, recorder: Recorder, epoch: EpochSource, clock: Clock
    ) -> None:
        self._database = database
        self._authorizer = authorizer
        self._recorder = recorder
        self._epoch = epoch
        self._clock = clock

    def install_default(self, tx: PlatformTransaction | TenantTransaction, tenant: TenantId) -> None:
        """Give a new tenant version 1, which adds nothing to the roles."""
        own = tx.as_tenant(tenant) if isinstance(tx, PlatformTransaction) else tx
        self._insert(own, 1, shipped("tenant-default.cedar"), "platform")
        own.insert(active_policies, version=1)

    def check(self, caller: TenantCaller, text: str) -> PolicyChecked:
        """Validate `text` without publishing it; raises as `publish` does."""
        self._authorizer.require(caller, Action.POLICY_READ, collection(caller.tenant, Kind.POLICY))
        self._check(caller, text)
        return PolicyChecked(valid=True, warnings=() if ";" in text else ("the text holds no policy",))

    def publish(self, caller: TenantCaller, text: str) -> PolicyVersion:
        """Make `text` the active policy.

        Raises:
            ForbiddenError: the caller may not.
            InvalidPolicyError: not valid Cedar for this schema; lines and columns in the details.
            UnprocessableError: no administrator could publish again.
        """
        decision = self._authorizer.require(caller, Action.POLICY_PUBLISH, collection(caller.tenant, Kind.POLICY))
        self._check(caller, text)
        with self._database.tenant(caller.tenant, by=decision) as tx:
            newest = tx.first(tx.select(policy_versions, sa.func.max(policy_versions.c.version).label("version")))
            version = 1 if newest is None or newest["version"] is None else newest["version"] + 1
            self._insert(tx, version, text, caller.principal)
            tx.change(tx.update(active_policies).values(version=version))
            self._recorder.record(tx, _event(caller, decision.action, version, text))
            tx.bump_epoch()
        self._epoch.refresh()
        return self._read(caller, version)

    def activate(self, caller: TenantCaller, version: int) -> PolicyVersion:
        """Make an existing version the active one again.

        Raises:
            NotFoundError: there is no such version.
            UnprocessableError: no administrator could publish again, or it is no longer valid.
        """
        decision = self._authorizer.require(
            caller, Action.POLICY_ACTIVATE, self._ref(caller, version), {"version": version}
        )
        found = self._read(caller, version)
        self._check(caller, found.text)
        with self._database.tenant(caller.tenant, by=decision) as tx:
            tx.change(tx.update(active_policies).values(version=version))
            self._recorder.record(tx, _event(caller, decision.action, version, found.text))
            tx.bump_epoch()
        self._epoch.refresh()
        return self._read(caller, version)

    def list(self, caller: TenantCaller, page: PageRequest) -> Page[PolicyVersion]:
        """Return versions, newest first."""
        decision = self._authorizer.require(caller, Action.POLICY_LIST, collection(caller.tenant, Kind.POLICY))
        after = page.after()
        with self._database.tenant(caller.tenant, by=decision, read_only=True) as tx:
            active = _active(tx)
            query = tx.select(policy_versions).order_by(policy_versions.c.version.desc()).limit(page.limit + 1)
            if after.isdigit():
                query = query.where(policy_versions.c.version < int(after))
            versions = [_version(row, active) for row in tx.all(query)]
        return page_of(versions, page, [str(version.version) for version in versions])

    def get(self, caller: TenantCaller, version: int) -> PolicyVersion:
        """Return one version with its text.

        Raises:
            NotFoundError: there is no such version.
        """
        self._authorizer.require(caller, Action.POLICY_READ, self._ref(caller, version), {"version": version})
        return self._read(caller, version)

    def _check(self, caller: TenantCaller, text: str) -> None:
        policies = validate(text)
        refuse_lockout(policies, caller.tenant)

    def _ref(self, caller: TenantCaller, version: int) -> ResourceRef:
        with self._database.tenant(caller.tenant, by=caller, read_only=True) as tx:
            row = tx.first(tx.select(policy_versions).where(policy_versions.c.version == version))
        if row is None:
            return missing(caller.tenant, Kind.POLICY)
        return ResourceRef(owner=caller.tenant, kind=Kind.POLICY, object_id=ObjectId(str(version)))

    def _read(self, caller: TenantCaller, version: int) -> PolicyVersion:
        with self._database.tenant(caller.tenant, by=caller, read_only=True) as tx:
            row = tx.first(tx.select(policy_versions).where(policy_versions.c.version == version))
            if row is None:
                raise RuntimeError("a policy version that was just read is gone")
            return _version(row, _active(tx))

    def _insert(self, tx: TenantTransaction, version: int, text: str, principal: str) -> None:
        tx.insert(
            policy_versions,
            version=version,
            text=text,
            sha256=hashlib.sha256(text.encode()).hexdigest(),
            created_at=self._clock.now_s(),
            created_by=principal,
        )


def refuse_lockout(policies: cedarpy.PolicySet, tenant: TenantId) -> None:
    """Raise if no administrator could publish or roll back under `policies`.

    Raises:
        UnprocessableError: they forbid it, or fail while they are evaluated.
    """
    administrator = TenantCaller(
        tenant=tenant,
        principal=PrincipalId("any-administrator"),
        principal_kind=PrincipalKind.USER,
        name="any administrator",
        roles=frozenset({Role.TENANT_ADMIN}),
        token_id="",
        request_id="",  # type: ignore[arg-type]  # a hypothetical caller has no request
    )
    for action in (Action.POLICY_PUBLISH, Action.POLICY_ACTIVATE, Action.POLICY_LIST, Action.POLICY_READ):
        asked = question(administrator, action, collection(tenant, Kind.POLICY), {}, granted=frozenset())
        opinion = ask(asked, policies)
        if opinion.verdict is Verdict.FORBID:
            culprit = ", ".join(f"`{policy}`" for policy in opinion.policies) or "an error in a policy"
            raise UnprocessableError(
                f"{culprit} would deny `{action}` to every tenant-admin, so that nobody could change it again; "
                "except tenant administrators",
                code="policy_lockout",
            )


def _active(tx: TenantTransaction) -> int:
    row = tx.first(tx.select(active_policies))
    return 0 if row is None else int(row["version"])


def _version(row: Row, active: int) -> PolicyVersion:
    return PolicyVersion(
        version=row["version"],
        state="active" if row["version"] == active else "retired",
        created_at=row["created_at"],
        created_by=row["created_by"],
        sha256=row["sha256"],
        text=row["text"],
    )


def _event(caller: TenantCaller, action: Action, version: int, text: str) -> Event:
    return Event(
        tenant=caller.tenant,
        action=action,
        outcome=Outcome.DONE,
        actor=caller,
        ref=ResourceRef(owner=caller.tenant, kind=Kind.POLICY, object_id=ObjectId(str(version))),
        facts={"version": version, "sha256": hashlib.sha256(text.encode()).hexdigest()},
    )
