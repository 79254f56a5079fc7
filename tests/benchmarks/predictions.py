"""Predictions through the platform with all security on, against a bare Starlette endpoint with the same net.

The floor is one of throughput: it holds where requests come together. One request at a time crosses to the worker
process and back, which the bare endpoint does not have; its ratio is shown and has no floor (ADR 0106).
"""

from typing import Any

from benchmarks.harness import Figure, Floor
from benchmarks.place import Place

TITLE = "Predictions"
CONNECTIONS = (1, 16, 64)
ROUNDS = 3
SECONDS = 0.8


def measure_at(at: Place) -> list[Figure]:
    """Measure requests per second, p50 and p99 at several numbers of connections."""
    return [figure for connections in CONNECTIONS for figure in _of(at, connections)]


def _of(at: Place, connections: int) -> list[Figure]:
    ours: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    for number in range(ROUNDS):
        for side in ("ours", "theirs") if number % 2 == 0 else ("theirs", "ours"):
            port, results = (at.ports["whole"], ours) if side == "ours" else (at.bare, theirs)
            results.append(at.load(port, connections=connections, seconds=SECONDS))
    many = f"{connections} connection{'s' if connections > 1 else ''}"
    against = "a bare Starlette endpoint"
    return [
        Figure(
            name=f"requests per second, {many}",
            unit="/s",
            ours=[one["rate"] for one in ours],
            against=against,
            theirs=[one["rate"] for one in theirs],
            more_is_better=True,
            floor=Floor(ratio=1.0) if connections > 1 else None,
        ),
        *(
            Figure(
                name=f"{name}, {many}",
                unit="ms",
                ours=[one[f"{name}_ms"] for one in ours],
                against=against,
                theirs=[one[f"{name}_ms"] for one in theirs],
            )
            for name in ("p50", "p99")
        ),
    ]
