"""Service accounts: applications that log in by client credentials. A secret is shown once, to the tenant only."""

from dataclasses import dataclass, field

import sqlalchemy as sa

from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import PrincipalKind, Role, TenantCaller
from modelkeep_platform.core.events import Event, Outcome
from modelkeep_platform.core.ids import ObjectId, PrincipalId, check_name, new_object_id
from modelkeep_platform.core.ports import Authorizer, Clock, Entropy, EpochSource, LimitSource, Recorder
from modelkeep_platform.core.refs import Kind, ResourceRef, collection, missing
from modelkeep_platform.identity.memberships import Membership, Memberships, check_roles
from modelkeep_platform.identity.registry import ACTIVE
from modelkeep_platform.identity.secrets import new_secret, token_hash
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.pages import Page, PageRequest, page_of
from modelkeep_platform.storage.tables.identity import issuer_clients


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceAccount:
    """An application's account."""

    id: str
    name: str
    roles: tuple[str, ...]
    client_id: str
    created_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceAccountSecret:
    """An account with its secret, which is kept as a hash only."""

    service_account: ServiceAccount
    client_secret: str = field(repr=False)


class ServiceAccountService:
    """Keeps a tenant's service accounts.

    Args:
        database: where they are.
        memberships: their rows.
        authorizer: decides who may.
        recorder: writes what was done.
        epoch: moved by each change.
        clock: stamps accounts.
        entropy: names them.
        limits: says how many a tenant may have.
    """

    def __init__(
        self,
        *,
        database: Database,
        memberships: Memberships,
        authorizer: Authorizer,
        recorder: Recorder,
        epoch: EpochSource,
        clock: Clock,
        entropy: Entropy,
        limits: LimitSource,
    ) -> None:
        self._limits = limits
        self._database = database
        self._memberships = memberships
        self._authorizer = authorizer
        self._recorder = recorder
        self._epoch = epoch
        self._clock = clock
        self._entropy = entropy

    def list(self, caller: TenantCaller, page: PageRequest) -> Page[ServiceAccount]:
        """Return accounts in order of name."""
        wanted = collection(caller.tenant, Kind.SERVICE_ACCOUNT)
        decision = self._authorizer.require(caller, Action.SERVICE_ACCOUNT_LIST, wanted)
        with self._database.tenant(caller.tenant, by=decision, read_only=True) as tx:
            found = self._memberships.list(tx, PrincipalKind.SERVICE_ACCOUNT, after=page.after(), limit=page.limit + 1)
        return page_of([_account(one) for one in found], page, [one.name for one in found])

    def create(self, caller: TenantCaller, name: str, roles: frozenset[Role]) -> ServiceAccountSecret:
        """Make an account.

        Raises:
            ForbiddenError: the caller may not.
            UnprocessableError: the name or roles cannot be.
            ConflictError: the name is taken, or the tenant has as many accounts as it may.
        """
        wanted = collection(caller.tenant, Kind.SERVICE_ACCOUNT)
        decision = self._authorizer.require(caller, Action.SERVICE_ACCOUNT_CREATE, wanted, {"name": name})
        subject = new_object_id(self._entropy, "svc")
        secret = new_secret("mks")
        membership = Membership(
            subject=PrincipalId(subject),
            kind=PrincipalKind.SERVICE_ACCOUNT,
            name=check_name(name, what="service account"),
            roles=check_roles(roles, allow_admin=False),
            state=ACTIVE,
            client_id=subject,
            not_before=0,
            created_at=self._clock.now_s(),
        )
        with self._database.platform() as tx:
            own = tx.as_tenant(decision.ref.owner)
            self._memberships.refuse_more(
                own, PrincipalKind.SERVICE_ACCOUNT, self._limits.of(own.owner).service_accounts
            )
            self._memberships.add(own, membership)
            tx.execute(
                sa.insert(issuer_clients).values(
                    client_id=subject, tenant=caller.tenant, subject=subject, secret_hash=token_hash(secret)
                )
            )
            self._recorder.record(tx, _event(caller, Action.SERVICE_ACCOUNT_CREATE, membership))
            tx.bump_epoch()
        self._epoch.refresh()
        return ServiceAccountSecret(service_account=_account(membership), client_secret=secret)

    def rotate(self, caller: TenantCaller, account_id: str) -> ServiceAccountSecret:
        """Replace the secret; the old one and every token made with it are refused from the next call on.

        Raises:
            NotFoundError: there is no such account.
        """
        membership = self._require(caller, Action.SERVICE_ACCOUNT_ROTATE, account_id)
        secret = new_secret("mks")
        with self._database.platform() as tx:
            self._memberships.void_tokens(tx.as_tenant(caller.tenant), account_id, self._clock.now_s())
            tx.execute(
                sa.update(issuer_clients)
                .where(issuer_clients.c.client_id == account_id, issuer_clients.c.tenant == caller.tenant)
                .values(secret_hash=token_hash(secret))
            )
            self._recorder.record(tx, _event(caller, Action.SERVICE_ACCOUNT_ROTATE, membership))
            tx.bump_epoch()
        self._epoch.refresh()
        return ServiceAccountSecret(service_account=_account(membership), client_secret=secret)

    def delete(self, caller: TenantCaller, account_id: str) -> None:
        """Delete an account; its tokens are refused from the next call on.

        Raises:
            NotFoundError: there is no such account.
        """
        membership = self._require(caller, Action.SERVICE_ACCOUNT_DELETE, account_id)
        with self._database.platform() as tx:
            self._memberships.remove(tx.as_tenant(caller.tenant), account_id)
            tx.execute(
                sa.delete(issuer_clients).where(
                    issuer_clients.c.client_id == account_id, issuer_clients.c.tenant == caller.tenant
                )
            )
            self._recorder.record(tx, _event(caller, Action.SERVICE_ACCOUNT_DELETE, membership))
            tx.bump_epoch()
        self._epoch.refresh()

    def _require(self, caller: TenantCaller, action: Action, account_id: str) -> Membership:
        with self._database.tenant(caller.tenant, by=caller, read_only=True) as tx:
            found = self._memberships.find(tx, account_id)
        if found is None or found.kind is not PrincipalKind.SERVICE_ACCOUNT:
            self._authorizer.require(caller, action, missing(caller.tenant, Kind.SERVICE_ACCOUNT))
            raise RuntimeError("a missing object was allowed")
        ref = ResourceRef(owner=caller.tenant, kind=Kind.SERVICE_ACCOUNT, object_id=ObjectId(account_id))
        self._authorizer.require(caller, action, ref, {"name": found.name})
        return found


def _account(membership: Membership) -> ServiceAccount:
    return ServiceAccount(
        id=membership.subject,
        name=membership.name,
        roles=tuple(sorted(membership.roles)),
        client_id=membership.client_id or "",
        created_at=membership.created_at,
    )


def _event(caller: TenantCaller, action: Action, membership: Membership) -> Event:
    return Event(
        tenant=caller.tenant,
        action=action,
        outcome=Outcome.DONE,
        actor=caller,
        ref=ResourceRef(owner=caller.tenant, kind=Kind.SERVICE_ACCOUNT, object_id=ObjectId(membership.subject)),
        facts={"name": membership.name, "roles": " ".join(sorted(membership.roles))},
    )
