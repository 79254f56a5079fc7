"""The `modelkeep-platform` command: init, serve, tenant, migrate, audit verify."""

import json
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import click

from modelkeep_platform import __version__
from modelkeep_platform.app import administration, installation
from modelkeep_platform.core.errors import ModelkeepError

_MOST_DIGITS: Final = 15
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
    os.umask(0o077)  # what the libraries make, the database above all, is nobody else's to read


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
@click.option("--process-number", type=int, default=0, hidden=True)
@click.option("--supervisor-pid", type=int, hidden=True)
@_explained
def serve(
    data: Path,
    host: str | None,
    port: int | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    workers: int,
    listener_fd: int | None,
    process_number: int,
    supervisor_pid: int | None,
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
        process_number=process_number,
        supervisor_pid=supervisor_pid,
    )


@main.command()
@_DATA
@_explained
def migrate(data: Path) -> None:
    """Bring the database to this version's schema; stop the server first."""
    click.echo(f"The database is at revision {installation.migrate(data)}.")


@main.command("openapi")
def openapi_document() -> None:
    """Print the OpenAPI document of the management API; needs no installation."""
    from modelkeep_platform.http.v1 import description

    click.echo(json.dumps(description(), indent=1, sort_keys=True, ensure_ascii=False))


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


@tenant.command("limits")
@_DATA
@click.argument("slug")
@click.argument("changes", nargs=-1, metavar="[NAME=VALUE]...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_explained
def tenant_limits(data: Path, slug: str, changes: tuple[str, ...], *, as_json: bool) -> None:
    """Show a tenant's limits and what is used of them; `members=50` sets one, `members=default` takes it back."""
    details = administration.tenant_limits(data, slug=slug, changes=dict(_change(text) for text in changes))
    if as_json:
        click.echo(json.dumps(details, indent=2))
        return
    click.echo(f"{'limit':<30} {'value':>10} {'default':>10} {'used':>10}")
    for name, one in details["limits"].items():
        used = "-" if one["used"] is None else one["used"]
        click.echo(f"{name:<30} {one['value']:>10} {one['default']:>10} {used:>10}")


def _change(text: str) -> tuple[str, int | None]:
    name, _, value = text.partition("=")
    if value == "default":
        return name, None
    if not (value.isascii() and value.isdigit() and len(value) <= _MOST_DIGITS):
        raise click.BadParameter(f"`{text}` is not NAME=NUMBER or NAME=default", param_hint="NAME=VALUE")
    return name, int(value)


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


@audit.command("checkpoint")
@_DATA
@_explained
def audit_checkpoint(data: Path) -> None:
    """Print the newest signed checkpoint; keep it elsewhere, it shows what a restored backup has lost."""
    from modelkeep_platform.app.backup import newest_checkpoint

    click.echo(newest_checkpoint(data), nl=False)


_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)


@main.command()
@_DATA
@click.option("--out", type=_FOLDER, required=True, help="The folder to make.")
@click.option("--keys", type=_FILE, required=True, help="The file to make for the wrapped keys; keep it apart.")
@_explained
def backup(data: Path, out: Path, keys: Path) -> None:
    """Write a backup; the server may go on serving.

    Three things are needed to open anything again: the backup, the file of wrapped keys, and the root key. Keep them
    apart: a backup from which the keys were left out can be shredded by destroying that one file.
    """
    from modelkeep_platform.app.backup import backup as write

    made = write(data, out=out, keys=keys)
    click.echo(f"Wrote {made.files} files, {made.size_bytes} bytes, to {out}; the log had {made.log_size} entries.")
    click.echo(f"The wrapped keys are in {keys}. Keep them, and the root key, apart from {out}.")


@main.command()
@click.argument("backup_folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--keys", type=click.Path(path_type=Path, exists=True, dir_okay=False), required=True, help="Its keys.")
@click.option(
    "--root-key", type=click.Path(path_type=Path, exists=True, dir_okay=False), required=True, help="The root."
)
@_DATA
@_explained
def restore(backup_folder: Path, keys: Path, root_key: Path, data: Path) -> None:
    """Make an installation from a backup; private training stays frozen until `compare-budgets`."""
    from modelkeep_platform.app.backup import restore as bring_back

    made = bring_back(backup_folder, keys=keys, root_key=root_key, data=data)
    click.echo(f"Restored to {data}; the log has {made.log_size} entries, {made.ended_jobs} jobs were ended.")
    click.echo(f"The ledger is in epoch {made.epoch.number} ({made.epoch.id}): nothing reserved before moves again.")
    click.echo(f"{made.frozen_budgets} budgets are frozen. Get the newest checkpoint that anyone holds, then run")
    click.echo(f"  modelkeep-platform compare-budgets --data {data} --checkpoint FILE")


@main.command("compare-budgets")
@_DATA
@click.option("--checkpoint", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="The newest one held.")
@click.option("--without-checkpoint", is_flag=True, help="Nobody holds one: frozen budgets count as exhausted.")
@_explained
def compare_budgets(data: Path, checkpoint: Path | None, *, without_checkpoint: bool) -> None:
    """Compare a restored log with the newest checkpoint held elsewhere, and free its budgets or end them."""
    from modelkeep_platform.app.backup import compare

    if (checkpoint is None) != without_checkpoint:
        raise click.UsageError("give --checkpoint, or say --without-checkpoint")
    compared = compare(data, checkpoint=checkpoint)
    click.echo(f"The ledger is in epoch {compared.epoch.number} ({compared.epoch.id}).")
    if compared.freed:
        click.echo("The restored log contains the checkpoint: budgets are as they were, and training goes on.")
    else:
        click.echo("What was spent after the backup cannot be known: the frozen budgets count as exhausted.")


@main.command()
@_DATA
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_explained
def doctor(data: Path, *, as_json: bool) -> None:
    """Look the installation over and say how to mend what is wrong; status 1 when something is."""
    from modelkeep_platform.app.doctor import Level, examine

    found = examine(data)
    if as_json:
        shown = [{"level": str(one.level), "what": one.what, "advice": one.advice} for one in found]
        click.echo(json.dumps(shown, indent=2))
    else:
        for one in found:
            click.echo(f"{one.level:<5} {one.what}")
            if one.advice:
                click.echo(f"      {one.advice}")
    if any(one.level is Level.BAD for one in found):
        sys.exit(1)
