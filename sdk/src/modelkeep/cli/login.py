"""Logging in and out, and who one is."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from modelkeep.cli.shared import Command, Context, Profile, pass_context, with_client

if TYPE_CHECKING:
    from modelkeep.auth import Auth
    from modelkeep.types import WhoAmI


@click.command(cls=Command)
@click.option("--organization", help="The tenant's slug; a person of several tenants names one.")
@click.option("--client-id", help="Log an application in instead; its secret is asked for, never kept.")
@click.option("--issuer", help="The issuer to trust; by default the server's own, pinned at the first login.")
@pass_context
def login(context: Context, organization: str | None, client_id: str | None, issuer: str | None) -> None:
    """Log in: open the page that is shown and enter the code.

    Server, organization, client id and issuer are remembered. An application logs in with --client-id, or with
    MODELKEEP_CLIENT_ID and no --organization: its secret comes from MODELKEEP_CLIENT_SECRET or is asked for; other
    commands need it there. An application that never logs in here sets both, or MODELKEEP_TOKEN alone.
    """
    if client_id is not None and organization is not None:
        raise click.UsageError("an application belongs to one tenant: give --client-id or --organization")
    if organization is None:
        client_id = client_id or os.environ.get("MODELKEEP_CLIENT_ID")
    with context.client(_auth(context, organization, client_id, issuer)) as client:
        who = client.login()
        profile = Profile(server=client.base_url, organization=organization, client_id=client_id, issuer=issuer)
    context.remember(profile)
    tenant = "the platform" if who.tenant is None else who.tenant.slug
    context.done(f"logged in as {who.name} of {tenant}")
    if client_id is not None:
        context.done("the secret is not kept: set MODELKEEP_CLIENT_SECRET for other commands")
    if context.as_json:
        context.show(_shown(who))


def _auth(context: Context, organization: str | None, client_id: str | None, issuer: str | None) -> Auth:
    from modelkeep.auth import ClientCredentials, DeviceCode

    if client_id is None:
        return DeviceCode(organization=organization, issuer=issuer, profile=context.profile)
    # Never an argument: those show in the list of processes and in the shell's history.
    secret = os.environ.get("MODELKEEP_CLIENT_SECRET") or click.prompt("client secret", hide_input=True, err=True)
    return ClientCredentials(client_id, secret, issuer=issuer)


@click.command(cls=Command)
@pass_context
def logout(context: Context) -> None:
    """Log out: forget the tokens here and end them at the issuer."""
    kept = context.remembered()
    with context.client(context.person(kept)) as client:
        had = client.logout()
    context.forget()
    context.done("logged out" if had or kept.client_id else "there was no login")


@click.command(cls=Command)
@pass_context
def whoami(context: Context) -> None:
    """Say who one is, as the platform sees it."""
    context.show(_shown(with_client(context, lambda client: client.whoami())))


def _shown(who: WhoAmI) -> dict[str, object]:
    return {
        "name": who.name,
        "kind": who.kind,
        "tenant": None if who.tenant is None else who.tenant.slug,
        "roles": who.roles,
        "principal": who.principal,
    }
