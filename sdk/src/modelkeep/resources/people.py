"""Members, service accounts, and the operator's tenants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from modelkeep._core.decode import decode
from modelkeep._core.flows import Flow, Mode, Operation
from modelkeep._core.session import check_same
from modelkeep.resources.base import Resource
from modelkeep.types import (
    Link,
    Member,
    MemberInvited,
    ServiceAccount,
    ServiceAccountSecret,
    Tenant,
    TenantCreated,
    TenantDetails,
)


class Members(Resource[Mode]):
    """People of the own tenant. Roles: ``tenant-admin``, ``developer``, ``analyst``, ``auditor``."""

    @Operation
    def list(self, *, limit: int | None = None) -> Flow[list[Member]]:
        """List members, at most `limit`."""
        return (yield from self._session.list(Member, "v1", "members", limit=limit))

    @Operation
    def invite(self, username: str, *, roles: Sequence[str]) -> Flow[MemberInvited]:
        """Invite a person; pass the link on, it works once."""
        body = {"username": username, "roles": [*roles]}
        invited = yield from self._session.post(MemberInvited, "v1", "members", body=body)
        check_same(username, invited.member.name, "member")
        return invited

    @Operation
    def update(self, member_id: str, *, roles: Sequence[str]) -> Flow[Member]:
        """Set a member's roles; they hold for the next call."""
        body = {"roles": [*roles]}
        member = decode(Member, (yield from self._session.json("PATCH", "v1", "members", member_id, body=body)))
        check_same(member_id, member.id, "member")
        return member

    @Operation
    def remove(self, member_id: str) -> Flow[None]:
        """Remove a member; their tokens end at once."""
        yield from self._session.delete("v1", "members", member_id)


class ServiceAccounts(Resource[Mode]):
    """Accounts of the own tenant's applications."""

    @Operation
    def list(self, *, limit: int | None = None) -> Flow[list[ServiceAccount]]:
        """List accounts, at most `limit`."""
        return (yield from self._session.list(ServiceAccount, "v1", "service-accounts", limit=limit))

    @Operation
    def create(self, name: str, *, roles: Sequence[str]) -> Flow[ServiceAccountSecret]:
        """Make an account; its secret is shown in this answer alone."""
        body = {"name": name, "roles": [*roles]}
        made = yield from self._session.post(ServiceAccountSecret, "v1", "service-accounts", body=body)
        check_same(name, made.service_account.name, "service account")
        return made

    @Operation
    def rotate(self, account_id: str) -> Flow[ServiceAccountSecret]:
        """Replace the secret; the old one and its tokens end at once."""
        made = yield from self._session.post(ServiceAccountSecret, "v1", "service-accounts", account_id, "rotate")
        # A secret that is another account's must not be put where this one's belongs.
        check_same(account_id, made.service_account.id, "service account")
        return made

    @Operation
    def delete(self, account_id: str) -> Flow[None]:
        """Delete an account; its tokens end at once."""
        yield from self._session.delete("v1", "service-accounts", account_id)


class Tenants(Resource[Mode]):
    """The platform's tenants, for its operator; nothing of what they own."""

    @Operation
    def create(self, slug: str, *, name: str) -> Flow[TenantCreated]:
        """Add a tenant and get the link by which its administrator enrols.

        Args:
            slug: unique, immutable, never used again.
            name: for people.
        """
        created = yield from self._session.post(TenantCreated, "v1", "tenants", body={"slug": slug, "name": name})
        check_same(slug, created.tenant.slug, "tenant")
        return created

    @Operation
    def list(self, *, limit: int | None = None) -> Flow[list[Tenant]]:
        """List tenants, at most `limit`."""
        return (yield from self._session.list(Tenant, "v1", "tenants", limit=limit))

    @Operation
    def get(self, slug: str) -> Flow[TenantDetails]:
        """Show a tenant: its limits and what is used of them."""
        tenant = yield from self._session.get(TenantDetails, "v1", "tenants", slug)
        check_same(slug, tenant.slug, "tenant")
        return tenant

    @Operation
    def set_limits(self, slug: str, limits: Mapping[str, int | None]) -> Flow[TenantDetails]:
        """Set limits of one tenant; they hold for the next call.

        Args:
            slug: whose.
            limits: by name, a number, or None for what holds for every tenant. Below what is used, nothing is taken
                away; nothing more is let in.

        Raises:
            InvalidRequestError: a limit is not known, or cannot be that number; none was changed.
        """
        answer = yield from self._session.json("PATCH", "v1", "tenants", slug, "limits", body=dict(limits))
        tenant = decode(TenantDetails, answer)
        check_same(slug, tenant.slug, "tenant")
        return tenant

    @Operation
    def suspend(self, slug: str) -> Flow[Tenant]:
        """Suspend a tenant; its next call is refused."""
        return (yield from self._set_state(slug, "suspend"))

    @Operation
    def resume(self, slug: str) -> Flow[Tenant]:
        """Resume a suspended tenant."""
        return (yield from self._set_state(slug, "resume"))

    @Operation
    def new_enrolment_link(self, slug: str) -> Flow[Link]:
        """Make a new enrolment link; the one before ends."""
        return (yield from self._session.post(Link, "v1", "tenants", slug, "enrolment"))

    def _set_state(self, slug: str, verb: str) -> Flow[Tenant]:
        tenant = yield from self._session.post(Tenant, "v1", "tenants", slug, verb)
        check_same(slug, tenant.slug, "tenant")
        return tenant


class Issuer(Resource[Mode]):
    """The platform's own issuer, for its operator."""

    @Operation
    def rotate_key(self) -> Flow[None]:
        """Have tokens signed by a new key from now on; those signed before stay good until they are over."""
        yield from self._session.send("POST", "v1", "issuer", "rotate-key")
