"""How long things show how far they are: nothing, a function of the caller's, or a bar in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from modelkeep.errors import printable
from modelkeep.types import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadProgress:
    """How much of an upload has arrived, in bytes."""

    sent_bytes: int
    total_bytes: int


UploadReport: TypeAlias = Callable[[UploadProgress], object] | bool
JobReport: TypeAlias = Callable[[Job], object] | bool


@contextmanager
def upload_report(wanted: UploadReport, title: str) -> Iterator[Callable[[UploadProgress], object]]:
    """Give a function that reports uploads: `wanted` itself, a bar when it is true, or nothing."""
    if callable(wanted):
        yield wanted
    elif wanted:
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns) as bar:
            task = bar.add_task(printable(title, limit=60), total=None)
            yield lambda now: bar.update(task, completed=now.sent_bytes, total=now.total_bytes)
    else:
        yield _ignore


@contextmanager
def job_report(wanted: JobReport) -> Iterator[Callable[[Job], object]]:
    """Give a function that reports jobs: `wanted` itself, a bar with steps and ε when it is true, or nothing."""
    if callable(wanted):
        yield wanted
    elif wanted:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[charged]}", markup=False),
            TimeElapsedColumn(),
        )
        with Progress(*columns) as bar:
            task = bar.add_task("queued", total=None, charged="")

            def show(job: Job) -> None:
                epsilon = job.progress.epsilon_charged
                bar.update(
                    task,
                    description=printable(f"{job.into}: {job.state}", limit=60),
                    completed=job.progress.step,
                    total=job.progress.steps,
                    charged="" if epsilon is None else f"ε charged {epsilon:.3f}",
                )

            yield show
    else:
        yield _ignore


def _ignore(_now: object) -> None:
    pass
