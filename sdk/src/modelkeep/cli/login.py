"""Logging in and out, and who one is."""

from __future__ import annotations

import os

import click

from modelkeep.cli.shared import Context, pass_context, with_client


@click.command()
@click.option("--organization", help="The tenant's slug; a person of several tenants names one.")
@click.option("--client-id", help="Check an application's login instead; its secret is asked for, never kept.")
@click.option("--issuer", help="The issuer to trust; by default the server's own, pinned at the first login.")
@pass_context
def login(context: Context, organization: str | None, client_id: str | None, issuer: str | None) -> None:
    """Log in: open the page that is shown and enter the code.

    The server is remembered. An application sets MODELKEEP_CLIENT_ID and MODELKEEP_CLIENT_SECRET instead, or
    MODELKEEP_TOKEN; with --client-id its secret is checked and not kept.
    """
    from modelkeep.auth import Auth, ClientCredentials, DeviceCode

    auth: Auth
    if client_id is not None:
        secret = os.environ.get("MODELKEEP_CLIENT_SECRET") or click.prompt("client secret", hide_input=True, err=True)
        auth = ClientCredentials(client_id, secret, issuer=issuer)
    else:
        auth = DeviceCode(organization=organization, issuer=issuer, profile=context.profile)
    server = context.server or context.remembered().get("server")
    with context.client(auth) as client:
        who = client.login()
    tenant = None if who.tenant is None else who.tenant.slug
    context.remember(server=str(server), organization=organization)
    context.done(f"logged in as {who.name} of {tenant or 'the platform'}")
    if client_id is not None:
        context.done("the secret is not kept: set MODELKEEP_CLIENT_ID and MODELKEEP_CLIENT_SECRET for other commands")


@click.command()
@pass_context
def logout(context: Context) -> None:
    """Log out: forget the tokens here and end them at the issuer."""
    had = with_client(context, lambda client: client.logout())
    context.forget()
    context.done("logged out" if had else "there was no login")


@click.command()
@pass_context
def whoami(context: Context) -> None:
    """Say who one is, as the platform sees it."""
    who = with_client(context, lambda client: client.whoami())
    context.show(
        {
            "name": who.name,
            "kind": who.kind,
            "tenant": None if who.tenant is None else who.tenant.slug,
            "roles": who.roles,
            "principal": who.principal,
        }
    )
