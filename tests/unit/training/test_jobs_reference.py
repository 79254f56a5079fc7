"""docs/reference/jobs.md and docs/explanation/workers.md say what the code does."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from modelkeep_platform.core.limits import TenantLimits
from modelkeep_platform.jobs import queue
from modelkeep_platform.serving import service, tenant_worker
from modelkeep_platform.training import dispatcher, faults, heartbeat, run
from modelkeep_platform.training.spec import JobModel, JobPrivacy, JobSpec, Optimizer, parse
from modelkeep_platform.workers.frames import DEFAULT_BOUNDS
from modelkeep_platform.workers.limits import Limits

DOCS = Path(__file__).parents[3] / "docs"
JOBS = (DOCS / "reference/jobs.md").read_text(encoding="utf-8")
WORKERS = " ".join((DOCS / "explanation/workers.md").read_text(encoding="utf-8").split())
PROSE = " ".join(JOBS.split())
PARTS: dict[str, type[msgspec.Struct]] = {
    "": JobSpec,
    "model.": JobModel,
    "optimizer.": Optimizer,
    "privacy.": JobPrivacy,
}


def section(title: str) -> str:
    return JOBS.partition(f"## {title}\n")[2].partition("\n## ")[0]


def rows_of(title: str) -> dict[str, list[str]]:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in section(title).splitlines() if line[:1] == "|"
    ]
    return {name: row[1:] for row in rows[2:] for name in re.findall(r"`([^`]+)`", row[0])}


def said(kind: msgspec.inspect.Type) -> str:
    """Return how the page writes a type."""
    match kind:
        case msgspec.inspect.UnionType(types=types):
            return " or ".join(
                dict.fromkeys(said(one) for one in types if not isinstance(one, msgspec.inspect.NoneType))
            )
        case msgspec.inspect.LiteralType(values=values):
            return ", ".join(f"`{value}`" for value in sorted(map(str, values)))
        case msgspec.inspect.ListType(item_type=item):
            return f"two numbers, {said(item)}"
        case msgspec.inspect.IntType() | msgspec.inspect.FloatType():
            bounds = [("> ", kind.gt), ("≥ ", kind.ge), ("< ", kind.lt), ("≤ ", kind.le)]
            return ", ".join(f"{sign}{bound:.0f}" for sign, bound in bounds if bound is not None) or "number"
        case msgspec.inspect.StrType():
            return "text"
    return "object"


def declared() -> dict[str, list[str]]:
    found = {}
    for prefix, part in PARTS.items():
        shape: Any = msgspec.inspect.type_info(part)
        for field in shape.fields:
            found[prefix + field.encode_name] = [said(field.type), "required" if field.required else "null"]
    return found


def test_every_field_is_in_the_reference_with_its_values_and_default() -> None:
    assert {name: row[:2] for name, row in rows_of("The declaration").items()} == declared()


def test_the_example_is_a_declaration() -> None:
    (example,) = re.findall(r"```json\n(.*?)```", JOBS, re.DOTALL)
    assert parse(json.loads(example)).into == "cells-model"


def test_every_state_and_every_fault_is_in_the_reference() -> None:
    assert list(rows_of("States")) == [str(state) for state in queue.JobState]
    codes = rows_of("Errors")
    assert set(faults.FAULTS) <= set(codes)
    assert {faults.JobFailedError.code, "job_timeout", dispatcher._INTERRUPTED[0]} <= set(codes)


@pytest.mark.parametrize(
    ("page", "text"),
    [
        (PROSE, f"at least 1 and at most {run.MAX_SEGMENT_STEPS}"),
        (PROSE, f"{TenantLimits().active_jobs} jobs of a tenant"),
        (PROSE, f"{heartbeat.MAX_JOB_S / 3600:.0f} hours for a job"),
        (PROSE, f"a lease of {heartbeat.LEASE_S} s"),
        (PROSE, f"at most {queue.MAX_LINES} lines of at most {queue._MAX_LINE} characters"),
        (WORKERS, f"header of at most {DEFAULT_BOUNDS.header_bytes >> 20} MiB"),
        (WORKERS, f"raw buffers of at most {DEFAULT_BOUNDS.total_bytes >> 20} MiB"),
        (WORKERS, f"idle for {tenant_worker.IDLE_S / 60:.0f} minutes"),
        (WORKERS, f"at most {tenant_worker.MAX_BATCH} requests, {tenant_worker.MAX_BATCH_ROWS} rows"),
        (WORKERS, f"rows and {tenant_worker.MAX_BATCH_BYTES >> 20} MiB"),
        (WORKERS, f"for at least {tenant_worker.HANG_S:.0f} s"),
        (
            WORKERS,
            f"{tenant_worker.MAX_QUEUED} requests wait for a worker, at most {tenant_worker.MAX_QUEUED_GUEST} of",
        ),
        (WORKERS, f"and {tenant_worker.MAX_QUEUED_BYTES >> 20} MiB in all"),
        (WORKERS, f"at most {tenant_worker.MAX_QUEUED_GUESTS} of the places"),
        (WORKERS, f"of the places and {tenant_worker.MAX_QUEUED_GUESTS_BYTES >> 20} MiB"),
        (WORKERS, f"{service.MAX_WORKERS} serving workers at once"),
        (WORKERS, f"have {service.DRAIN_S:.0f} s to finish"),
        (WORKERS, f"within {dispatcher.CLOSE_S:.0f} s are killed"),
        (WORKERS, f"| open descriptors | {Limits().files} |"),
    ],
    ids=lambda value: value[:40],
)
def test_every_figure_is_the_codes(page: str, text: str) -> None:
    assert text in page
