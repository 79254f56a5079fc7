"""The `modelkeep` command: options that every command shares, and the groups."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import click

from modelkeep._version import __version__
from modelkeep.cli import audit, datasets, governance, jobs, login, models, people, predict
from modelkeep.cli.shared import DEFAULT_PROFILE, Context, Group


@click.group(cls=Group)
@click.version_option(__version__, prog_name="modelkeep")
@click.option("--server", envvar="MODELKEEP_SERVER", help="The platform's address; by default that of the last login.")
@click.option("--profile", default=DEFAULT_PROFILE, envvar="MODELKEEP_PROFILE", show_default=True, help="Whose login.")
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="MODELKEEP_STATE_DIR",
    help="Where logins and checkpoints are kept; by default the user's state folder.",
)
@click.option("--ca-file", type=click.Path(exists=True, dir_okay=False), envvar="MODELKEEP_CA_FILE", help="PEM roots.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.option("--unsafe-allow-http", is_flag=True, help="Allow plain HTTP beyond this machine.")
@click.pass_context
def main(
    ctx: click.Context,
    *,
    server: str | None,
    profile: str,
    state_dir: Path | None,
    ca_file: str | None,
    as_json: bool,
    unsafe_allow_http: bool,
) -> None:
    """Use a Modelkeep platform: log in, upload, train, predict, govern, and check the log."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a name that the locale cannot write is no reason to fail
    ctx.obj = Context(
        server=server,
        profile=profile,
        state_dir=state_dir,
        ca_file=ca_file,
        as_json=as_json,
        unsafe_allow_http=unsafe_allow_http,
    )


for _command in (
    *(login.login, login.logout, login.whoami, people.tenant, predict.predict),
    *(models.models, datasets.datasets, jobs.jobs, governance.budgets, governance.grants, governance.policies),
    *(people.members, people.service_accounts, people.tenants, people.issuer, audit.audit),
):
    main.add_command(_command)
