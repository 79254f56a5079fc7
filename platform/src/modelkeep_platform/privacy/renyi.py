"""Rényi differential privacy of the Poisson-subsampled Gaussian, and its conversions to epsilon.

One step: each privacy unit joins independently with probability q, its contribution is clipped to norm C, and
the sum gets N(0, σ²C²). Adjacent datasets differ by adding or removing one unit. With P = N(0, σ²) and
M = (1 - q) N(0, σ²) + q N(1, σ²), the divergence of order α in *both* directions is at most D_α(M ‖ P)
(Mironov, Talwar, Zhang 2019, "Rényi Differential Privacy of the Sampled Gaussian Mechanism", theorem 5), and

    D_α(M ‖ P) = log(A) / (α - 1),    A = E_{z ~ P} [ (1 - q + q exp((2z - 1) / (2σ²)))^α ].

A - 1 is computed rather than A, so that small q keeps its relative precision. Values are correct to a relative
1e-9; the ledger rounds them up by more than that. Nothing here imports torch.
"""

import math
from typing import Final

import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float64]

_TAIL: Final = 13.0  # standard deviations integrated on either side: what is left out is below 1e-37
_STEPS_PER_SIGMA: Final = 10.0
_STEPS_PER_STRIP: Final = 2.0
_EXP_BELOW: Final = 300.0
_SERIES_BELOW: Final = 1e-3
_SERIES_TERMS: Final = 6


def rdp(*, noise_multiplier: float, sample_rate: float, order: float) -> float:
    """Return the Rényi divergence of order `order` of one step.

    Args:
        noise_multiplier: σ, the noise's standard deviation in units of the clipping norm; positive.
        sample_rate: q in (0, 1].
        order: α > 1; integers use the exact finite sum, others a trapezoidal sum that converges geometrically.

    Returns:
        The divergence in nats, never negative.

    =====================  =======================================
    case                   value
    =====================  =======================================
    q = 1                  α / (2σ²), the plain Gaussian mechanism
    q → 0                  about α q² (exp(1/σ²) - 1) / 2
    overflow               ``inf``, which no budget admits
    =====================  =======================================
    """
    if sample_rate == 1.0:
        return order / (2.0 * noise_multiplier**2)
    if order.is_integer():
        log_excess = _log_excess_integer(noise_multiplier, sample_rate, int(order))
    else:
        log_excess = _log_excess_fractional(noise_multiplier, sample_rate, order)
    return _log1p_exp(log_excess) / (order - 1.0)


def log_c(order: float) -> float:
    """Return log c(α) of the conversion, c(α) = (1/α)(1 - 1/α)^(α-1).

    Source: the pointwise bound r - e^ε <= c(α) e^(-(α-1)ε) r^α for every r >= 0; its maximum is at
    r = e^ε α / (α - 1). It never exceeds 0.
    """
    return (order - 1.0) * math.log1p(-1.0 / order) - math.log(order)


def improved_epsilon(*, divergence: float, order: float, delta: float) -> float:
    """Convert a total divergence at one order, fixed beforehand, to epsilon: rdp + (log c(α) - log δ)/(α - 1)."""
    return max(0.0, divergence + (log_c(order) - math.log(delta)) / (order - 1.0))


def _log_excess_integer(sigma: float, q: float, order: int) -> float:
    # A - 1 = sum over k >= 2 of C(α,k) (1-q)^(α-k) q^k (exp(k(k-1)/2σ²) - 1): the binomial terms sum to one.
    k = np.arange(2, order + 1, dtype=np.float64)
    log_binomial = (
        math.lgamma(order + 1.0)
        - np.fromiter(map(math.lgamma, k + 1.0), np.float64, len(k))
        - np.fromiter(map(math.lgamma, order - k + 1.0), np.float64, len(k))
    )
    exponent = k * (k - 1.0) / (2.0 * sigma**2)
    terms = log_binomial + (order - k) * math.log1p(-q) + k * math.log(q) + _log_expm1(exponent)
    return _logsumexp(terms)


def _log_excess_fractional(sigma: float, q: float, order: float) -> float:
    # A - 1 = E[(1 + q(e^y - 1))^α - 1 - α q (e^y - 1)] with y = (2z - 1)/2σ², because E[e^y] = 1; the integrand is
    # never negative. It is analytic in the strip |Im z| < πσ², so the trapezoidal error falls geometrically in
    # πσ²/step: both the step's bounds below keep it under 1e-16.
    step = min(sigma / _STEPS_PER_SIGMA, sigma**2 / _STEPS_PER_STRIP)
    z = np.arange(-_TAIL * sigma, order + _TAIL * sigma, step)
    y = (2.0 * z - 1.0) / (2.0 * sigma**2)
    log_weight = -0.5 * (z / sigma) ** 2 - math.log(sigma * math.sqrt(2.0 * math.pi)) + math.log(step)

    log_power = order * np.logaddexp(math.log1p(-q), math.log(q) + y)
    low = (y < _EXP_BELOW) & (log_power < _EXP_BELOW)
    with np.errstate(divide="ignore"):
        log_low = np.log(np.maximum(_binomial_excess(q * np.expm1(y[low]), order), 0.0)) + log_weight[low]
    # Where the power would overflow, the subtrahend is beyond its last digit: leaving it out rounds up.
    log_high = log_power[~low] + log_weight[~low]
    return _logsumexp(np.concatenate([log_low, log_high]))


def _binomial_excess(x: _Floats, order: float) -> _Floats:
    # (1 + x)^α - 1 - αx; near zero by its series, whose next term is below 1e-13 of the first.
    near = np.abs(x) * order < _SERIES_BELOW
    small = x[near]
    series = np.zeros_like(small)
    for k in range(_SERIES_TERMS, 1, -1):
        series = (series + 1.0) * small * ((order - k + 1.0) / k)
    excess = np.expm1(order * np.log1p(x)) - order * x
    excess[near] = series * order * small
    return excess


def _log_expm1(x: _Floats) -> _Floats:
    # log(e^x - 1) for x > 0, without overflow.
    return x + np.log(-np.expm1(-x))


def _logsumexp(terms: _Floats) -> float:
    top = float(np.max(terms))
    if not math.isfinite(top):
        return top
    return top + math.log(float(np.sum(np.exp(terms - top))))


def _log1p_exp(x: float) -> float:
    # log(1 + e^x), precise at both ends.
    return x + math.log1p(math.exp(-x)) if x > 0.0 else math.log1p(math.exp(x))
