"""What each layer costs: the platform as shipped against itself with one layer replaced by its null port.

The server's processor time of a request says it best: how many requests a second are answered, and when, depends on how
they fall into batches, and spreads by more than a layer costs.
"""

from typing import Any

from benchmarks.harness import Figure
from benchmarks.place import Place

TITLE = "Predictions, one layer left out"
CONNECTIONS = 16
ROUNDS = 9
FIGURES = (
    ("processor time of a request in the server", "µs", "processor_us"),
    ("requests per second", "/s", "rate"),
    ("p50", "ms", "p50_ms"),
    ("p99", "ms", "p99_ms"),
)
SECONDS = 0.5
LAYERS = {
    "authenticator": "without verified tokens (any token is one caller)",
    "decisions": "without decisions",
    "recorder": "without the audit log",
    "limits": "without limits",
    "watch": "without access line and counts",
    "nothing": "without any of these",
}


def measure_at(at: Place) -> list[Figure]:
    """Measure processor time, requests per second, p50 and p99; a ratio below 1 is what the layer costs."""
    seen: dict[str, list[dict[str, Any]]] = {name: [] for name in ("whole", *LAYERS)}
    for number in range(ROUNDS):
        for name in seen if number % 2 == 0 else reversed(seen):
            seen[name].append(_load(at, at.ports[name]))
    return [
        Figure(
            name=f"{title}, {CONNECTIONS} connections",
            unit=unit,
            ours=[one[key] for one in seen["whole"]],
            against=what,
            theirs=[one[key] for one in seen[name]],
            more_is_better=unit == "/s",
        )
        for title, unit, key in FIGURES
        for name, what in LAYERS.items()
    ]


def _load(at: Place, port: int) -> dict[str, Any]:
    before = at.processor_s()
    found = at.load(port, connections=CONNECTIONS, seconds=SECONDS)
    answers: int = sum(found["statuses"].values())
    return {**found, "processor_us": (at.processor_s() - before) / answers * 1e6}
