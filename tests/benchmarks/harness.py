"""What every benchmark shares: rounds that alternate between two sides, figures, and what they are called.

Speed depends on the machine and on what else it does, so a figure is a ratio: both sides are measured in turn, in one
run, and the ratio of each round counts. A ratio is how many times as good ours is: 2 is twice as fast, 0.5 half.
"""

import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

ROUNDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """What a figure should reach: a bound of our own value, of the ratio, or both.

    A value is met or missed by the machine, too; beside one stands a ratio, which any machine should reach.
    """

    at_most: float | None = None
    at_least: float | None = None
    ratio: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of the table: a value of each side for each round.

    Args:
        name: what was measured.
        unit: of the values.
        ours: our value, a round each.
        against: what the other side is; empty for none.
        theirs: its value, a round each.
        more_is_better: whether the values are rates, not times.
        floor: what it should reach.
    """

    name: str
    unit: str
    ours: Sequence[float]
    against: str = ""
    theirs: Sequence[float] = field(default=())
    more_is_better: bool = False
    floor: Floor | None = None

    @property
    def ratios(self) -> list[float]:
        """Return how many times as good ours was, a round each."""
        pairs = zip(self.ours, self.theirs, strict=True) if self.theirs else ()
        return [ours / theirs if self.more_is_better else theirs / ours for ours, theirs in pairs]

    def cells(self) -> list[str]:
        """Return the line's cells: name, ours, against, theirs, ratio, spread, floor."""
        theirs = f"{shown(statistics.median(self.theirs))} {self.unit}" if self.theirs else ""
        ratios = self.ratios
        ratio = f"{statistics.median(ratios):.2f}" if ratios else ""
        spread = (
            f"{min(ratios):.2f} to {max(ratios):.2f}"
            if ratios
            else f"{shown(min(self.ours))} to {shown(max(self.ours))}"
        )
        ours = f"{shown(statistics.median(self.ours))} {self.unit}"
        return [self.name, ours, self.against, theirs, ratio, spread, self._floor()]

    def missed(self) -> list[str]:
        """Return the floors that were not reached."""
        return [floor for floor, held in self._floors() if not held]

    def _floor(self) -> str:
        return "; ".join(f"{floor}: {'held' if held else '**missed**'}" for floor, held in self._floors())

    def _floors(self) -> list[tuple[str, bool]]:
        floor, value = self.floor or Floor(), statistics.median(self.ours)
        found = []
        if floor.at_most is not None:
            found.append((f"≤ {shown(floor.at_most)} {self.unit}", value <= floor.at_most))
        if floor.at_least is not None:
            found.append((f"≥ {shown(floor.at_least)} {self.unit}", value >= floor.at_least))
        if floor.ratio is not None:
            found.append((f"ratio ≥ {floor.ratio:g}", statistics.median(self.ratios) >= floor.ratio))
        return found


def shown(value: float) -> str:
    """Return a number with three digits that count."""
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def interleave(*sides: Callable[[], float], rounds: int = ROUNDS) -> list[list[float]]:
    """Return each side's values, all sides once a round; every second round goes through them backwards."""
    values: list[list[float]] = [[] for _ in sides]
    for number in range(rounds):
        order = range(len(sides)) if number % 2 == 0 else reversed(range(len(sides)))
        for at in order:
            gc.collect()
            values[at].append(sides[at]())
    return values


def each_us(work: Callable[[], object], *, times: int) -> Callable[[], float]:
    """Return a side that gives the microseconds of one call, over `times` calls."""

    def side() -> float:
        began = time.perf_counter()
        for _ in range(times):
            work()
        return (time.perf_counter() - began) / times * 1e6

    return side


def progress(text: str) -> None:
    """Say what goes on; the table goes to the standard output."""
    print(text, file=sys.stderr, flush=True)
