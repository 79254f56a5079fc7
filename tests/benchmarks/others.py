"""What a tenant feels or learns of others: a flood next door; whether a foreign model answers like a missing one."""

import statistics
import time
from typing import Any

import httpx

from benchmarks.harness import Figure
from benchmarks.place import Place, seen

TITLE = "Two tenants"
ROUNDS = 3
QUIET_S = 1.5
PAUSE_S = 0.02
FLOOD = 64
ASKED = 400


def measure_at(at: Place) -> list[Figure]:
    """Measure Globex's predictions while Acme floods, and the times of a 404."""
    return [
        *_flood(at, "whole", "Acme floods with predictions that are answered"),
        *_flood(at, "limited", "Acme floods beyond its requests a minute"),
        *_same(at),
    ]


def _flood(at: Place, variant: str, what: str) -> list[Figure]:
    port = at.ports[variant]
    if variant == "limited":
        # Use the minute's requests up first.
        at.load(port, connections=FLOOD, seconds=5.0)
    alone: list[dict[str, Any]] = []
    beside: list[dict[str, Any]] = []
    statuses: dict[str, int] = {}
    for _ in range(ROUNDS):
        alone.append(at.load(port, tenant="globex", seconds=QUIET_S, pause_s=PAUSE_S))
        with at.loading(port, tenant="acme", connections=FLOOD, seconds=QUIET_S + 0.8) as flood:
            time.sleep(0.4)
            beside.append(at.load(port, tenant="globex", seconds=QUIET_S, pause_s=PAUSE_S))
            statuses = seen(flood)["statuses"]
    name = f"{what} ({', '.join(f'{count} × {status}' for status, count in sorted(statuses.items()))})"
    return [
        Figure(
            name=f"Globex's {quantile}: {name}",
            unit="ms",
            ours=[one[f"{quantile}_ms"] for one in beside],
            against="without the flood",
            theirs=[one[f"{quantile}_ms"] for one in alone],
        )
        for quantile in ("p50", "p99")
    ]


def _same(at: Place) -> list[Figure]:
    """Time 404s of a model that is another tenant's and of one that is not there, in turn."""
    foreign: list[float] = []
    missing: list[float] = []
    headers = {"authorization": f"Bearer {at.tokens['globex']}"}
    with httpx.Client(base_url=at.made.url, headers=headers, timeout=30) as client:
        for number in range(ASKED):
            pair = [(foreign, "acme~net"), (missing, "acme~nix")]
            for times, name in pair if number % 2 == 0 else reversed(pair):
                began = time.perf_counter()
                answer = client.get(f"/v1/models/{name}")
                times.append((time.perf_counter() - began) * 1e3)
                if answer.status_code != httpx.codes.NOT_FOUND:
                    raise RuntimeError(f"a foreign or missing model was answered with {answer.status_code}")
    slices = [slice(at, at + ASKED // 5) for at in range(0, ASKED, ASKED // 5)]
    slower = sum((f > m) + (f == m) / 2 for f in foreign for m in missing) / ASKED**2
    return [
        Figure(
            name=f"404 of a foreign model; slower than of a missing one in {slower:.1%} of pairs (50 %: no difference)",
            unit="ms",
            ours=[statistics.median(foreign[part]) for part in slices],
            against="404 of a missing model",
            theirs=[statistics.median(missing[part]) for part in slices],
        ),
    ]
