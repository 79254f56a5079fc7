"""The `modelkeep-platform` command: init, serve, tenant, migrate, audit verify."""

import json
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click

from modelkeep_platform import __version__
from modelkeep_platform.app import administration, installation
from modelkeep_platform.core.errors import ModelkeepError

P = ParamSpec("P")
R = TypeVar("R")

_DATA = click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("modelkeep-data"),
    envvar="MODELKEEP_DATA",
    show_default=True,
    help="The installation's data folder.",
)


def _explained(command: Callable[P, R]) -> Callable[P, R]:
    """Show the platform's own errors as one line with their code, and end with status 1."""

    @wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except ModelkeepError as exc:
            click.echo(f"error ({exc.error_code}): {exc.message}", err=True)
            sys.exit(1)

    return wrapper


@click.group()
@click.version_option(__version__, prog_name="modelkeep-platform")
def main() -> None:
    """Install and run a Modelkeep platform."""


@main.command()
@_DATA
@click.option(
    "--root-key",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Where the root key file is made: outside the data folder, best on another volume.",
)
@click.option("--base-url", required=True, help="The address clients use, for example https://models.example.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=int, default=None, help="The port to listen on; by default that of --base-url.")
@_explained
def init(data: Path, root_key: Path, base_url: str, host: str, port: int | None) -> None:
    """Make an installation: data folder, root key, database, operator."""
    made = installation.init(data=data, root_key=root_key, base_url=base_url, host=host, port=port)
    click.echo(f"Made an installation in {data}.\n")
    click.echo("The operator logs in with")
    click.echo(f"  client id:     {made.client_id}")
    click.echo(f"  client secret: {made.client_secret}")
    click.echo("The secret is shown this once. Keep it where only operators read.\n")
    click.echo(f"The root key is {root_key}. Without it nothing sealed can be opened again.")
    click.echo("Keep a copy of that file apart from every backup of the data, for example:")
    click.echo(f"  install -m 0400 {root_key} /media/offline/modelkeep-root.key")
    click.echo(f"\nStart the server with: modelkeep-platform serve --data {data}")


@main.command()
@_DATA
@click.option("--host", default=None, help="Listen here instead of where the settings say.")
@click.option("--port", type=int, default=None, help="Listen on this port instead.")
@click.option("--tls-cert", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="PEM certificate chain.")
@click.option("--tls-key", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="PEM private key.")
@click.option("--unsafe-no-tls", is_flag=True, help="Listen beyond loopback in plain HTTP, behind a TLS proxy.")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="How many server processes.")
@click.option("--listener-fd", type=int, hidden=True)
@_explained
def serve(
    data: Path,
    host: str | None,
    port: int | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    workers: int,
    listener_fd: int | None,
    *,
    unsafe_no_tls: bool,
) -> None:
    """Serve until stopped."""
    from modelkeep_platform.app.server import serve as run

    run(
        data=data,
        host=host,
        port=port,
        tls_cert=tls_cert,
        tls_key=tls_key,
        unsafe_no_tls=unsafe_no_tls,
        workers=workers,
        listener_fd=listener_fd,
    )


@main.command()
@_DATA
@_explained
def migrate(data: Path) -> None:
    """Bring the database to this version's schema; stop the server first."""
    click.echo(f"The database is at revision {installation.migrate(data)}.")


@main.group()
def tenant() -> None:
    """Add and list tenants on this machine; while the server runs, use the SDK or `modelkeep tenants`."""


@tenant.command("add")
@_DATA
@click.argument("slug")
@click.option("--name", required=True, help="The organisation's name.")
@_explained
def tenant_add(data: Path, slug: str, name: str) -> None:
    """Add a tenant and print its administrator's one-time enrolment link."""
    created = administration.add_tenant(data, slug=slug, name=name)
    click.echo(f"Added {created.tenant.slug} ({created.tenant.id}).")
    click.echo(f"Give its administrator this link; it works once: {created.enrolment.url}")


@tenant.command("list")
@_DATA
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_explained
def tenant_list(data: Path, *, as_json: bool) -> None:
    """List tenants."""
    rows: list[dict[str, Any]] = administration.list_tenants(data)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        click.echo(f"{row['slug']:<40} {row['state']:<10} {row['name']}")


@main.group()
def audit() -> None:
    """Check the audit log."""


@audit.command("verify")
@_DATA
@_explained
def audit_verify(data: Path) -> None:
    """Recompute the whole tree from the stored entries and compare it with the newest checkpoint."""
    size, note = administration.verify_log(data)
    click.echo(f"All {size} entries are those that the newest checkpoint commits to:\n\n{note}")
