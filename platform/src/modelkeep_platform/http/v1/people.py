"""Who one is; tenants, enrolment, members and service accounts."""

from typing import Any

from msgspec import to_builtins

from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import OperatorCaller, Role
from modelkeep_platform.core.errors import UnprocessableError
from modelkeep_platform.http.routing import Authenticated, Call, Endpoint, Public
from modelkeep_platform.http.v1.converting import show, show_page
from modelkeep_platform.http.wire import people as wire
from modelkeep_platform.http.wire.fields import ListOf
from modelkeep_platform.identity.issuer_keys import IssuerKeys
from modelkeep_platform.identity.members import MemberService
from modelkeep_platform.identity.registry import TenantRegistry
from modelkeep_platform.identity.service_accounts import ServiceAccountService
from modelkeep_platform.tenants.limits import TenantLimitService
from modelkeep_platform.tenants.service import TenantService


def endpoints(
    *,
    tenants: TenantService,
    tenant_limits: TenantLimitService,
    issuer_keys: IssuerKeys,
    members: MemberService,
    service_accounts: ServiceAccountService,
    registry: TenantRegistry,
    base_url: str,
) -> list[Endpoint]:
    """Return the endpoints of people and tenants."""
    people = _People(registry)

    def metadata(_call: Call) -> Any:  # noqa: ANN401
        return wire.ResourceMetadata(
            resource=base_url,
            authorization_servers=[f"{base_url}/issuer"],
            bearer_methods_supported=["header"],
            scopes_supported=["modelkeep"],
        )

    return [
        Endpoint(
            method="GET",
            path="/.well-known/oauth-protected-resource",
            guard=Public("clients read it before they can log in (RFC 9728)"),
            handler=metadata,
            summary="Say where to log in",
            returns=wire.ResourceMetadata,
        ),
        Endpoint(
            method="GET",
            path="/v1/whoami",
            guard=Authenticated("everyone may know who they are"),
            handler=people.whoami,
            summary="Say who the caller is",
            returns=wire.WhoAmI,
        ),
        *_tenant_endpoints(tenants),
        *_limit_endpoints(tenant_limits),
        *_issuer_endpoints(issuer_keys),
        *_member_endpoints(members),
        *_account_endpoints(service_accounts),
    ]


class _People:
    def __init__(self, registry: TenantRegistry) -> None:
        self._registry = registry

    def whoami(self, call: Call) -> wire.WhoAmI:
        caller = call.any_caller
        if isinstance(caller, OperatorCaller):
            return wire.WhoAmI(kind="operator", tenant=None, principal=caller.principal, name=caller.name, roles=[])
        tenant = self._registry.by_id(caller.tenant)
        return wire.WhoAmI(
            kind="tenant",
            tenant=None if tenant is None else show(tenant, wire.TenantName),
            principal=caller.principal,
            name=caller.name,
            roles=sorted(caller.roles),
        )


def _issuer_endpoints(issuer_keys: IssuerKeys) -> list[Endpoint]:
    return [
        Endpoint(
            method="POST",
            path="/v1/issuer/rotate-key",
            guard=Action.ISSUER_ROTATE,
            handler=lambda call: issuer_keys.rotate(call.operator),
            summary="Sign tokens with a new key from now on",
            status=204,
        )
    ]


def _tenant_endpoints(tenants: TenantService) -> list[Endpoint]:
    return [
        Endpoint(
            method="POST",
            path="/v1/tenants",
            guard=Action.TENANT_CREATE,
            handler=lambda call: show(
                tenants.create(call.operator, call.body.slug, call.body.name), wire.TenantCreated
            ),
            summary="Add a tenant and get its enrolment link",
            body=wire.NewTenant,
            returns=wire.TenantCreated,
            status=201,
            replayable=False,
        ),
        Endpoint(
            method="GET",
            path="/v1/tenants",
            guard=Action.TENANT_LIST,
            handler=lambda call: show_page(tenants.list(call.operator, call.page), wire.Tenant),
            summary="List tenants",
            returns=ListOf[wire.Tenant],
            query=("limit", "cursor"),
        ),
        Endpoint(
            method="POST",
            path="/v1/tenants/{slug}/suspend",
            guard=Action.TENANT_SUSPEND,
            handler=lambda call: show(tenants.suspend(call.operator, call.path["slug"]), wire.Tenant),
            summary="Suspend a tenant at once",
            returns=wire.Tenant,
        ),
        Endpoint(
            method="POST",
            path="/v1/tenants/{slug}/resume",
            guard=Action.TENANT_RESUME,
            handler=lambda call: show(tenants.resume(call.operator, call.path["slug"]), wire.Tenant),
            summary="Resume a suspended tenant",
            returns=wire.Tenant,
        ),
        Endpoint(
            method="POST",
            path="/v1/tenants/{slug}/enrolment",
            guard=Action.TENANT_ENROL,
            handler=lambda call: show(tenants.new_enrolment_link(call.operator, call.path["slug"]), wire.Link),
            summary="Make a new enrolment link",
            returns=wire.Link,
            status=201,
            replayable=False,
        ),
        Endpoint(
            method="POST",
            path="/v1/enrolments",
            guard=Public("the one-time token in the body is the credential"),
            handler=lambda call: show(
                tenants.enrol(call.body.token, call.body.username, call.body.password), wire.Enrolled
            ),
            summary="Use an enrolment link or an invitation",
            body=wire.Enrolment,
            returns=wire.Enrolled,
            status=201,
        ),
    ]


def _limit_endpoints(limits: TenantLimitService) -> list[Endpoint]:
    def change(call: Call) -> wire.TenantDetails:
        return show(limits.change(call.operator, call.path["slug"], to_builtins(call.body)), wire.TenantDetails)

    return [
        Endpoint(
            method="GET",
            path="/v1/tenant",
            guard=Action.TENANT_READ,
            handler=lambda call: show(limits.show_own(call.tenant_caller), wire.TenantDetails),
            summary="Show the own tenant: its limits and what is used of them",
            returns=wire.TenantDetails,
        ),
        Endpoint(
            method="GET",
            path="/v1/tenants/{slug}",
            guard=Action.TENANT_LIST,
            handler=lambda call: show(limits.show(call.operator, call.path["slug"]), wire.TenantDetails),
            summary="Show a tenant: its limits and what is used of them",
            returns=wire.TenantDetails,
        ),
        Endpoint(
            method="PATCH",
            path="/v1/tenants/{slug}/limits",
            guard=Action.TENANT_LIMIT,
            handler=change,
            summary="Set limits of one tenant, or take them back with null",
            body=wire.LimitChanges,
            returns=wire.TenantDetails,
        ),
    ]


def _member_endpoints(members: MemberService) -> list[Endpoint]:
    return [
        Endpoint(
            method="GET",
            path="/v1/members",
            guard=Action.MEMBER_LIST,
            handler=lambda call: show_page(members.list(call.tenant_caller, call.page), wire.Member),
            summary="List members",
            returns=ListOf[wire.Member],
            query=("limit", "cursor"),
        ),
        Endpoint(
            method="POST",
            path="/v1/members",
            guard=Action.MEMBER_INVITE,
            handler=lambda call: show(
                members.invite(call.tenant_caller, call.body.username, _roles(call.body.roles)), wire.MemberInvited
            ),
            summary="Invite a person",
            body=wire.NewMember,
            returns=wire.MemberInvited,
            status=201,
            replayable=False,
        ),
        Endpoint(
            method="PATCH",
            path="/v1/members/{id}",
            guard=Action.MEMBER_UPDATE,
            handler=lambda call: show(
                members.update(call.tenant_caller, call.path["id"], _roles(call.body.roles)), wire.Member
            ),
            summary="Set a member's roles",
            body=wire.Roles,
            returns=wire.Member,
        ),
        Endpoint(
            method="DELETE",
            path="/v1/members/{id}",
            guard=Action.MEMBER_REMOVE,
            handler=lambda call: members.remove(call.tenant_caller, call.path["id"]),
            summary="Remove a member; its tokens end at once",
            status=204,
        ),
    ]


def _account_endpoints(accounts: ServiceAccountService) -> list[Endpoint]:
    return [
        Endpoint(
            method="GET",
            path="/v1/service-accounts",
            guard=Action.SERVICE_ACCOUNT_LIST,
            handler=lambda call: show_page(accounts.list(call.tenant_caller, call.page), wire.ServiceAccount),
            summary="List service accounts",
            returns=ListOf[wire.ServiceAccount],
            query=("limit", "cursor"),
        ),
        Endpoint(
            method="POST",
            path="/v1/service-accounts",
            guard=Action.SERVICE_ACCOUNT_CREATE,
            handler=lambda call: show(
                accounts.create(call.tenant_caller, call.body.name, _roles(call.body.roles)),
                wire.ServiceAccountSecret,
            ),
            summary="Make a service account; its secret is shown once",
            body=wire.NewServiceAccount,
            returns=wire.ServiceAccountSecret,
            status=201,
            replayable=False,
        ),
        Endpoint(
            method="POST",
            path="/v1/service-accounts/{id}/rotate",
            guard=Action.SERVICE_ACCOUNT_ROTATE,
            handler=lambda call: show(accounts.rotate(call.tenant_caller, call.path["id"]), wire.ServiceAccountSecret),
            summary="Replace the secret; the old one and its tokens end at once",
            returns=wire.ServiceAccountSecret,
            replayable=False,
        ),
        Endpoint(
            method="DELETE",
            path="/v1/service-accounts/{id}",
            guard=Action.SERVICE_ACCOUNT_DELETE,
            handler=lambda call: accounts.delete(call.tenant_caller, call.path["id"]),
            summary="Delete a service account; its tokens end at once",
            status=204,
        ),
    ]


def _roles(names: list[str]) -> frozenset[Role]:
    try:
        return frozenset(Role(name) for name in names)
    except ValueError as exc:
        known = ", ".join(f"`{role}`" for role in Role)
        raise UnprocessableError(f"a role is not known; roles are {known}", code="invalid_role") from exc
