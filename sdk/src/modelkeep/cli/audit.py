"""The audit log: read it, and check that it only grew."""

from __future__ import annotations

import click

from modelkeep.cli.shared import Context, Group, limit_option, pass_context, with_client


@click.group(cls=Group)
def audit() -> None:
    """The audit log."""


@audit.command()
@click.option("--request", "request_id", help="Only entries of this request.")
@limit_option
@pass_context
def entries(context: Context, request_id: str | None, limit: int) -> None:
    """Read the tenant's own entries, newest first."""
    found = with_client(context, lambda client: client.audit.entries(request_id=request_id, limit=limit))
    context.table(found, "index", "time", "action", "outcome", "name", "object_id", "facts")


@audit.command()
@click.option("--entries", type=click.IntRange(min=0, max=1000), default=10, show_default=True, help="Prove so many.")
@pass_context
def verify(context: Context, entries: int) -> None:
    """Check the log against the checkpoint kept on this machine, and prove the newest own entries.

    The first check keeps a checkpoint; every later one must extend it. Status 1 when it does not.
    """
    context.show(with_client(context, lambda client: client.audit.verify(entries=entries)))
