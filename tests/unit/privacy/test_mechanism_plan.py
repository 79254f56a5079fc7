"""Plans: calibration by the enforcing conversion, digests, and what ran against what was charged."""

import dataclasses
import math
from typing import Any

import pytest

from modelkeep_platform.core.errors import IntegrityError, UnprocessableError
from modelkeep_platform.privacy.accounting import epsilon
from modelkeep_platform.privacy.grid import fit_grid
from modelkeep_platform.privacy.plan import (
    MechanismPlan,
    RanMechanism,
    assert_ran_within,
    calibrate,
    largest_that_fits,
    smallest_noise,
)

GRID = fit_grid(epsilon=2.5, delta=1e-5)
SHAPE: dict[str, Any] = {"delta": 1e-5, "sample_rate": 0.25, "steps": 100, "clip_norm": 0.5, "n_public": 455}


@pytest.mark.parametrize("target", [0.3, 1.0, 2.0, 2.5, 7.0])
@pytest.mark.parametrize(("rate", "steps"), [(0.25, 100), (1.0, 1), (0.01, 3000)])
def test_calibration_finds_the_least_noise_of_the_enforcing_conversion(target: float, rate: float, steps: int) -> None:
    plan = calibrate(epsilon=target, grid=GRID, **{**SHAPE, "sample_rate": rate, "steps": steps})
    found = epsilon(
        noise_multiplier=plan.noise_multiplier,
        sample_rate=rate,
        steps=steps,
        delta=1e-5,
        accountant="filter",
        grid=GRID,
    )
    assert found <= target
    less = dataclasses.replace(plan, noise_multiplier=plan.noise_multiplier - 1e-4)
    assert GRID.epsilon(less.cost(GRID)) > target


def test_calibration_without_a_dataset_uses_the_grid_of_its_own_target() -> None:
    plan = calibrate(epsilon=2.0, **SHAPE)
    grid = fit_grid(epsilon=2.0, delta=1e-5)
    assert grid.fits(plan.cost(grid))


def test_calibration_costs_little_over_the_best_fixed_order() -> None:
    plan = calibrate(epsilon=2.5, grid=GRID, **SHAPE)
    assert 2.5 * 0.94 < plan.rdp_epsilon() < 2.5
    assert plan.prv_epsilon() < plan.rdp_epsilon()


def test_a_target_beyond_reach_is_refused() -> None:
    with pytest.raises(UnprocessableError) as raised:
        calibrate(epsilon=0.01, grid=GRID, **SHAPE)
    assert raised.value.error_code == "epsilon_too_small"


def test_a_target_above_what_little_noise_gives_takes_the_least_noise() -> None:
    plan = calibrate(
        epsilon=100.0, grid=fit_grid(epsilon=100.0, delta=1e-5), **{**SHAPE, "sample_rate": 1e-9, "steps": 1}
    )
    assert plan.noise_multiplier == 0.1


def test_another_delta_than_the_datasets_is_refused() -> None:
    with pytest.raises(UnprocessableError) as raised:
        calibrate(epsilon=1.0, grid=GRID, **{**SHAPE, "delta": 1e-6})
    assert raised.value.details["parameter"] == "delta"


BAD: list[tuple[str, object]] = [
    ("epsilon", -1.0),
    ("epsilon", math.nan),
    ("epsilon", math.inf),
    ("epsilon", 1e300),
    ("epsilon", 5e-324),
    ("delta", 1.0),
    ("sample_rate", 0.0),
    ("sample_rate", 1.5),
    ("steps", 0),
    ("steps", 2.0),
    ("clip_norm", 0.0),
    ("clip_norm", math.inf),
    ("n_public", 0),
    ("n_public", 455.0),
    ("unit", "patient"),
]


@pytest.mark.parametrize(("parameter", "value"), BAD, ids=str)
def test_senseless_plans_are_refused_by_name(parameter: str, value: object) -> None:
    with pytest.raises(UnprocessableError) as raised:
        calibrate(**{"epsilon": 2.0, "unit": "row", **SHAPE, parameter: value})
    assert raised.value.error_code == "invalid_privacy_parameter"
    assert raised.value.details["parameter"] == parameter


def test_the_denominator_is_public() -> None:
    plan = calibrate(epsilon=2.0, **SHAPE)
    assert plan.denominator == 0.25 * 455


PLAN = MechanismPlan(
    noise_multiplier=6.0, sample_rate=0.25, steps=100, clip_norm=0.5, n_public=455, delta=1e-5, epsilon=2.0
)


def test_the_digest_is_of_every_field() -> None:
    assert PLAN.digest() == "09d1db411fdbd885bb0b632d28268cd152970ac2f4272d69d515c69ae755472e"
    changed: dict[str, Any] = {
        "noise_multiplier": 6.1,
        "sample_rate": 0.2,
        "steps": 101,
        "clip_norm": 0.6,
        "n_public": 456,
        "delta": 1e-6,
        "epsilon": 2.1,
    }
    assert set(changed) == {field.name for field in dataclasses.fields(PLAN)} - {"unit"}
    digests = {dataclasses.replace(PLAN, **{name: value}).digest() for name, value in changed.items()}
    assert len(digests | {PLAN.digest()}) == 1 + len(changed)


RAN = RanMechanism(steps=60, noise_multiplier=6.0, sample_rate=0.25, clip_norm=0.5)


def test_a_run_within_its_charge_passes() -> None:
    assert_ran_within(PLAN, RAN, charged_steps=60)


@pytest.mark.parametrize(
    "change",
    [{"steps": 61}, {"noise_multiplier": 5.9}, {"sample_rate": 0.3}, {"clip_norm": 0.6}],
    ids=lambda change: next(iter(change)),
)
def test_a_run_that_was_not_what_was_charged_is_held(change: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError) as raised:
        assert_ran_within(PLAN, dataclasses.replace(RAN, **change), charged_steps=60)
    assert raised.value.error_code == "ran_more_than_charged"


def test_the_largest_that_fits_does_fit_and_little_more_does_not() -> None:
    spent = calibrate(epsilon=2.0, grid=GRID, **SHAPE).cost(GRID)
    largest = largest_that_fits(GRID, spent, 0.25, 100)
    assert 1.0 < largest < 2.0
    admitted = calibrate(epsilon=largest, grid=GRID, **SHAPE).cost(GRID)
    assert GRID.fits([a + b for a, b in zip(spent, admitted, strict=True)])
    refused = calibrate(epsilon=largest + 0.001, grid=GRID, **SHAPE).cost(GRID)
    assert not GRID.fits([a + b for a, b in zip(spent, refused, strict=True)])


def test_nothing_fits_on_a_full_budget() -> None:
    full = calibrate(epsilon=2.5, grid=GRID, **SHAPE).cost(GRID)
    assert largest_that_fits(GRID, tuple(2 * unit for unit in full), 0.25, 100) == 0.0
    assert smallest_noise(GRID, 0.25, 100, spent=tuple(2 * unit for unit in full), limit=GRID.limit) is None


def test_two_jobs_of_epsilon_two_compose_to_less_than_four() -> None:
    grid = fit_grid(epsilon=4.0, delta=1e-5)
    cost = calibrate(epsilon=2.0, grid=grid, **SHAPE).cost(grid)
    assert 2.7 < grid.epsilon([2 * unit for unit in cost]) < 3.0


def test_less_than_the_smallest_epsilon_is_not_offered() -> None:
    grid = fit_grid(epsilon=0.01, delta=1e-5)
    spent = tuple(max(0, (grid.limit - overhead) // 2) for overhead in grid.overheads)
    assert smallest_noise(grid, 1e-6, 1, spent=spent, limit=grid.limit) is not None
    assert largest_that_fits(grid, spent, 1e-6, 1) == 0.0
