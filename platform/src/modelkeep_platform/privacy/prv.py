"""Privacy random variables: ε of a composed mechanism by Fourier transform. Information, never enforcement.

The privacy-loss distribution of one step is put on a grid of losses, its mean is matched (Gopi, Lee, Wutschitz 2021,
"Numerical Composition of Differential Privacy"), it is raised to the number of steps in the Fourier domain, and
δ(ε) = Σ over losses l > ε of (1 - e^(ε - l)) P(l) is solved for ε. Both directions of adding and removing one
unit are computed and the larger ε is returned. It is an estimate (about 1e-3) and not a bound, and it says nothing
about adaptively chosen jobs: budgets are never decided by it.
"""

import math
from typing import Final

import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float64]

_MAX_CELLS: Final = 2**18
_TAIL: Final = 12.0
_QUADRATURE: Final = 20_001
_erfc = np.frompyfunc(math.erfc, 1, 1)


def prv_epsilon(*, noise_multiplier: float, sample_rate: float, steps: int, delta: float, bound: float) -> float:
    """Estimate ε of `steps` steps.

    Args:
        noise_multiplier: σ.
        sample_rate: q.
        steps: how many.
        delta: δ.
        bound: an upper bound on the answer (a Rényi figure), which sizes the grid.

    Returns:
        The estimate, at most `bound`.
    """
    half = bound * 1.5 + 4.0
    spacing = 2.0 * half / _MAX_CELLS
    found = max(
        _direction(noise_multiplier, sample_rate, steps, delta, half, spacing, removing=removing)
        for removing in (True, False)
    )
    return min(found, bound)


def _direction(  # noqa: PLR0913 -- one numerical routine
    sigma: float, q: float, steps: int, delta: float, half: float, spacing: float, *, removing: bool
) -> float:
    cells = np.arange(-_MAX_CELLS // 2, _MAX_CELLS // 2, dtype=np.float64) * spacing
    edges = np.append(cells - spacing / 2.0, cells[-1] + spacing / 2.0)
    distribution = _loss_cdf(edges, sigma, q) if removing else 1.0 - _loss_cdf_under_base(-edges, sigma, q)
    mass = np.maximum(np.diff(distribution), 0.0)
    mass /= mass.sum()
    # Rounding a loss to its cell shifts the mean; over many steps the shift adds up, so it is taken back at the end.
    drift = (_mean_loss(sigma, q, removing=removing) - float(np.dot(mass, cells))) * steps
    spectrum = np.fft.rfft(np.fft.ifftshift(mass))
    composed = np.maximum(np.fft.fftshift(np.fft.irfft(spectrum**steps, n=_MAX_CELLS)), 0.0)
    return _solve(cells + drift, composed, delta, half)


def _solve(losses: _Floats, mass: _Floats, delta: float, half: float) -> float:
    def delta_at(epsilon: float) -> float:
        above = losses > epsilon
        return float(np.dot(mass[above], -np.expm1(epsilon - losses[above])))

    low, high = 0.0, half
    if delta_at(low) <= delta:
        return 0.0
    for _ in range(50):
        middle = (low + high) / 2.0
        low, high = (low, middle) if delta_at(middle) <= delta else (middle, high)
    return high


def _where(loss: _Floats, sigma: float, q: float) -> _Floats:
    # The observation z at which log(1 - q + q e^((2z-1)/2σ²)) equals `loss`; minus infinity where none does.
    with np.errstate(invalid="ignore", divide="ignore"):
        log_odds = loss + np.log1p(-(1.0 - q) * np.exp(-loss)) - math.log(q)
    return np.where(np.isnan(log_odds), -np.inf, sigma**2 * log_odds + 0.5)


def _loss_cdf(edges: _Floats, sigma: float, q: float) -> _Floats:
    # P(loss <= edge) under the mixture: the unit is in the data.
    z = _where(edges, sigma, q)
    return (1.0 - q) * _normal_cdf(z / sigma) + q * _normal_cdf((z - 1.0) / sigma)


def _loss_cdf_under_base(edges: _Floats, sigma: float, q: float) -> _Floats:
    return _normal_cdf(_where(edges, sigma, q) / sigma)


def _normal_cdf(x: _Floats) -> _Floats:
    result = np.where(x > 0.0, 1.0, 0.0)
    inside = np.abs(x) < _TAIL
    result[inside] = 0.5 * _erfc(-x[inside] / math.sqrt(2.0)).astype(np.float64)
    return result


def _mean_loss(sigma: float, q: float, *, removing: bool) -> float:
    z = np.linspace(-_TAIL * sigma, 1.0 + _TAIL * sigma, _QUADRATURE)
    exponent = (2.0 * z - 1.0) / (2.0 * sigma**2)
    loss = np.logaddexp(math.log1p(-q) if q < 1.0 else -np.inf, math.log(q) + exponent)
    scale = (z[1] - z[0]) / (sigma * math.sqrt(2.0 * math.pi))
    base = np.exp(-0.5 * (z / sigma) ** 2) * scale
    moved = np.exp(-0.5 * ((z - 1.0) / sigma) ** 2) * scale
    return float(np.dot(loss, (1.0 - q) * base + q * moved)) if removing else -float(np.dot(loss, base))
