"""Datasets: list, show, upload, delete. Rows cannot be downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from modelkeep.cli.files import read_object
from modelkeep.cli.shared import Context, Group, limit_option, pass_context, with_client, yes_option

if TYPE_CHECKING:
    from modelkeep.client import Client


@click.group(cls=Group)
def datasets() -> None:
    """Datasets and their declarations."""


@datasets.command("list")
@limit_option
@pass_context
def list_datasets(context: Context, limit: int) -> None:
    """List the tenant's datasets."""
    found = with_client(context, lambda client: client.datasets.list(limit=limit))
    context.table(found, "name", "format", "privacy", "created_at", "description")


@datasets.command()
@click.argument("name")
@pass_context
def show(context: Context, name: str) -> None:
    """Show what a dataset's owner declared; NAME may be `owner~name`."""
    context.show(with_client(context, lambda client: client.datasets.get(name)))


@datasets.command()
@click.argument("name")
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option("--schema", required=True, type=click.Path(), help="The declared schema, as JSON.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["csv", "arrays"]),
    help="By default from the file's name, .csv or .safetensors.",
)
@click.option("--public", "reason", help="Public, for this reason; such a dataset has no budget.")
@click.option("--epsilon", type=float, help="Private: the budget's ε.")
@click.option("--delta", type=float, help="Private: the budget's δ.")
@click.option("--n-public", type=click.IntRange(min=1), help="Private: the size you declare.")
@click.option("--description", default="", help="For people.")
@pass_context
def upload(
    context: Context,
    *,
    name: str,
    file: str,
    schema: str,
    kind: Literal["csv", "arrays"] | None,
    reason: str | None,
    epsilon: float | None,
    delta: float | None,
    n_public: int | None,
    description: str,
) -> None:
    """Upload FILE: CSV with a header, or safetensors with `features` or `images` and `target`."""
    privacy = _privacy(reason, epsilon, delta, n_public)
    found = kind or _format(file)
    document = read_object(schema)

    def run(client: Client) -> object:
        return client.datasets.upload(
            name,
            Path(file),
            format=found,
            schema=document,
            privacy=privacy,
            description=description,
            progress=context.progress,
        )

    context.show(with_client(context, run))


def _format(file: str) -> Literal["csv", "arrays"]:
    if file.endswith(".csv"):
        return "csv"
    if file.endswith(".safetensors"):
        return "arrays"
    raise click.UsageError("the file's name does not say its format; give --format")


def _privacy(reason: str | None, epsilon: float | None, delta: float | None, n_public: int | None) -> dict[str, object]:
    numbers = (epsilon, delta, n_public)
    if reason is not None:
        if numbers != (None, None, None):
            raise click.UsageError("a public dataset has no --epsilon, --delta or --n-public")
        if not reason.strip():
            raise click.UsageError("--public says why everybody may see the rows")
        return {"visibility": "public", "reason": reason}
    if None in numbers:
        raise click.UsageError("give --epsilon, --delta and --n-public, or --public with the reason")
    budget = {"epsilon": epsilon, "delta": delta}
    return {"visibility": "private", "unit": "row", "n_public": n_public, "budget": budget}


@datasets.command()
@click.argument("name")
@yes_option
@pass_context
def delete(context: Context, name: str, *, yes: bool) -> None:
    """Delete a dataset; its key is destroyed, what was charged stays charged."""
    context.confirm(f"Delete the dataset {name}? There is no way back.", yes=yes)
    with_client(context, lambda client: client.datasets.delete(name))
    context.done(f"deleted {name}", deleted=name)
