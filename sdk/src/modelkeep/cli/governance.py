"""Budgets, grants and policies."""

from __future__ import annotations

import time

import click

from modelkeep.cli.files import read_text
from modelkeep.cli.output import print_text
from modelkeep.cli.shared import Context, Group, limit_option, pass_context, with_client


@click.group(cls=Group)
def budgets() -> None:
    """Privacy budgets of private datasets."""


@budgets.command("list")
@limit_option
@pass_context
def list_budgets(context: Context, limit: int) -> None:
    """List budgets."""
    found = with_client(context, lambda client: client.budgets.list(limit=limit))
    context.table(found, "dataset", "epsilon", "delta", "epsilon_spent", "epsilon_reserved")


@budgets.command("show")
@click.argument("dataset")
@pass_context
def show_budget(context: Context, dataset: str) -> None:
    """Show a dataset's budget and what was charged."""
    budget = with_client(context, lambda client: client.budgets.get(dataset))
    if context.as_json:
        context.show(budget)
        return
    context.show(
        {name: getattr(budget, name) for name in ("dataset", "epsilon", "delta", "epsilon_spent", "epsilon_reserved")}
    )
    click.echo()
    context.table(budget.charges, "job_id", "state", "steps", "noise_multiplier", "sample_rate", "at")


@click.group(cls=Group)
def grants() -> None:
    """What other tenants may do with objects of this one."""


@grants.command("list")
@limit_option
@pass_context
def list_grants(context: Context, limit: int) -> None:
    """List grants given."""
    found = with_client(context, lambda client: client.grants.list(limit=limit))
    context.table(found, "id", "kind", "name", "grantee", "actions", "expires_at")


@grants.command("create")
@click.argument("kind", type=click.Choice(["model", "dataset"]))
@click.argument("name")
@click.option("--to", "grantee", required=True, help="The other tenant's slug.")
@click.option("--action", "actions", required=True, multiple=True, help="Such as model:predict; may be repeated.")
@click.option("--days", type=click.IntRange(min=1), help="How long it holds; by default until it is revoked.")
@pass_context
def create_grant(
    context: Context, kind: str, name: str, grantee: str, actions: tuple[str, ...], days: int | None
) -> None:
    """Give another tenant actions on one object."""
    ends = None if days is None else int(time.time()) + days * 86_400
    context.show(
        with_client(
            context,
            lambda client: client.grants.create(
                "model" if kind == "model" else "dataset", name, grantee=grantee, actions=actions, expires_at=ends
            ),
        )
    )


@grants.command("revoke")
@click.argument("grant_id")
@pass_context
def revoke_grant(context: Context, grant_id: str) -> None:
    """Revoke a grant; the next call is refused."""
    with_client(context, lambda client: client.grants.revoke(grant_id))
    context.done(f"revoked {grant_id}", revoked=grant_id)


@click.group(cls=Group)
def policies() -> None:
    """The tenant's own policies, in Cedar."""


@policies.command("list")
@limit_option
@pass_context
def list_policies(context: Context, limit: int) -> None:
    """List versions, newest first."""
    found = with_client(context, lambda client: client.policies.list(limit=limit))
    context.table(found, "version", "state", "created_at", "created_by", "sha256")


@policies.command("show")
@click.argument("version", type=click.IntRange(min=0))
@pass_context
def show_policy(context: Context, version: int) -> None:
    """Show a version with its text."""
    policy = with_client(context, lambda client: client.policies.get(version))
    if context.as_json:
        context.show(policy)
        return
    context.show({name: getattr(policy, name) for name in ("version", "state", "created_at", "created_by")})
    click.echo()
    print_text(policy.text or "")


@policies.command("check")
@click.argument("file", type=click.Path())
@pass_context
def check_policy(context: Context, file: str) -> None:
    """Check FILE (`-` for standard input) without publishing it; line and column of each error are shown."""
    text = read_text(file)
    context.show(with_client(context, lambda client: client.policies.check(text)))


@policies.command("publish")
@click.argument("file", type=click.Path())
@pass_context
def publish_policy(context: Context, file: str) -> None:
    """Publish FILE (`-` for standard input); it decides the next call."""
    text = read_text(file)
    context.show(with_client(context, lambda client: client.policies.publish(text)))


@policies.command("activate")
@click.argument("version", type=click.IntRange(min=0))
@pass_context
def activate_policy(context: Context, version: int) -> None:
    """Roll back, or forward, to a version."""
    context.show(with_client(context, lambda client: client.policies.activate(version)))
