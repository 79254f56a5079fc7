"""What a tenant feels or learns of others: a flood next door; whether a foreign model answers like a missing one.

A flood costs the machine something, wherever it goes: its load generator takes a core, and what answers it another. So
the same flood is also sent to another process, the bare endpoint: what Globex feels of that is the machine's part.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import httpx

from benchmarks.harness import Figure
from benchmarks.place import Place, seen

TITLE = "Two tenants"
ROUNDS = 3
QUIET_S = 1.5
LIMITED_S = 6.0
"""At a limit it is longer: its p99 is to be one of some hundreds, and not of fifty."""

PAUSE_S = 0.02
FLOOD = 64
ASKED = 400
DEFAULT_PER_S = 1000
"""What the shipped limits let through of one tenant."""


def measure_at(at: Place) -> list[Figure]:
    """Measure Globex's predictions while Acme floods, and the times of a 404."""
    return [
        *_flood(at, "default", "Acme floods, held to the shipped limits", exhausted=True),
        *_flood(at, "default", "as many requests to another process", to=at.bare, pause_s=FLOOD / DEFAULT_PER_S),
        *_flood(at, "whole", "Acme floods, without limits"),
        *_flood(at, "limits", "Acme floods, without limits or turns"),
        *_flood(at, "whole", "the same flood to another process", to=at.bare),
        *_flood(at, "limited", "Acme floods, held to 100 a second", exhausted=True),
        *_same(at),
    ]


def _flood(
    at: Place, variant: str, what: str, *, to: int | None = None, pause_s: float = 0.0, exhausted: bool = False
) -> list[Figure]:
    """Measure Globex on one port while Acme floods that port, or `to`; `exhausted`: after it has used its burst up."""
    port, quiet_s = at.ports[variant], LIMITED_S if exhausted else QUIET_S
    if exhausted:
        at.load(port, connections=FLOOD, seconds=5.0)
    alone: list[dict[str, Any]] = []
    beside: list[dict[str, Any]] = []
    floods: list[dict[str, Any]] = []

    def quiet() -> None:
        alone.append(at.load(port, tenant="globex", seconds=quiet_s, pause_s=PAUSE_S))

    def flooded() -> None:
        asked: dict[str, Any] = {"connections": FLOOD, "seconds": quiet_s + 0.8, "pause_s": pause_s}
        with at.loading(to or port, tenant="acme", **asked) as flood:
            time.sleep(0.4)
            beside.append(at.load(port, tenant="globex", seconds=quiet_s, pause_s=PAUSE_S))
            floods.append(seen(flood))

    sides: list[Callable[[], None]] = [quiet, flooded]
    for number in range(ROUNDS):
        for side in sides if number % 2 == 0 else sides[::-1]:
            side()
    name = f"{what} ({_rates(floods)})"
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


def _rates(floods: list[dict[str, Any]]) -> str:
    """Return how many answers a second of each status the middle one of the floods got."""
    flood = sorted(floods, key=lambda one: one["rate"])[len(floods) // 2]
    total = sum(flood["statuses"].values())
    shares = {status: flood["rate"] * count / total for status, count in sorted(flood["statuses"].items())}
    return ", ".join(f"{rate:.0f}/s × {status}" for status, rate in shares.items())


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
