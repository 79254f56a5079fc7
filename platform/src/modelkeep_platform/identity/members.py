"""Members of a tenant: invite, list, change roles, remove."""

from dataclasses import dataclass
from typing import Final

from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import PrincipalKind, Role, TenantCaller
from modelkeep_platform.core.decisions import Decision
from modelkeep_platform.core.events import Event, Outcome
from modelkeep_platform.core.ids import ObjectId, PrincipalId, check_name, new_object_id
from modelkeep_platform.core.ports import Authorizer, Clock, Entropy, EpochSource, LimitSource, Recorder
from modelkeep_platform.core.refs import Kind, ResourceRef, collection, missing
from modelkeep_platform.identity.links import Link, Links
from modelkeep_platform.identity.memberships import Membership, Memberships, check_roles
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.pages import Page, PageRequest, page_of
from modelkeep_platform.storage.tables.identity import issuer_users

INVITED: Final = "invited"


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A person of the tenant."""

    id: str
    name: str
    roles: tuple[str, ...]
    state: str
    created_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberInvited:
    """The member and the link to pass on."""

    member: Member
    invitation: Link


class MemberService:
    """Keeps a tenant's people.

    Args:
        database: where they are.
        memberships: their rows.
        links: one-time links.
        authorizer: decides who may.
        recorder: writes what was done.
        epoch: moved by each change.
        clock: stamps members.
        entropy: names them.
        limits: says how many a tenant may have.
    """

    def __init__(
        self,
        *,
        database: Database,
        memberships: Memberships,
        links: Links,
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
        self._links = links
        self._authorizer = authorizer
        self._recorder = recorder
        self._epoch = epoch
        self._clock = clock
        self._entropy = entropy

    def list(self, caller: TenantCaller, page: PageRequest) -> Page[Member]:
        """Return members in order of name."""
        decision = self._authorizer.require(caller, Action.MEMBER_LIST, collection(caller.tenant, Kind.MEMBER))
        with self._database.tenant(caller.tenant, by=decision, read_only=True) as tx:
            found = self._memberships.list(tx, PrincipalKind.USER, after=page.after(), limit=page.limit + 1)
        return page_of([_member(one) for one in found], page, [one.name for one in found])

    def invite(self, caller: TenantCaller, username: str, roles: frozenset[Role]) -> MemberInvited:
        """Invite a person; the link in the answer works once, for 72 hours.

        Raises:
            ForbiddenError: the caller may not.
            UnprocessableError: the name or roles cannot be.
            ConflictError: the name is taken, or the tenant has as many members as it may.
        """
        wanted = collection(caller.tenant, Kind.MEMBER)
        decision = self._authorizer.require(caller, Action.MEMBER_INVITE, wanted, {"name": username})
        now = self._clock.now_s()
        membership = Membership(
            subject=PrincipalId(new_object_id(self._entropy, "usr")),
            kind=PrincipalKind.USER,
            name=check_name(username, what="member"),
            roles=check_roles(roles),
            state=INVITED,
            client_id=None,
            not_before=0,
            created_at=now,
        )
        with self._database.platform() as tx:
            own = tx.as_tenant(decision.ref.owner)
            self._memberships.refuse_more(own, PrincipalKind.USER, self._limits.of(own.owner).members)
            self._memberships.add(own, membership)
            link = self._links.make_in(tx, caller.tenant, subject=membership.subject, username=membership.name)
            self._recorder.record(tx, _event(caller, Action.MEMBER_INVITE, membership))
            tx.bump_epoch()
        self._epoch.refresh()
        return MemberInvited(member=_member(membership), invitation=link)

    def update(self, caller: TenantCaller, member_id: str, roles: frozenset[Role]) -> Member:
        """Set a member's roles; they hold for the next call.

        Raises:
            NotFoundError: there is no such member.
            ConflictError: it is the last administrator.
        """
        decision = self._require(caller, Action.MEMBER_UPDATE, member_id)
        wanted = check_roles(roles)
        with self._database.tenant(caller.tenant, by=decision) as tx:
            tx.bump_epoch()
            if Role.TENANT_ADMIN not in wanted:
                self._memberships.refuse_last_admin(tx, member_id)
            self._memberships.set(tx, member_id, roles=wanted)
            changed = self._memberships.find(tx, member_id)
            if changed is None:
                raise RuntimeError("a member vanished within a transaction")
            self._recorder.record(tx, _event(caller, Action.MEMBER_UPDATE, changed))
        self._epoch.refresh()
        return _member(changed)

    def remove(self, caller: TenantCaller, member_id: str) -> None:
        """Remove a member; its tokens are refused from the next call on.

        Raises:
            NotFoundError: there is no such member.
            ConflictError: it is the last administrator.
        """
        decision = self._require(caller, Action.MEMBER_REMOVE, member_id)
        with self._database.tenant(caller.tenant, by=decision) as tx:
            tx.bump_epoch()
            self._memberships.refuse_last_admin(tx, member_id)
            gone = self._memberships.find(tx, member_id)
            self._memberships.remove(tx, member_id)
            tx.change(tx.delete(issuer_users).where(issuer_users.c.subject == member_id))
            if gone is not None:
                self._recorder.record(tx, _event(caller, Action.MEMBER_REMOVE, gone))
        self._epoch.refresh()

    def _require(self, caller: TenantCaller, action: Action, member_id: str) -> Decision:
        with self._database.tenant(caller.tenant, by=caller, read_only=True) as tx:
            found = self._memberships.find(tx, member_id)
        ref, name = missing(caller.tenant, Kind.MEMBER), ""
        if found is not None and found.kind is PrincipalKind.USER:
            ref, name = ResourceRef(owner=caller.tenant, kind=Kind.MEMBER, object_id=ObjectId(member_id)), found.name
        return self._authorizer.require(caller, action, ref, {"name": name})


def _member(membership: Membership) -> Member:
    return Member(
        id=membership.subject,
        name=membership.name,
        roles=tuple(sorted(membership.roles)),
        state=membership.state,
        created_at=membership.created_at,
    )


def _event(caller: TenantCaller, action: Action, membership: Membership) -> Event:
    return Event(
        tenant=caller.tenant,
        action=action,
        outcome=Outcome.DONE,
        actor=caller,
        ref=ResourceRef(owner=caller.tenant, kind=Kind.MEMBER, object_id=ObjectId(membership.subject)),
        facts={"roles": " ".join(sorted(membership.roles))},
        personal={"member": membership.name},
    )
