"""Tenants' own policies: immutable versions, one of them active.

Publishing validates strictly, refuses what would lock administrators or the publisher out, makes a new version and
activates it in one transaction. Rollback activates an older version. The guard is asked apart, so nothing published
here can lift it. Not promised: a text may forbid one administrator by name, other than its publisher.
"""

import hashlib
from dataclasses import dataclass
from typing import Final

import cedarpy
import sqlalchemy as sa

from modelkeep_platform.access.engine import Opinion, Verdict, ask, question
from modelkeep_platform.access.shipped import OWN_SIDE, compiled, shipped
from modelkeep_platform.access.validation import validate, warnings_of
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import PrincipalKind, Role, TenantCaller
from modelkeep_platform.core.errors import ConflictError, IntegrityError, UnprocessableError
from modelkeep_platform.core.events import Event, Outcome
from modelkeep_platform.core.ids import ObjectId, PrincipalId, RequestId, TenantId
from modelkeep_platform.core.ports import Authorizer, Clock, EpochSource, LimitSource, Recorder
from modelkeep_platform.core.refs import Kind, ResourceRef, collection, missing
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.pages import Page, PageRequest, not_ours, page_of
from modelkeep_platform.storage.tables.access import active_policies, policy_versions
from modelkeep_platform.storage.transactions import PlatformTransaction, Row, TenantTransaction

_MAX_VERSION: Final = 2**31 - 1  # of an integer column


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
        limits: says how many a tenant may keep.
    """

    def __init__(
        self,
        *,
        database: Database,
        authorizer: Authorizer,
        recorder: Recorder,
        epoch: EpochSource,
        clock: Clock,
        limits: LimitSource,
    ) -> None:
        self._limits = limits
        self._database = database
        self._authorizer = authorizer
        self._recorder = recorder
        self._epoch = epoch
        self._clock = clock

    def kept(self, tx: TenantTransaction) -> int:
        """Return how many versions the tenant keeps."""
        return tx.count(policy_versions)

    def install_default(self, tx: PlatformTransaction | TenantTransaction, tenant: TenantId) -> None:
        """Give a new tenant version 1, which adds nothing to the roles."""
        own = tx.as_tenant(tenant) if isinstance(tx, PlatformTransaction) else tx
        self._insert(own, 1, shipped("tenant-default.cedar"), "platform")
        own.insert(active_policies, version=1)

    def check(self, caller: TenantCaller, text: str) -> PolicyChecked:
        """Validate `text` without publishing it; raises as `publish` does, for a caller that may publish."""
        every = collection(caller.tenant, Kind.POLICY)
        self._authorizer.require(caller, Action.POLICY_READ, every)
        policies = validate(text)
        refuse_lockout(policies, caller.tenant, text)
        if self._authorizer.allows(caller, Action.POLICY_PUBLISH, every):
            refuse_leaving(policies, caller)
        return PolicyChecked(valid=True, warnings=warnings_of(text))

    def publish(self, caller: TenantCaller, text: str) -> PolicyVersion:
        """Make `text` the active policy.

        Raises:
            ForbiddenError: the caller may not.
            InvalidPolicyError: not valid Cedar for this schema; lines and columns in the details.
            UnprocessableError: administrators, or the caller, could not publish again.
            ConflictError: the tenant keeps as many versions as it may.
        """
        decision = self._authorizer.require(caller, Action.POLICY_PUBLISH, collection(caller.tenant, Kind.POLICY))
        self._check(caller, text)
        with self._database.tenant(caller.tenant, by=decision) as tx:
            self._refuse_more(tx)
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
            IntegrityError: the stored text is not what was published.
            UnprocessableError: administrators, or the caller, could not publish again, or it is no longer valid.
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
        before = _cursor(page)
        with self._database.tenant(caller.tenant, by=decision, read_only=True) as tx:
            active = _active(tx)
            query = tx.select(policy_versions).order_by(policy_versions.c.version.desc()).limit(page.limit + 1)
            if before is not None:
                query = query.where(policy_versions.c.version < before)
            versions = [_version(row, active) for row in tx.all(query)]
        return page_of(versions, page, [str(version.version) for version in versions])

    def get(self, caller: TenantCaller, version: int) -> PolicyVersion:
        """Return one version with its text.

        Raises:
            NotFoundError: there is no such version.
            IntegrityError: the stored text is not what was published.
        """
        self._authorizer.require(caller, Action.POLICY_READ, self._ref(caller, version), {"version": version})
        return self._read(caller, version)

    def _check(self, caller: TenantCaller, text: str) -> None:
        policies = validate(text)
        refuse_lockout(policies, caller.tenant, text)
        refuse_leaving(policies, caller)

    def _refuse_more(self, tx: TenantTransaction) -> None:
        # Versions are never deleted: they are what log entries and decisions name.
        most = self._limits.of(tx.owner).policy_versions
        if self.kept(tx) >= most:
            raise ConflictError(
                f"this tenant may keep {most} policy versions; activate one of them, or ask the platform's "
                "operator for more",
                code="too_many_policies",
            )

    def _ref(self, caller: TenantCaller, version: int) -> ResourceRef:
        if not 0 < version <= _MAX_VERSION:
            return missing(caller.tenant, Kind.POLICY)
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
            if _digest(row["text"]) != row["sha256"]:
                raise IntegrityError(f"the stored text of version {version} is not what was published")
            return _version(row, _active(tx))

    def _insert(self, tx: TenantTransaction, version: int, text: str, principal: str) -> None:
        tx.insert(
            policy_versions,
            version=version,
            text=text,
            sha256=_digest(text),
            created_at=self._clock.now_s(),
            created_by=principal,
        )


def refuse_lockout(policies: cedarpy.PolicySet, tenant: TenantId, text: str) -> None:
    """Raise if an administrator that `text` does not single out could not publish or roll back under `policies`.

    Raises:
        UnprocessableError: they forbid it, or fail while they are evaluated.
    """
    # No text holds its own digest: whoever excepts this administrator excepts every one.
    stranger = _digest(text)
    administrator = TenantCaller(
        tenant=tenant,
        principal=PrincipalId(stranger),
        principal_kind=PrincipalKind.USER,
        name=stranger,
        roles=frozenset({Role.TENANT_ADMIN}),
        token_id="",
        request_id=RequestId(""),
    )
    for action in (Action.POLICY_PUBLISH, Action.POLICY_ACTIVATE, Action.POLICY_LIST, Action.POLICY_READ):
        opinion = _ask(policies, administrator, action)
        if opinion.verdict is Verdict.FORBID:
            raise UnprocessableError(
                f"{_culprits(opinion)} would deny `{action}` to every tenant-admin, so that nobody could change it "
                "again; except tenant administrators",
                code="policy_lockout",
            )


def refuse_leaving(policies: cedarpy.PolicySet, publisher: TenantCaller) -> None:
    """Raise if `publisher` could not publish again under `policies`: then one member at least can mend them.

    Raises:
        UnprocessableError: they forbid it, fail, or take away what alone permitted it.
    """
    opinion = _ask(policies, publisher, Action.POLICY_PUBLISH)
    roles = _ask(compiled(OWN_SIDE), publisher, Action.POLICY_PUBLISH)
    if opinion.verdict is Verdict.FORBID:
        reason = f"{_culprits(opinion)} would deny it"
    elif Verdict.PERMIT not in {opinion.verdict, roles.verdict}:
        reason = "nothing would permit it"
    else:
        return
    raise UnprocessableError(
        f"you could not publish again: {reason}; let a member publish this who can still mend it", code="policy_lockout"
    )


def _ask(policies: cedarpy.PolicySet, caller: TenantCaller, action: Action) -> Opinion:
    return ask(question(caller, action, collection(caller.tenant, Kind.POLICY), {}, granted=frozenset()), policies)


def _culprits(opinion: Opinion) -> str:
    return ", ".join(f"`{policy}`" for policy in opinion.policies) or "an error in a policy"


def _cursor(page: PageRequest) -> int | None:
    after = page.after()
    if not after:
        return None
    if not (after.isascii() and after.isdigit() and len(after) <= len(str(_MAX_VERSION))):
        raise not_ours()
    return int(after)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


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
        facts={"version": version, "sha256": _digest(text)},
    )
