"""Privacy random variables: ε of a composed mechanism by Fourier transform. Information, never enforcement.

The privacy-loss distribution of one step is put on a grid of losses, its mean is matched (Gopi, Lee, Wutschitz 2021,
"Numerical Composition of Differential Privacy"), it is raised to the number of steps in the Fourier domain, and
δ(ε) = Σ over losses l > ε of (1 - e^(ε - l)) P(l) is solved for ε. Both directions of adding and removing one
unit are computed, the larger ε is taken, and the discretisation error of that paper's theorem 5.5,
h √(T/2 · log(12/δ_error)) for spacing h and T steps, is added to it (at most 0.01 up to some thousand steps). The
figure says nothing about adaptively chosen jobs: budgets are never decided by it.
"""

import functools
import math
from typing import Final

import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float64]

_MIN_CELLS: Final = 2**16
_MAX_CELLS: Final = 2**20
_WANTED_ERROR: Final = 0.01
_DELTA_ERROR: Final = 1e-3  # as a part of delta
_TAIL: Final = 12.0
_QUADRATURE: Final = 20_001
_erfc = np.frompyfunc(math.erfc, 1, 1)


@functools.lru_cache(maxsize=128)
def prv_epsilon(*, noise_multiplier: float, sample_rate: float, steps: int, delta: float, bound: float) -> float:
    """Estimate ε of `steps` steps from above.

    Args:
        noise_multiplier: σ.
        sample_rate: q.
        steps: how many.
        delta: δ.
        bound: an upper bound on the answer (a Rényi figure), which sizes the grid.

    Returns:
        The estimate plus its discretisation error, at most `bound`.
    """
    half = bound * 1.5 + 4.0
    growth = math.sqrt(steps / 2.0 * math.log(12.0 / (delta * _DELTA_ERROR)))
    cells = _MIN_CELLS
    while cells < _MAX_CELLS and 2.0 * half / cells * growth > _WANTED_ERROR:
        cells *= 2
    losses = np.arange(-cells // 2, cells // 2, dtype=np.float64) * (2.0 * half / cells)
    found = max(
        _direction(losses, noise_multiplier, sample_rate, steps, delta, removing=removing) for removing in (True, False)
    )
    return min(found + 2.0 * half / cells * growth, bound)


def _direction(losses: _Floats, sigma: float, q: float, steps: int, delta: float, *, removing: bool) -> float:
    spacing = losses[1] - losses[0]
    edges = np.append(losses - spacing / 2.0, losses[-1] + spacing / 2.0)
    distribution = _loss_cdf(edges, sigma, q) if removing else 1.0 - _loss_cdf_under_base(-edges, sigma, q)
    mass = np.maximum(np.diff(distribution), 0.0)
    mass /= mass.sum()
    # Rounding a loss to its cell shifts the mean; over many steps the shift adds up, so it is taken back at the end.
    drift = (_mean_loss(sigma, q, removing=removing) - float(np.dot(mass, losses))) * steps
    spectrum = np.fft.rfft(np.fft.ifftshift(mass))
    composed = np.maximum(np.fft.fftshift(np.fft.irfft(spectrum**steps, n=len(losses))), 0.0)
    return _solve(losses + drift, composed, delta)


def _solve(losses: _Floats, mass: _Floats, delta: float) -> float:
    def delta_at(epsilon: float) -> float:
        above = losses > epsilon
        return float(np.dot(mass[above], -np.expm1(epsilon - losses[above])))

    low, high = 0.0, float(losses[-1])
    if delta_at(low) <= delta:
        return 0.0
    for _ in range(50):
        middle = (low + high) / 2.0
        low, high = (low, middle) if delta_at(middle) <= delta else (middle, high)
    return high


def _where(loss: _Floats, sigma: float, q: float) -> _Floats:
    # The observation z at which log(1 - q + q e^((2z-1)/2σ²)) equals `loss`; minus infinity where none does.
    with np.errstate(all="ignore"):
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
    result[inside] = 0.5 * np.asarray(_erfc(-x[inside] / math.sqrt(2.0)), dtype=np.float64)
    return result


def _mean_loss(sigma: float, q: float, *, removing: bool) -> float:
    z = np.linspace(-_TAIL * sigma, 1.0 + _TAIL * sigma, _QUADRATURE)
    exponent = (2.0 * z - 1.0) / (2.0 * sigma**2)
    loss = np.logaddexp(math.log1p(-q) if q < 1.0 else -np.inf, math.log(q) + exponent)
    scale = (z[1] - z[0]) / (sigma * math.sqrt(2.0 * math.pi))
    base = np.exp(-0.5 * (z / sigma) ** 2) * scale
    moved = np.exp(-0.5 * ((z - 1.0) / sigma) ** 2) * scale
    return float(np.dot(loss, (1.0 - q) * base + q * moved)) if removing else -float(np.dot(loss, base))
