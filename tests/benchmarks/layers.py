"""What each layer costs: the platform as shipped against itself with one layer replaced by its null port."""

from benchmarks.harness import Figure
from benchmarks.place import Place

TITLE = "Predictions, one layer left out"
CONNECTIONS = 16
ROUNDS = 3
SECONDS = 0.8
LAYERS = {
    "authenticator": "without verified tokens (any token is one caller)",
    "decisions": "without decisions",
    "recorder": "without the audit log",
    "limits": "without limits",
    "watch": "without access line and counts",
    "nothing": "without any of these",
}


def measure_at(at: Place) -> list[Figure]:
    """Measure requests per second; a ratio below 1 is what the layer costs."""
    rates: dict[str, list[float]] = {name: [] for name in ("whole", *LAYERS)}
    for number in range(ROUNDS):
        for name in rates if number % 2 == 0 else reversed(rates):
            rates[name].append(at.load(at.ports[name], connections=CONNECTIONS, seconds=SECONDS)["rate"])
    return [
        Figure(
            name=f"requests per second, {CONNECTIONS} connections",
            unit="/s",
            ours=rates["whole"],
            against=what,
            theirs=rates[name],
            more_is_better=True,
        )
        for name, what in LAYERS.items()
    ]
