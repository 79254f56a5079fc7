"""Training jobs: plan, create, watch, cancel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from modelkeep.cli.files import read_object
from modelkeep.cli.output import plain
from modelkeep.cli.shared import Context, Group, limit_option, pass_context, with_client

if TYPE_CHECKING:
    from modelkeep.client import Client


@click.group(cls=Group)
def jobs() -> None:
    """Training jobs."""


@jobs.command()
@click.argument("file", type=click.Path())
@pass_context
def plan(context: Context, file: str) -> None:
    """Say what the job in FILE (JSON, `-` for standard input) would cost; nothing is spent."""
    declared = read_object(file)
    context.show(with_client(context, lambda client: client.jobs.plan(declared)))


@jobs.command()
@click.argument("file", type=click.Path())
@click.option("--wait", is_flag=True, help="Wait until it ends, with a progress bar.")
@pass_context
def create(context: Context, file: str, *, wait: bool) -> None:
    """Start the job in FILE (JSON, `-` for standard input); its cost is reserved first."""
    declared = read_object(file)

    def run(client: Client) -> object:
        job = client.jobs.create(declared)
        if not wait:
            return job
        context.done(f"started {job.id}; it goes on when this command is stopped")
        return client.jobs.wait(job.id, progress=context.progress)

    context.show(with_client(context, run))


@jobs.command("list")
@limit_option
@pass_context
def list_jobs(context: Context, limit: int) -> None:
    """List jobs, newest first, with the ε that was charged for each."""
    found = with_client(context, lambda client: client.jobs.list(limit=limit))
    if context.as_json:
        context.table(found)
        return
    rows = [
        {
            **plain(job),
            "step": f"{job.progress.step} of {job.progress.steps}",
            "ε charged": job.progress.epsilon_charged,
        }
        for job in found
    ]
    context.table(rows, "id", "state", "dataset", "into", "step", "ε charged", "created_at")


@jobs.command()
@click.argument("job_id")
@pass_context
def show(context: Context, job_id: str) -> None:
    """Show a job."""
    context.show(with_client(context, lambda client: client.jobs.get(job_id)))


@jobs.command()
@click.argument("job_id")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0), help="Seconds to wait; the job goes on.")
@pass_context
def wait(context: Context, job_id: str, timeout_s: float | None) -> None:
    """Wait until a job ends, with a progress bar; status 1 when it did not succeed."""

    def run(client: Client) -> object:
        return client.jobs.wait(job_id, progress=context.progress, timeout_s=timeout_s)

    context.show(with_client(context, run))


@jobs.command()
@click.argument("job_id")
@pass_context
def cancel(context: Context, job_id: str) -> None:
    """Cancel a job; what it ran stays charged, the rest returns."""
    context.show(with_client(context, lambda client: client.jobs.cancel(job_id)))


@jobs.command()
@click.argument("job_id")
@limit_option
@pass_context
def logs(context: Context, job_id: str, limit: int) -> None:
    """Read a job's log; it holds no data."""
    context.table(with_client(context, lambda client: client.jobs.logs(job_id, limit=limit)), "at", "text")
