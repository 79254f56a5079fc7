"""Models: list, show, upload, download, aliases, delete."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelkeep.cli.files import read_object
from modelkeep.cli.shared import Context, Group, limit_option, pass_context, version_of, with_client, yes_option

if TYPE_CHECKING:
    from modelkeep.client import Client


@click.group(cls=Group)
def models() -> None:
    """Models, their versions and aliases."""


@models.command("list")
@limit_option
@pass_context
def list_models(context: Context, limit: int) -> None:
    """List the tenant's models."""
    found = with_client(context, lambda client: client.models.list(limit=limit))
    context.table(found, "name", "latest_version", "aliases", "created_at", "description")


@models.command()
@click.argument("name")
@pass_context
def show(context: Context, name: str) -> None:
    """Show a model; NAME may be `owner~name`."""
    context.show(with_client(context, lambda client: client.models.get(name)))


@models.command()
@click.argument("name")
@limit_option
@pass_context
def versions(context: Context, name: str, limit: int) -> None:
    """List a model's versions."""
    found = with_client(context, lambda client: client.models.versions(name, limit=limit))
    context.table(found, "version", "state", "weights_bytes", "inputs", "outputs", "created_at", "provenance")


@models.command()
@click.argument("name")
@click.option("--graph", required=True, type=click.Path(), help="The graph, as JSON; `modelkeep.torch.trace` makes it.")
@click.option("--weights", required=True, type=click.Path(exists=True, dir_okay=False), help="The safetensors file.")
@click.option("--description", default="", help="Of the model, when it is new.")
@pass_context
def upload(context: Context, name: str, graph: str, weights: str, description: str) -> None:
    """Upload a new version."""
    document = read_object(graph)

    def run(client: Client) -> object:
        return client.models.upload(
            name, graph=document, weights=Path(weights), description=description, progress=context.progress
        )

    context.show(with_client(context, run))


@models.command()
@click.argument("name")
@click.option("--version", "version", help="A number or an alias; by default what serves predictions.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path(), help="Into this folder.")
@click.option("--force", is_flag=True, help="Replace files that are there.")
@pass_context
def download(context: Context, name: str, version: str | None, out: Path, *, force: bool) -> None:
    """Download a version: graph and weights, their digests checked."""
    _make(out)
    wanted = version_of(version)
    found = with_client(context, lambda client: client.models.download(name, wanted, progress=context.progress))
    graph, weights = found.save(out, overwrite=force)
    context.show({"name": found.name, "version": found.version, "graph": str(graph), "weights": str(weights)})


def _make(folder: Path) -> None:
    from modelkeep.errors import ConfigurationError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigurationError(f"`{folder}` cannot be made: {exc.strerror}") from exc


@models.command("set-alias")
@click.argument("name")
@click.argument("alias")
@click.argument("version", type=click.IntRange(min=1))
@pass_context
def set_alias(context: Context, name: str, alias: str, version: int) -> None:
    """Point ALIAS at VERSION; predictions follow at once."""
    context.show(with_client(context, lambda client: client.models.set_alias(name, alias, version=version)))


@models.command("delete-alias")
@click.argument("name")
@click.argument("alias")
@pass_context
def delete_alias(context: Context, name: str, alias: str) -> None:
    """Delete an alias."""
    with_client(context, lambda client: client.models.delete_alias(name, alias))
    context.done(f"{name}: the alias {alias} is gone", deleted=alias)


@models.command()
@click.argument("name")
@click.option("--version", type=click.IntRange(min=1), help="Only this version.")
@yes_option
@pass_context
def delete(context: Context, name: str, version: int | None, *, yes: bool) -> None:
    """Delete a model, or one version; its keys are destroyed."""
    what = f"{name} and all its versions" if version is None else f"version {version} of {name}"
    context.confirm(f"Delete {what}? There is no way back.", yes=yes)
    with_client(context, lambda client: client.models.delete(name, version=version))
    context.done(f"deleted {what}", deleted=name, version=version)
