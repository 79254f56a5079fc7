"""The table: as it is printed, and as it stands in docs/reference/benchmarks.md between two comments."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks.harness import Figure

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "benchmarks.md"
BEGIN, END = "<!-- written by make bench -->", "<!-- end of what make bench writes -->"
HEAD = ["measured", "ours", "against", "theirs", "ratio", "spread", "floor"]


def as_table(figures: list[Figure]) -> str:
    """Return a Markdown table."""
    rows = [HEAD, ["---"] * len(HEAD), *(figure.cells() for figure in figures)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def machine() -> str:
    """Return the size of this machine and the versions that matter; no names."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {len(os.sched_getaffinity(0))} cores ({platform.machine()}), {memory:.0f} GiB "
        f"of memory, Python {platform.python_version()}, torch {version('torch')}; the machine's load was "
        f"{os.getloadavg()[2]:.1f} over the last quarter of an hour, the benchmarks' own included."
    )


def write(figures: list[tuple[str, list[Figure]]]) -> None:
    """Put the tables into the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    parts = [f"Measured on {machine()}", *(f"### {title}\n\n{as_table(found)}" for title, found in figures)]
    PAGE.write_text("\n\n".join([before + BEGIN, *parts, END + after]), encoding="utf-8")
