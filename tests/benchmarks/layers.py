"""What each layer costs: the platform as shipped against itself with one layer replaced by its null port.

The server's processor time of a request is compared, not the requests of a second: how many those are depends on how
they fall into batches, and spreads by more than a layer costs.
"""

from benchmarks.harness import Figure
from benchmarks.place import Place

TITLE = "Predictions, one layer left out"
CONNECTIONS = 16
ROUNDS = 9
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
    """Measure the server's processor time of a request; a ratio below 1 is what the layer costs."""
    spent: dict[str, list[float]] = {name: [] for name in ("whole", *LAYERS)}
    for number in range(ROUNDS):
        for name in spent if number % 2 == 0 else reversed(spent):
            spent[name].append(_request_us(at, at.ports[name]))
    return [
        Figure(
            name=f"processor time of a request in the server, {CONNECTIONS} connections",
            unit="µs",
            ours=spent["whole"],
            against=what,
            theirs=spent[name],
        )
        for name, what in LAYERS.items()
    ]


def _request_us(at: Place, port: int) -> float:
    before = at.processor_s()
    answers: int = sum(at.load(port, connections=CONNECTIONS, seconds=SECONDS)["statuses"].values())
    return (at.processor_s() - before) / answers * 1e6
