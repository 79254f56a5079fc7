"""Epsilon of a private training run, by three accountants.

`filter` is the platform's own conversion, which calibrates, enforces and is displayed (see `grid`): valid for
adaptively chosen jobs. `rdp` is the best of many fixed orders with the improved conversion, and `prv` a numerical
estimate: both are valid only for one run whose parameters are fixed beforehand, and are shown as information.

Adding or removing one unit; Poisson sampling; what the formulas assume is in `renyi`. No torch, no opacus.
"""

import functools
from collections.abc import Mapping
from typing import Literal, TypeAlias

from modelkeep_platform.core.errors import UnprocessableError
from modelkeep_platform.privacy.checks import check_delta, check_noise_multiplier, check_sample_rate, check_steps
from modelkeep_platform.privacy.grid import STANDARD_ORDERS, UNITS, OrderGrid, self_fitted
from modelkeep_platform.privacy.prv import prv_epsilon
from modelkeep_platform.privacy.renyi import improved_epsilon, rdp

Accountant: TypeAlias = Literal["filter", "rdp", "prv"]


def epsilon(
    *,
    noise_multiplier: float,
    sample_rate: float,
    steps: int,
    delta: float,
    accountant: Accountant,
    grid: OrderGrid | None = None,
) -> float:
    """Return ε at `delta` of `steps` steps of the Poisson-subsampled Gaussian.

    Args:
        noise_multiplier: σ between 0.1 and 10 000.
        sample_rate: q in (0, 1].
        steps: how many noisy steps; empty batches count.
        delta: δ in (0, 1); with a `grid`, the grid's own.
        accountant: `filter`, `rdp` or `prv`.
        grid: for `filter`, a dataset's frozen grid; without it the grid of a dataset whose budget would be just
            the `rdp` figure of this run.

    Returns:
        ε; always ``filter >= rdp >= prv``.

    Raises:
        UnprocessableError: a parameter outside its range, an unknown accountant, or another δ than the grid's.

    =====================  ==================================================================
    case                   value
    =====================  ==================================================================
    steps = 0              0.0: nothing is released
    q = 1, steps = 1       the plain Gaussian mechanism; `prv` is its exact ε to about 1e-3
    noise beyond bounds    refused: ε would be meaningless (σ < 0.1) or the job useless
    =====================  ==================================================================
    """
    sigma, rate = check_noise_multiplier(noise_multiplier), check_sample_rate(sample_rate)
    count, delta = check_steps(steps, minimum=0), check_delta(delta)
    if accountant not in ("filter", "rdp", "prv"):
        message = f"`{str(accountant)[:40]}` is not an accountant; use `filter`, `rdp` or `prv`"
        raise UnprocessableError(message, code="invalid_privacy_parameter", details={"parameter": "accountant"})
    if grid is not None and grid.delta != delta:
        message = "`delta` is not the one this dataset's budget was opened with"
        raise UnprocessableError(message, code="invalid_privacy_parameter", details={"parameter": "delta"})
    if count == 0:
        return 0.0
    if accountant == "filter":
        chosen = grid or self_fitted(_total(sigma, rate, count), delta)
        cost = chosen.step(noise_multiplier=sigma, sample_rate=rate)
        return chosen.epsilon_units([unit * count for unit in cost]) / UNITS
    fixed = min(
        improved_epsilon(divergence=divergence, order=order, delta=delta)
        for order, divergence in _total(sigma, rate, count).items()
    )
    if accountant == "rdp":
        return fixed
    return prv_epsilon(noise_multiplier=sigma, sample_rate=rate, steps=count, delta=delta, bound=fixed)


def _total(sigma: float, rate: float, steps: int) -> Mapping[float, float]:
    return {order: divergence * steps for order, divergence in _curve(sigma, rate).items()}


@functools.lru_cache(maxsize=512)
def _curve(sigma: float, rate: float) -> Mapping[float, float]:
    return {order: rdp(noise_multiplier=sigma, sample_rate=rate, order=order) for order in STANDARD_ORDERS}
