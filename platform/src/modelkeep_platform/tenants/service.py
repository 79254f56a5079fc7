"""Tenants: an operator adds them, their first administrator enrols by a one-time link, an operator suspends them.

Creating a tenant makes its registry row, its keys and its first policy version in one transaction. The operator gets
the link, never a tenant's secret or content: once a tenant has an administrator no enrolment link of it works and
none can be made, so an operator cannot become a tenant's administrator later.
"""

from dataclasses import dataclass
from typing import Protocol

from sqlalchemy.exc import IntegrityError as DuplicateError

from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import OperatorCaller, PrincipalKind, Role
from modelkeep_platform.core.errors import ConflictError, UnprocessableError
from modelkeep_platform.core.events import Event, Outcome
from modelkeep_platform.core.ids import (
    ObjectId,
    PrincipalId,
    TenantId,
    check_name,
    check_slug,
    new_object_id,
    new_tenant_id,
)
from modelkeep_platform.core.ports import Authorizer, Clock, Entropy, EpochSource, Recorder, Sealer
from modelkeep_platform.core.refs import PLATFORM_REF
from modelkeep_platform.identity.links import Link, Links, unusable
from modelkeep_platform.identity.memberships import Membership, Memberships
from modelkeep_platform.identity.registry import ACTIVE, SUSPENDED, Tenant, TenantRegistry
from modelkeep_platform.identity.secrets import check_password, hash_password
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.pages import Page, PageRequest, page_of
from modelkeep_platform.storage.tables.identity import issuer_users
from modelkeep_platform.storage.transactions import PlatformTransaction, TenantTransaction
from modelkeep_platform.tenants.operators import done, find

_MAX_NAME = 120


class PolicyInstaller(Protocol):
    """Gives a new tenant its first policy version."""

    def install_default(self, tx: PlatformTransaction | TenantTransaction, tenant: TenantId) -> None:
        """Install it within `tx`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantCreated:
    """A new tenant and the link by which its administrator enrols."""

    tenant: Tenant
    enrolment: Link


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled:
    """Who one has become."""

    tenant: Tenant
    principal: str
    name: str
    roles: tuple[str, ...]


class TenantService:
    """Adds, suspends and resumes tenants, and enrols people.

    Args:
        database: where tenants are.
        registry: the tenants there are.
        memberships: who belongs to them.
        links: one-time links.
        sealer: makes a tenant's keys.
        policies: installs a tenant's first policy.
        audit_key: the object under whose key personal fields of the log are sealed.
        authorizer: decides what operators may.
        recorder: writes what was done.
        epoch: moved by each change.
        clock: stamps tenants.
        entropy: names them.
    """

    def __init__(
        self,
        *,
        database: Database,
        registry: TenantRegistry,
        memberships: Memberships,
        links: Links,
        sealer: Sealer,
        policies: PolicyInstaller,
        audit_key: ObjectId,
        authorizer: Authorizer,
        recorder: Recorder,
        epoch: EpochSource,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._database = database
        self._registry = registry
        self._memberships = memberships
        self._links = links
        self._sealer = sealer
        self._policies = policies
        self._audit_key = audit_key
        self._authorizer = authorizer
        self._recorder = recorder
        self._epoch = epoch
        self._clock = clock
        self._entropy = entropy

    def create(self, caller: OperatorCaller, slug: str, name: str) -> TenantCreated:
        """Add a tenant and make its enrolment link.

        Raises:
            UnprocessableError: slug or name cannot be.
            ConflictError: the slug was used before.
        """
        self._authorizer.require(caller, Action.TENANT_CREATE, PLATFORM_REF)
        tenant = Tenant(
            id=new_tenant_id(self._entropy),
            slug=check_slug(slug),
            name=_checked_name(name),
            state=ACTIVE,
            created_at=self._clock.now_s(),
        )
        try:
            with self._database.platform() as tx:
                self._registry.add(tx, tenant)
                self._sealer.create_tenant_key(tx, tenant.id)
                self._sealer.create_key(tx, tenant.id, self._audit_key)
                self._policies.install_default(tx, tenant.id)
                link = self._links.make_in(tx, tenant.id, subject=None, username=None)
                self._recorder.record(tx, done(caller, Action.TENANT_CREATE, tenant))
                tx.bump_epoch()
        except DuplicateError as exc:
            raise ConflictError(f"the slug `{slug}` is or was used; choose another", code="slug_taken") from exc
        self._epoch.refresh()
        return TenantCreated(tenant=tenant, enrolment=link)

    def list(self, caller: OperatorCaller, page: PageRequest) -> Page[Tenant]:
        """Return tenants in order of slug."""
        self._authorizer.require(caller, Action.TENANT_LIST, PLATFORM_REF)
        with self._database.platform(read_only=True) as tx:
            found = self._registry.list(tx, after=page.after(), limit=page.limit + 1)
        return page_of(found, page, [tenant.slug for tenant in found])

    def suspend(self, caller: OperatorCaller, slug: str) -> Tenant:
        """Suspend a tenant; its tokens are refused from the next call on.

        Raises:
            NotFoundError: there is no such tenant.
        """
        return self._set_state(caller, slug, Action.TENANT_SUSPEND, SUSPENDED)

    def resume(self, caller: OperatorCaller, slug: str) -> Tenant:
        """Resume a suspended tenant.

        Raises:
            NotFoundError: there is no such tenant.
        """
        return self._set_state(caller, slug, Action.TENANT_RESUME, ACTIVE)

    def new_enrolment_link(self, caller: OperatorCaller, slug: str) -> Link:
        """Make another enrolment link, for a tenant whose first was lost; the first ends.

        Raises:
            NotFoundError: there is no such tenant.
            ConflictError: the tenant has an administrator, who invites further people.
        """
        tenant = find(self._registry, self._authorizer, caller, slug, Action.TENANT_ENROL)
        with self._database.platform() as tx:
            tx.bump_epoch()
            if self._memberships.administrators(tx.as_tenant(tenant.id)):
                raise ConflictError(
                    f"`{tenant.slug}` has an administrator; ask them to invite people", code="already_enrolled"
                )
            link = self._links.make_in(tx, tenant.id, subject=None, username=None)
            self._recorder.record(tx, done(caller, Action.TENANT_ENROL, tenant))
        self._epoch.refresh()
        return link

    def enrol(self, token: str, username: str, password: str) -> Enrolled:
        """Use a link: become a tenant's administrator, or accept an invitation.

        Args:
            token: from the link; works once.
            username: chosen by a new administrator; an invited member keeps the name it was invited under.
            password: 12 to 256 characters.

        Raises:
            UnprocessableError: the link, name or password cannot be used; a refused name leaves the link usable.
            ConflictError: the name is taken.
        """
        self._links.refuse_unusable(token)
        check_name(username, what="member")
        hashed = hash_password(check_password(password))
        now = self._clock.now_s()
        with self._database.platform() as tx:
            tx.bump_epoch()
            row = self._links.use(tx, token)
            tenant = self._registry.by_id(TenantId(row["tenant"]))
            if tenant is None or tenant.state != ACTIVE:
                raise unusable()
            own = tx.as_tenant(tenant.id)
            membership = self._admit(own, row["subject"], row["username"], username, now)
            own.insert(issuer_users, username=membership.name, subject=membership.subject, password_hash=hashed)
            event = Event(
                tenant=tenant.id,
                action="member:enrol",
                outcome=Outcome.DONE,
                facts={"roles": " ".join(sorted(membership.roles))},
                personal={"member": membership.name},
            )
            self._recorder.record(tx, event)
        self._epoch.refresh()
        return Enrolled(
            tenant=tenant,
            principal=membership.subject,
            name=membership.name,
            roles=tuple(sorted(membership.roles)),
        )

    def _admit(
        self, own: TenantTransaction, subject: str | None, invited_as: str | None, username: str, now: int
    ) -> Membership:
        if subject is None:
            if self._memberships.administrators(own):
                raise unusable()
            membership = Membership(
                subject=PrincipalId(new_object_id(self._entropy, "usr")),
                kind=PrincipalKind.USER,
                name=username,
                roles=frozenset({Role.TENANT_ADMIN}),
                state=ACTIVE,
                client_id=None,
                not_before=0,
                created_at=now,
            )
            self._memberships.add(own, membership)
            return membership
        if username != invited_as:
            raise UnprocessableError(f"this invitation is for `{invited_as}`", code="invalid_name")
        self._memberships.set(own, subject, state=ACTIVE)
        found = self._memberships.find(own, subject)
        if found is None:
            raise unusable()
        return found

    def _set_state(self, caller: OperatorCaller, slug: str, action: Action, state: str) -> Tenant:
        tenant = find(self._registry, self._authorizer, caller, slug, action)
        with self._database.platform() as tx:
            self._registry.set_state(tx, tenant.id, state)
            self._recorder.record(tx, done(caller, action, tenant))
            tx.bump_epoch()
        self._epoch.refresh()
        changed = self._registry.by_slug(slug)
        if changed is None:
            raise RuntimeError("a tenant vanished")
        return changed


def _checked_name(name: str) -> str:
    if not 1 <= len(name.strip()) <= _MAX_NAME or not name.isprintable():
        raise UnprocessableError(f"a tenant's name has 1 to {_MAX_NAME} printable characters", code="invalid_name")
    return name.strip()
