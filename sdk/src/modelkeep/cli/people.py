"""Members, service accounts, and the operator's tenants. Secrets and links are shown once, on standard output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from modelkeep.cli.shared import Command, Context, Group, limit_option, pass_context, with_client, yes_option

if TYPE_CHECKING:
    from modelkeep.types import ServiceAccountSecret, TenantDetails

_MOST_DIGITS: Final = 15
_ROLES = click.option(
    "--role",
    "roles",
    required=True,
    multiple=True,
    type=click.Choice(["tenant-admin", "developer", "analyst", "auditor"]),
    help="May be repeated.",
)


@click.group(cls=Group)
def members() -> None:
    """People of the tenant."""


@members.command("list")
@limit_option
@pass_context
def list_members(context: Context, limit: int) -> None:
    """List members."""
    found = with_client(context, lambda client: client.members.list(limit=limit))
    context.table(found, "id", "name", "roles", "state", "created_at")


@members.command()
@click.argument("username")
@_ROLES
@pass_context
def invite(context: Context, username: str, roles: tuple[str, ...]) -> None:
    """Invite a person; pass the link on, it works once."""
    invited = with_client(context, lambda client: client.members.invite(username, roles=roles))
    member, link = invited.member, invited.invitation
    context.show(
        {
            "id": member.id,
            "name": member.name,
            "roles": member.roles,
            "link": link.url,
            "expires_at": link.expires_at,
        }
    )


@members.command("set-roles")
@click.argument("member_id")
@_ROLES
@pass_context
def set_roles(context: Context, member_id: str, roles: tuple[str, ...]) -> None:
    """Set a member's roles; they hold for the next call."""
    context.show(with_client(context, lambda client: client.members.update(member_id, roles=roles)))


@members.command("remove")
@click.argument("member_id")
@yes_option
@pass_context
def remove_member(context: Context, member_id: str, *, yes: bool) -> None:
    """Remove a member; their tokens end at once."""
    context.confirm(f"Remove the member {member_id}?", yes=yes)
    with_client(context, lambda client: client.members.remove(member_id))
    context.done(f"removed {member_id}", removed=member_id)


@click.group("service-accounts", cls=Group)
def service_accounts() -> None:
    """Accounts of the tenant's applications."""


@service_accounts.command("list")
@limit_option
@pass_context
def list_accounts(context: Context, limit: int) -> None:
    """List accounts."""
    found = with_client(context, lambda client: client.service_accounts.list(limit=limit))
    context.table(found, "id", "name", "client_id", "roles", "created_at")


@service_accounts.command("create")
@click.argument("name")
@_ROLES
@pass_context
def create_account(context: Context, name: str, roles: tuple[str, ...]) -> None:
    """Make an account; its secret is shown this once."""
    made = with_client(context, lambda client: client.service_accounts.create(name, roles=roles))
    context.show(_with_secret(made))


def _with_secret(made: ServiceAccountSecret) -> dict[str, object]:
    account = made.service_account
    return {
        "id": account.id,
        "name": account.name,
        "client_id": account.client_id,
        "client_secret": made.client_secret,
    }


@service_accounts.command("rotate")
@click.argument("account_id")
@pass_context
def rotate_account(context: Context, account_id: str) -> None:
    """Replace the secret, shown this once; the old one and its tokens end at once."""
    made = with_client(context, lambda client: client.service_accounts.rotate(account_id))
    context.show(_with_secret(made))


@service_accounts.command("delete")
@click.argument("account_id")
@yes_option
@pass_context
def delete_account(context: Context, account_id: str, *, yes: bool) -> None:
    """Delete an account; its tokens end at once."""
    context.confirm(f"Delete the service account {account_id}?", yes=yes)
    with_client(context, lambda client: client.service_accounts.delete(account_id))
    context.done(f"deleted {account_id}", deleted=account_id)


@click.group(cls=Group)
def tenants() -> None:
    """The platform's tenants, for its operator."""


@tenants.command("list")
@limit_option
@pass_context
def list_tenants(context: Context, limit: int) -> None:
    """List tenants."""
    found = with_client(context, lambda client: client.tenants.list(limit=limit))
    context.table(found, "slug", "name", "state", "created_at")


@tenants.command("create")
@click.argument("slug")
@click.option("--name", required=True, help="The organisation's name.")
@pass_context
def create_tenant(context: Context, slug: str, name: str) -> None:
    """Add a tenant; give its administrator the link, which works once."""
    made = with_client(context, lambda client: client.tenants.create(slug, name=name))
    context.show({"slug": made.tenant.slug, "link": made.enrolment.url, "expires_at": made.enrolment.expires_at})


@click.command(cls=Command)
@pass_context
def tenant(context: Context) -> None:
    """Show the own tenant: its limits and what is used of them."""
    _show(context, with_client(context, lambda client: client.tenant()))


@tenants.command("show")
@click.argument("slug")
@pass_context
def show_tenant(context: Context, slug: str) -> None:
    """Show a tenant: its limits and what is used of them."""
    _show(context, with_client(context, lambda client: client.tenants.get(slug)))


@tenants.command("set-limits")
@click.argument("slug")
@click.argument("limits", nargs=-1, required=True, metavar="NAME=VALUE...")
@pass_context
def set_limits(context: Context, slug: str, limits: tuple[str, ...]) -> None:
    """Set limits of one tenant, as `members=50`; `members=default` takes one back. They hold for the next call."""
    wanted = dict(_limit(text) for text in limits)
    details = with_client(context, lambda client: client.tenants.set_limits(slug, wanted))
    _show(context, details)
    for name in wanted:
        if details.limits[name].exceeded:
            context.done(f"more than {name} is there already: nothing is taken away, and nothing more is let in")


def _limit(text: str) -> tuple[str, int | None]:
    name, _, value = text.partition("=")
    if value == "default":
        return name, None
    if not (value.isascii() and value.isdigit() and len(value) <= _MOST_DIGITS):
        raise click.BadParameter(f"`{text}` is not NAME=NUMBER or NAME=default", param_hint="NAME=VALUE")
    return name, int(value)


def _show(context: Context, details: TenantDetails) -> None:
    if context.as_json:
        context.show(details)
        return
    context.show({name: getattr(details, name) for name in ("slug", "name", "state", "created_at")})
    rows = [
        {"limit": name, "value": one.value, "default": one.default, "used": one.used}
        for name, one in details.limits.items()
    ]
    context.table(rows, "limit", "value", "default", "used")


@tenants.command("suspend")
@click.argument("slug")
@pass_context
def suspend_tenant(context: Context, slug: str) -> None:
    """Suspend a tenant; its next call is refused."""
    context.show(with_client(context, lambda client: client.tenants.suspend(slug)))


@tenants.command("resume")
@click.argument("slug")
@pass_context
def resume_tenant(context: Context, slug: str) -> None:
    """Resume a suspended tenant."""
    context.show(with_client(context, lambda client: client.tenants.resume(slug)))


@tenants.command("enrolment-link")
@click.argument("slug")
@pass_context
def enrolment_link(context: Context, slug: str) -> None:
    """Make a new enrolment link; the one before ends."""
    link = with_client(context, lambda client: client.tenants.new_enrolment_link(slug))
    context.show({"link": link.url, "expires_at": link.expires_at})


@click.group(cls=Group)
def issuer() -> None:
    """The platform's own issuer, for its operator."""


@issuer.command("rotate-key")
@pass_context
def rotate_key(context: Context) -> None:
    """Have tokens signed by a new key from now on; those signed before stay good until they are over."""
    with_client(context, lambda client: client.issuer.rotate_key())
    context.done("tokens are signed by a new key", rotated=True)
