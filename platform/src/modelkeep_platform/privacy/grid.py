"""The one conversion: a few Rényi orders with weights, fitted to a dataset's (epsilon, delta) and frozen.

A ledger keeps one number for each order of its grid and admits a job while *some* order still holds. With c(α) of
`renyi.log_c` and weights w(α) whose sum is at most 1, the whole adaptively chosen interaction is (ε, δ)-DP for

    ε = min over α of  Σ rdp_i(α) + overhead(α),    overhead(α) = (log c(α) - log(w(α) δ)) / (α - 1)

(proof: docs/adr/0050). Calibration, enforcement and display all use `OrderGrid`, in the same integer arithmetic:
divergences and overheads are counted in units of 1e-12 and rounded up, so that no sum can undercount.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TypeAlias

from modelkeep_platform.privacy.checks import MAX_EPSILON, MIN_EPSILON, check_delta, check_epsilon
from modelkeep_platform.privacy.renyi import improved_epsilon, log_c, rdp

Vector: TypeAlias = tuple[int, ...]
"""One whole number of units for each order of a grid."""

UNITS: Final = 10**12
MICRO: Final = 10**6
WEIGHT_ONE: Final = 10**6

# Rounding up: relative for the formula's own error (below 1e-9), absolute for the last digits.
_RELATIVE_MARGIN: Final = 1e-8
_SATURATED: Final = 10**6 * UNITS  # more than any budget; stands for an infinite divergence

STANDARD_ORDERS: Final = (
    *(tenths / 10 for tenths in range(11, 110)),
    *(float(order) for order in range(11, 65)),
    *(80.0, 96.0, 128.0, 192.0, 256.0, 384.0, 512.0, 768.0, 1024.0),
)
"""Orders of the fixed-order (`rdp`) figures; every grid is a part of them."""

# Multiples of (α* - 1) and weights in millionths, α* being the best order of the plain Gaussian at the full budget.
# Weight is spent where it matters: a small w costs log(1/w)/(α - 1), which is dear at low orders only. The lower
# orders serve mechanisms whose divergence grows fast (small q), the higher ones datasets that have spent little.
# Measured: 2 to 5 % more noise than the best fixed order at the full budget, up to 30 % at a tenth of it.
_SHAPE: Final = (
    (0.35, 50_000),
    (0.6, 100_000),
    (1.0, 420_000),
    (1.35, 200_000),
    (1.8, 100_000),
    (2.6, 60_000),
    (4.0, 40_000),
    (7.0, 20_000),
    (14.0, 10_000),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderGrid:
    """Frozen orders, weights and overheads of one (ε, δ).

    Args:
        orders_tenths: the orders α times ten, ascending.
        weights: w(α) in millionths; their sum is at most 1 000 000.
        overheads: overhead(α) in units of 1e-12, rounded up.
        epsilon_micro: the ε it was fitted to, in millionths.
        delta: the δ it converts at.
    """

    orders_tenths: tuple[int, ...]
    weights: tuple[int, ...]
    overheads: tuple[int, ...]
    epsilon_micro: int
    delta: float

    def __post_init__(self) -> None:
        # INVARIANT: Σ w <= 1; the proof rests on it.
        if not self.orders_tenths or not len(self.orders_tenths) == len(self.weights) == len(self.overheads):
            message = "a grid has one weight and one overhead for each order"
            raise ValueError(message)
        if min(self.weights) <= 0 or sum(self.weights) > WEIGHT_ONE or min(self.orders_tenths) <= 10:  # noqa: PLR2004
            message = "a grid's weights are positive and sum to at most one, its orders are above one"
            raise ValueError(message)

    @property
    def orders(self) -> tuple[float, ...]:
        """The orders α."""
        return tuple(tenths / 10 for tenths in self.orders_tenths)

    @property
    def limit(self) -> int:
        """The ε it was fitted to, in units."""
        return self.epsilon_micro * (UNITS // MICRO)

    def step(self, *, noise_multiplier: float, sample_rate: float) -> Vector:
        """Return what one step of the mechanism costs at each order, rounded up."""
        return _step(self.orders_tenths, noise_multiplier, sample_rate)

    def epsilon_units(self, vector: Sequence[int]) -> int:
        """Return ε of a total cost, in units; 0 when nothing was spent."""
        if not any(vector):
            return 0
        return min(spent + overhead for spent, overhead in zip(vector, self.overheads, strict=True))

    def epsilon(self, vector: Sequence[int]) -> float:
        """Return ε of a total cost, rounded up to a millionth."""
        return -(-self.epsilon_units(vector) // (UNITS // MICRO)) / MICRO

    def fits(self, vector: Sequence[int]) -> bool:
        """Return whether some order still holds: the very comparison that admits jobs."""
        return self.epsilon_units(vector) <= self.limit

    def to_json(self) -> str:
        """Write it for the ledger's row."""
        return json.dumps(
            {
                "orders_tenths": self.orders_tenths,
                "weights": self.weights,
                "overheads": self.overheads,
                "epsilon_micro": self.epsilon_micro,
                "delta": self.delta.hex(),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "OrderGrid":
        """Read what `to_json` wrote."""
        return _read(text)


@lru_cache(maxsize=256)
def _read(text: str) -> OrderGrid:
    found: dict[str, Any] = json.loads(text)
    return OrderGrid(
        orders_tenths=tuple(found["orders_tenths"]),
        weights=tuple(found["weights"]),
        overheads=tuple(found["overheads"]),
        epsilon_micro=int(found["epsilon_micro"]),
        delta=float.fromhex(found["delta"]),
    )


def fit_grid(*, epsilon: float, delta: float) -> OrderGrid:
    """Choose orders and weights for a dataset's budget; depends on (ε, δ) alone, never on data.

    Args:
        epsilon: ε_G between 0.01 and 100; kept in millionths, rounded down.
        delta: δ.

    Raises:
        UnprocessableError: a parameter outside its range.
    """
    return _fit(math.floor(check_epsilon(epsilon) * MICRO + 1e-6), check_delta(delta))


@lru_cache(maxsize=256)
def _fit(epsilon_micro: int, delta: float) -> OrderGrid:
    best = _best_gaussian_order(epsilon_micro / MICRO, delta)
    weights: dict[int, int] = {}
    for multiple, weight in _SHAPE:
        wanted = 1.0 + (best - 1.0) * multiple
        order = min(STANDARD_ORDERS, key=lambda known: abs(math.log((known - 1.0) / (wanted - 1.0))))
        tenths = round(order * 10)
        weights[tenths] = weights.get(tenths, 0) + weight
    orders = tuple(sorted(weights))
    return OrderGrid(
        orders_tenths=orders,
        weights=tuple(weights[order] for order in orders),
        overheads=tuple(_overhead(order / 10, weights[order] / WEIGHT_ONE, delta) for order in orders),
        epsilon_micro=epsilon_micro,
        delta=delta,
    )


def self_fitted(divergences: Mapping[float, float], delta: float) -> OrderGrid:
    """Return the grid of a dataset whose budget is the fixed-order ε of these divergences."""
    alone = min(improved_epsilon(divergence=d, order=order, delta=delta) for order, d in divergences.items())
    return fit_grid(epsilon=min(max(alone, MIN_EPSILON), MAX_EPSILON), delta=delta)


def _best_gaussian_order(epsilon: float, delta: float) -> float:
    # The order at which the plain Gaussian mechanism (divergence ρα) that spends all of ε is converted best.
    def converted(rho: float) -> tuple[float, float]:
        return min((improved_epsilon(divergence=rho * order, order=order, delta=delta), order) for order in _FITTED)

    low, high = 1e-12, 1e3
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if converted(middle)[0] > epsilon else (middle, high)
    return converted(low)[1]


_FITTED: Final = tuple(order for order in STANDARD_ORDERS if 1.3 <= order <= 256.0)  # noqa: PLR2004


@lru_cache(maxsize=4096)
def _step(orders_tenths: tuple[int, ...], noise_multiplier: float, sample_rate: float) -> Vector:
    return tuple(
        round_up(rdp(noise_multiplier=noise_multiplier, sample_rate=sample_rate, order=tenths / 10))
        for tenths in orders_tenths
    )


def _overhead(order: float, weight: float, delta: float) -> int:
    return round_up(max(0.0, (log_c(order) - math.log(weight) - math.log(delta)) / (order - 1.0)))


def round_up(value: float) -> int:
    """Return `value` in units of 1e-12, rounded up by more than the formula's own error."""
    if not value < _SATURATED / UNITS:
        return _SATURATED
    return math.ceil(value * (1.0 + _RELATIVE_MARGIN) * UNITS) + 1
