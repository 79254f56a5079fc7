"""The frozen grid: its weights, its rounding, its one comparison."""

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep_platform.core.errors import UnprocessableError
from modelkeep_platform.privacy.grid import MICRO, UNITS, WEIGHT_ONE, OrderGrid, fit_grid, round_up
from modelkeep_platform.privacy.renyi import log_c, rdp

epsilons = st.floats(0.01, 100.0)
deltas = st.floats(-14.0, -1.0).map(lambda exponent: 10.0**exponent)


@settings(max_examples=60, deadline=None)
@given(epsilons, deltas)
def test_weights_sum_to_at_most_one_and_orders_are_few(epsilon: float, delta: float) -> None:
    grid = fit_grid(epsilon=epsilon, delta=delta)
    # INVARIANT of the proof in ADR 0050.
    assert sum(Fraction(weight, WEIGHT_ONE) for weight in grid.weights) <= 1
    assert all(weight > 0 for weight in grid.weights)
    assert 1 <= len(grid.orders) <= 9
    assert list(grid.orders) == sorted(set(grid.orders))
    assert min(grid.orders) > 1.0


@settings(max_examples=60, deadline=None)
@given(epsilons, deltas)
def test_overheads_are_the_weighted_conversion_rounded_up(epsilon: float, delta: float) -> None:
    grid = fit_grid(epsilon=epsilon, delta=delta)
    for order, weight, overhead in zip(grid.orders, grid.weights, grid.overheads, strict=True):
        exact = max(0.0, (log_c(order) - math.log(weight / WEIGHT_ONE * delta)) / (order - 1.0))
        assert exact * UNITS < overhead <= exact * UNITS * (1.0 + 1e-7) + 2


@settings(max_examples=60, deadline=None)
@given(epsilons, deltas)
def test_a_grid_survives_its_row(epsilon: float, delta: float) -> None:
    grid = fit_grid(epsilon=epsilon, delta=delta)
    assert OrderGrid.from_json(grid.to_json()) == grid


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 5 * UNITS), min_size=9, max_size=9))
def test_fits_and_epsilon_are_the_same_comparison(vector: list[int]) -> None:
    grid = fit_grid(epsilon=2.5, delta=1e-5)
    vector = vector[: len(grid.orders)]
    assert grid.fits(vector) == (grid.epsilon_units(vector) <= grid.limit)
    assert grid.epsilon(vector) >= Fraction(grid.epsilon_units(vector), UNITS)
    assert grid.fits(vector) == (grid.epsilon(vector) <= 2.5)


def test_nothing_spent_is_epsilon_zero() -> None:
    grid = fit_grid(epsilon=2.5, delta=1e-5)
    assert grid.epsilon([0] * len(grid.orders)) == 0.0


def test_steps_are_rounded_up_by_more_than_the_formula_errs() -> None:
    grid = fit_grid(epsilon=2.5, delta=1e-5)
    for order, cost in zip(grid.orders, grid.step(noise_multiplier=1.3, sample_rate=0.01), strict=True):
        exact = rdp(noise_multiplier=1.3, sample_rate=0.01, order=order)
        assert exact * (1.0 + 1e-9) * UNITS < cost < exact * (1.0 + 1e-6) * UNITS + 2


@pytest.mark.parametrize(
    ("value", "units"), [(0.0, 1), (math.inf, 10**6 * UNITS), (math.nan, 10**6 * UNITS), (1e9, 10**6 * UNITS)]
)
def test_rounding_up_saturates(value: float, units: int) -> None:
    assert round_up(value) == units


def test_epsilon_is_kept_in_millionths_rounded_down() -> None:
    assert fit_grid(epsilon=2.5000009, delta=1e-5).epsilon_micro == 2_500_000
    assert fit_grid(epsilon=2.3, delta=1e-5).epsilon_micro == round(2.3 * MICRO)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, math.inf, 1e-9, 5e-324, 1e6])
def test_a_senseless_budget_is_refused(epsilon: float) -> None:
    with pytest.raises(UnprocessableError) as raised:
        fit_grid(epsilon=epsilon, delta=1e-5)
    assert raised.value.error_code == "invalid_privacy_parameter"


@pytest.mark.parametrize(
    ("weights", "orders"),
    [((600_000, 600_000), (20, 40)), ((0, 100), (20, 40)), ((100,), (20, 40)), ((100, 100), (10, 40)), ((), ())],
    ids=["above one", "zero", "missing", "order one", "empty"],
)
def test_a_grid_that_breaks_the_proof_cannot_be_made(weights: tuple[int, ...], orders: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="a grid"):
        OrderGrid(orders_tenths=orders, weights=weights, overheads=(1,) * len(orders), epsilon_micro=1, delta=1e-5)
