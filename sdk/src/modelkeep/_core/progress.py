"""How long things show how far they are: nothing, a function of the caller's, or a bar.

Bars go to standard error: what a program prints stays its own.
"""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadProgress:
    """How much of a download has arrived, in bytes."""

    received_bytes: int
    total_bytes: int


UploadReport: TypeAlias = Callable[[UploadProgress], object] | bool
DownloadReport: TypeAlias = Callable[[DownloadProgress], object] | bool
JobReport: TypeAlias = Callable[[Job], object] | bool


@contextmanager
def upload_report(wanted: UploadReport, title: str) -> Iterator[Callable[[UploadProgress], object]]:
    """Give a function that reports uploads: `wanted` itself, a bar when it is true, or nothing."""
    if callable(wanted):
        yield wanted
    elif wanted:
        with _bytes_bar(title) as update:
            yield lambda now: update(now.sent_bytes, now.total_bytes)
    else:
        yield _ignore


@contextmanager
def download_report(wanted: DownloadReport, title: str) -> Iterator[Callable[[DownloadProgress], object]]:
    """Give a function that reports downloads: `wanted` itself, a bar when it is true, or nothing."""
    if callable(wanted):
        yield wanted
    elif wanted:
        with _bytes_bar(title) as update:
            yield lambda now: update(now.received_bytes, now.total_bytes)
    else:
        yield _ignore


@contextmanager
def job_report(wanted: JobReport) -> Iterator[Callable[[Job], object]]:
    """Give a function that reports jobs: `wanted` itself, a bar with steps and ε when it is true, or nothing."""
    if callable(wanted):
        yield wanted
    elif wanted:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[charged]}", markup=False),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
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


@contextmanager
def _bytes_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(printable(title, limit=60), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _ignore(_now: object) -> None:
    pass
