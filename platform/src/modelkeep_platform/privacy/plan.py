"""Mechanism plans: one frozen value that builds sampler and noise, and is what is charged.

A plan says everything the privacy of a run depends on. Its cost is computed from what it *runs* (σ, q, steps), never
from the ε it claims. `calibrate` finds the smallest σ with the very conversion that the ledger enforces.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Final

from modelkeep_platform.core.canonical import canonical_bytes
from modelkeep_platform.core.errors import IntegrityError, UnprocessableError
from modelkeep_platform.privacy.accounting import Accountant
from modelkeep_platform.privacy.accounting import epsilon as epsilon_of
from modelkeep_platform.privacy.checks import (
    MAX_EPSILON,
    MAX_NOISE,
    MIN_EPSILON,
    MIN_NOISE,
    check_clip_norm,
    check_delta,
    check_epsilon,
    check_noise_multiplier,
    check_sample_rate,
    check_steps,
    check_units,
)
from modelkeep_platform.privacy.grid import UNITS, OrderGrid, Vector, fit_grid

_NOISE_STEPS: Final = 10_000  # noise multipliers are multiples of 1/10 000
_OFFERED: Final = 10_000  # and so is the largest epsilon offered
_OFFERS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class MechanismPlan:
    """What a private run does at each step, and how many steps.

    Args:
        noise_multiplier: σ; each step's noise has standard deviation σ · clip_norm.
        sample_rate: q; each unit joins each step independently with this probability.
        steps: noisy steps, empty batches included.
        clip_norm: C, the largest norm one unit contributes with.
        n_public: the declared number of units; the true number is private and never used.
        delta: the δ of the dataset's budget.
        epsilon: the ε the plan was made for; a label, nothing is charged by it.
        unit: the privacy unit, `row`.

    Raises:
        UnprocessableError: a parameter outside its range.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int
    clip_norm: float
    n_public: int
    delta: float
    epsilon: float
    unit: str = "row"

    def __post_init__(self) -> None:
        check_noise_multiplier(self.noise_multiplier)
        check_sample_rate(self.sample_rate)
        check_steps(self.steps)
        check_clip_norm(self.clip_norm)
        check_units(self.n_public)
        check_delta(self.delta)
        check_epsilon(self.epsilon)
        if self.unit != "row":
            message = f"privacy unit `{self.unit[:40]}` is not supported; use `row`"
            raise UnprocessableError(message, code="invalid_privacy_parameter", details={"parameter": "unit"})

    @property
    def denominator(self) -> float:
        """What the noisy sum is divided by: the public q · N_public, never the realised batch size."""
        return self.sample_rate * self.n_public

    def step_cost(self, grid: OrderGrid) -> Vector:
        """Return what one step costs at each order of `grid`."""
        return grid.step(noise_multiplier=self.noise_multiplier, sample_rate=self.sample_rate)

    def cost(self, grid: OrderGrid) -> Vector:
        """Return what the whole run costs at each order of `grid`."""
        return tuple(unit * self.steps for unit in self.step_cost(grid))

    def digest(self) -> str:
        """Return the hex SHA-256 of the plan's canonical bytes; equal plans and no others have equal digests."""
        fields = canonical_bytes(
            "modelkeep/mechanism-plan@v1",
            float(self.noise_multiplier).hex(),
            float(self.sample_rate).hex(),
            self.steps,
            float(self.clip_norm).hex(),
            self.n_public,
            float(self.delta).hex(),
            float(self.epsilon).hex(),
            self.unit,
        )
        return hashlib.sha256(fields).hexdigest()

    def rdp_epsilon(self) -> float:
        """Return ε of this run alone by the best fixed order; information."""
        return self._information("rdp")

    def prv_epsilon(self) -> float:
        """Return ε of this run alone by the numerical accountant; information, takes up to seconds."""
        return self._information("prv")

    def _information(self, accountant: Accountant) -> float:
        return epsilon_of(
            noise_multiplier=self.noise_multiplier,
            sample_rate=self.sample_rate,
            steps=self.steps,
            delta=self.delta,
            accountant=accountant,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RanMechanism:
    """What sampler and noise say they did; the accountant's numbers are compared with these, not with the request."""

    steps: int
    noise_multiplier: float
    sample_rate: float
    clip_norm: float


def calibrate(
    *,
    epsilon: float,
    delta: float,
    sample_rate: float,
    steps: int,
    clip_norm: float,
    n_public: int,
    unit: str = "row",
    grid: OrderGrid | None = None,
) -> MechanismPlan:
    """Return the plan with the least noise whose ε, by the grid's conversion, is at most `epsilon`.

    Args:
        epsilon: the target.
        delta: the δ of the dataset's budget.
        sample_rate: q.
        steps: how many.
        clip_norm: C.
        n_public: the declared number of units.
        unit: the privacy unit.
        grid: the dataset's frozen grid; without it, the grid of a dataset with budget (epsilon, delta).

    Returns:
        A plan whose σ is a multiple of 1/10 000.

    Raises:
        UnprocessableError: a parameter outside its range, another δ than the grid's, or a target that no noise
            up to 10 000 reaches (code ``epsilon_too_small``).
    """
    target, delta = check_epsilon(epsilon), check_delta(delta)
    rate, count = check_sample_rate(sample_rate), check_steps(steps)
    if grid is not None and grid.delta != delta:
        message = "`delta` is not the one this dataset's budget was opened with"
        raise UnprocessableError(message, code="invalid_privacy_parameter", details={"parameter": "delta"})
    chosen = grid or fit_grid(epsilon=target, delta=delta)
    # A floor below the target in units: what is calibrated at 2.0 must never read 2.000001.
    noise = smallest_noise(chosen, rate, count, spent=(0,) * len(chosen.orders), limit=math.floor(target * UNITS))
    if noise is None:
        message = (
            f"`epsilon` {target:g} cannot be reached with {count} steps at sampling rate {rate:g} on this dataset; "
            "take a larger epsilon, fewer steps or a smaller rate"
        )
        raise UnprocessableError(message, code="epsilon_too_small")
    return MechanismPlan(
        noise_multiplier=noise,
        sample_rate=rate,
        steps=count,
        clip_norm=clip_norm,
        n_public=n_public,
        delta=delta,
        epsilon=target,
        unit=unit,
    )


def smallest_noise(grid: OrderGrid, sample_rate: float, steps: int, *, spent: Vector, limit: int) -> float | None:
    """Return the least σ (a multiple of 1/10 000) at which `steps` more steps on top of `spent` stay within `limit`.

    Args:
        grid: the dataset's grid.
        sample_rate: q.
        steps: how many.
        spent: the cost so far at each order.
        limit: ε in units.

    Returns:
        The noise multiplier, or None when even the largest does not fit.
    """

    def fits(index: int) -> bool:
        cost = grid.step(noise_multiplier=index / _NOISE_STEPS, sample_rate=sample_rate)
        return grid.epsilon_units([s + c * steps for s, c in zip(spent, cost, strict=True)]) <= limit

    low, high = math.ceil(MIN_NOISE * _NOISE_STEPS), math.floor(MAX_NOISE * _NOISE_STEPS)
    if fits(low):
        return low / _NOISE_STEPS
    if not fits(high):
        return None
    # Double first: quick where it is dear (small σ needs the finest sums), and most answers lie there.
    top = min(low * 2, high)
    while not fits(top):
        low, top = top, min(top * 2, high)
    while low + 1 < top:
        middle = (low + top) // 2
        low, top = (low, middle) if fits(middle) else (middle, top)
    return top / _NOISE_STEPS


def largest_that_fits(grid: OrderGrid, spent: Vector, sample_rate: float, steps: int) -> float:
    """Return the largest ε, a multiple of 1/10 000, at which a calibrated job of this shape fits on top of `spent`.

    Args:
        grid: the dataset's grid.
        spent: the cost charged and reserved so far, at each order.
        sample_rate: q.
        steps: how many.

    Returns:
        The ε, or 0.0 when no job of this shape fits.
    """
    noise = smallest_noise(grid, sample_rate, steps, spent=spent, limit=grid.limit)
    if noise is None:
        return 0.0
    cost = grid.step(noise_multiplier=noise, sample_rate=sample_rate)
    offer = min(grid.epsilon_units([unit * steps for unit in cost]), math.floor(MAX_EPSILON * UNITS))
    offer = offer * _OFFERED // UNITS
    # A smaller ε means more noise, which fits; rounding could still miss by one step, so each offer is tried.
    for tenth_milli in range(offer, max(offer - _OFFERS, 0), -1):
        epsilon = tenth_milli / _OFFERED
        if epsilon < MIN_EPSILON:
            break
        limit = math.floor(epsilon * UNITS)
        noise = smallest_noise(grid, sample_rate, steps, spent=(0,) * len(spent), limit=limit)
        if noise is None:
            break
        cost = grid.step(noise_multiplier=noise, sample_rate=sample_rate)
        if grid.fits([s + unit * steps for s, unit in zip(spent, cost, strict=True)]):
            return epsilon
    return 0.0


def assert_ran_within(plan: MechanismPlan, ran: RanMechanism, *, charged_steps: int) -> None:
    """Compare what ran with what was charged; call it before anything of the run is released.

    Args:
        plan: what was charged, step by step.
        ran: what sampler and noise report.
        charged_steps: how many steps are charged in the ledger.

    Raises:
        IntegrityError: code ``ran_more_than_charged``: more steps than charged, less noise, a higher sampling
            rate or another clipping norm than planned.
    """
    if (
        ran.steps > charged_steps
        or ran.noise_multiplier != plan.noise_multiplier
        or ran.sample_rate != plan.sample_rate
        or ran.clip_norm != plan.clip_norm
    ):
        message = "the run does not match what was charged for it; its result is held"
        raise IntegrityError(message, code="ran_more_than_charged")
