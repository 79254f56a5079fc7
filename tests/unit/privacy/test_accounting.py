"""The accountants: reference values, edges, refusals."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modelkeep_platform.core.errors import UnprocessableError
from modelkeep_platform.privacy.accounting import Accountant, epsilon
from modelkeep_platform.privacy.grid import STANDARD_ORDERS, fit_grid
from modelkeep_platform.privacy.renyi import improved_epsilon, log_c, rdp

VECTORS = Path(__file__).parents[2] / "vectors" / "privacy"


def vectors(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((VECTORS / name).read_text())
    return found


@pytest.mark.parametrize(
    "case", vectors("rdp.json"), ids=lambda case: "{noise_multiplier}-{sample_rate}-{order}".format(**case)
)
def test_divergence_equals_high_precision_quadrature(case: dict[str, Any]) -> None:
    found = rdp(noise_multiplier=case["noise_multiplier"], sample_rate=case["sample_rate"], order=case["order"])
    assert found == pytest.approx(float(case["rdp"]), rel=1e-10)


@pytest.mark.parametrize("order", [1.5, 2.0, 37.0])
def test_divergence_at_full_sampling_is_the_plain_gaussian(order: float) -> None:
    assert rdp(noise_multiplier=3.0, sample_rate=1.0, order=order) == order / 18.0


def test_divergence_grows_with_the_order_and_falls_with_noise() -> None:
    curve = [rdp(noise_multiplier=1.1, sample_rate=0.02, order=order) for order in STANDARD_ORDERS]
    assert curve == sorted(curve)
    noisier = [rdp(noise_multiplier=1.2, sample_rate=0.02, order=order) for order in STANDARD_ORDERS]
    assert all(less < more for less, more in zip(noisier, curve, strict=True))


def test_integer_and_fractional_sums_meet() -> None:
    # (α - 1) D_α is convex: a fractional order lies below the chord of its integer neighbours, and near it.
    for sigma, rate in ((0.7, 0.01), (2.0, 0.3)):
        low, middle, high = (
            (order - 1.0) * rdp(noise_multiplier=sigma, sample_rate=rate, order=order) for order in (3.0, 3.5, 4.0)
        )
        assert low < middle < (low + high) / 2.0


def test_a_divergence_too_large_for_a_float_is_infinite_and_fits_nothing() -> None:
    assert rdp(noise_multiplier=0.05, sample_rate=0.5, order=1024.0) > 1e5
    grid = fit_grid(epsilon=1.0, delta=1e-5)
    assert not grid.fits(grid.step(noise_multiplier=0.05, sample_rate=1.0))


@pytest.mark.parametrize("case", vectors("composed.json"))
def test_composed_runs_hit_the_reference_values(case: dict[str, Any]) -> None:
    mechanism = {key: case[key] for key in ("noise_multiplier", "sample_rate", "steps", "delta")}
    assert epsilon(**mechanism, accountant="rdp") == pytest.approx(case["rdp"], abs=1e-4)
    assert epsilon(**mechanism, accountant="prv") == pytest.approx(case["prv"], abs=0.005)
    classical = min(
        # Mironov's first bound, which older figures were made with.
        case["steps"] * rdp(noise_multiplier=case["noise_multiplier"], sample_rate=case["sample_rate"], order=order)
        - math.log(case["delta"]) / (order - 1.0)
        for order in STANDARD_ORDERS
    )
    assert classical == pytest.approx(case["classical"], abs=5e-4)
    assert case["rdp"] < epsilon(**mechanism, accountant="filter") < case["classical"]


@pytest.mark.parametrize("case", vectors("gaussian.json"), ids=lambda case: "{noise_multiplier}-{delta}".format(**case))
def test_one_full_step_is_the_gaussian_mechanism(case: dict[str, Any]) -> None:
    exact = float(case["epsilon"])
    found = {
        accountant: epsilon(
            noise_multiplier=case["noise_multiplier"],
            sample_rate=1.0,
            steps=1,
            delta=case["delta"],
            accountant=accountant,
        )
        for accountant in ACCOUNTANTS
    }
    assert exact <= found["prv"] < exact + 0.003
    assert found["prv"] < found["rdp"] < found["filter"]


ACCOUNTANTS: tuple[Accountant, ...] = ("filter", "rdp", "prv")


@pytest.mark.parametrize(
    ("sigma", "rate", "steps"), [(1.0, 1e-6, 1000), (0.6, 0.001, 1000), (50.0, 0.01, 100), (5.98, 0.25, 100)]
)
def test_accountants_are_ordered(sigma: float, rate: float, steps: int) -> None:
    filtered, fixed, numerical = (
        epsilon(noise_multiplier=sigma, sample_rate=rate, steps=steps, delta=1e-5, accountant=accountant)
        for accountant in ACCOUNTANTS
    )
    assert filtered >= fixed >= numerical >= 0.0


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
def test_no_steps_cost_nothing(accountant: Accountant) -> None:
    assert epsilon(noise_multiplier=1.0, sample_rate=0.1, steps=0, delta=1e-5, accountant=accountant) == 0.0


def test_more_steps_cost_more_and_more_noise_costs_less() -> None:
    base = {"noise_multiplier": 1.5, "sample_rate": 0.04, "steps": 1000, "delta": 1e-5}
    for accountant in ACCOUNTANTS:
        middle = epsilon(**base, accountant=accountant)  # type: ignore[arg-type]
        assert epsilon(**{**base, "steps": 1100}, accountant=accountant) > middle  # type: ignore[arg-type]
        assert epsilon(**{**base, "noise_multiplier": 1.6}, accountant=accountant) < middle  # type: ignore[arg-type]


BAD = [
    ("noise_multiplier", -1.0),
    ("noise_multiplier", 0.0),
    ("noise_multiplier", math.nan),
    ("noise_multiplier", math.inf),
    ("noise_multiplier", 5e-324),
    ("noise_multiplier", 1e300),
    ("noise_multiplier", "1"),
    ("noise_multiplier", True),
    ("sample_rate", -0.1),
    ("sample_rate", 0.0),
    ("sample_rate", 1.0000001),
    ("sample_rate", math.nan),
    ("sample_rate", 5e-324),
    ("steps", -1),
    ("steps", 10**12),
    ("steps", 1.5),
    ("steps", True),
    ("delta", -1e-5),
    ("delta", 0.0),
    ("delta", 1.0),
    ("delta", 2.0),
    ("delta", math.nan),
    ("delta", 5e-324),
    ("accountant", "moments"),
]


@pytest.mark.parametrize(("parameter", "value"), BAD, ids=str)
def test_senseless_parameters_are_refused_by_name(parameter: str, value: object) -> None:
    arguments: dict[str, Any] = {
        "noise_multiplier": 1.0,
        "sample_rate": 0.1,
        "steps": 10,
        "delta": 1e-5,
        "accountant": "filter",
    }
    with pytest.raises(UnprocessableError) as raised:
        epsilon(**{**arguments, parameter: value})
    assert raised.value.error_code == "invalid_privacy_parameter"
    assert raised.value.details["parameter"] == parameter


def test_a_grid_converts_at_its_own_delta_only() -> None:
    grid = fit_grid(epsilon=2.0, delta=1e-5)
    with pytest.raises(UnprocessableError) as raised:
        epsilon(noise_multiplier=1.0, sample_rate=0.1, steps=1, delta=1e-6, accountant="filter", grid=grid)
    assert raised.value.error_code == "invalid_privacy_parameter"


def test_the_conversion_bounds_the_pointwise_excess() -> None:
    # c(α) e^(-(α-1)ε) r^α >= r - e^ε for every r, with equality at r = e^ε α/(α-1): the lemma of ADR 0050.
    for order in (1.1, 2.0, 8.6, 64.0):
        for target in (0.1, 1.0, 3.0):
            at = math.exp(target) * order / (order - 1.0)
            for ratio in (at, 0.3 * at, 0.9 * at, 1.1 * at, 4.0 * at):
                bound = math.exp(log_c(order) - (order - 1.0) * target + order * math.log(ratio))
                assert bound >= (ratio - math.exp(target)) * (1.0 - 1e-9)
            best = math.exp(log_c(order) - (order - 1.0) * target + order * math.log(at))
            assert best == pytest.approx(at - math.exp(target), rel=1e-9)


def test_conversions_never_give_a_negative_epsilon() -> None:
    assert improved_epsilon(divergence=0.0, order=1024.0, delta=0.9) == 0.0


def test_accounting_imports_no_torch() -> None:
    code = (
        "import sys, modelkeep_platform.privacy.ledger, modelkeep_platform.privacy.mechanism, "
        "modelkeep_platform.privacy.ops\n"
        "assert not {'torch', 'opacus', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
