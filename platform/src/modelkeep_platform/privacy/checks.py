"""Which privacy parameters are taken at all; everything else is refused by name before any formula sees it."""

import math
from typing import Final

from modelkeep_platform.core.errors import UnprocessableError

MIN_EPSILON: Final = 0.01
MAX_EPSILON: Final = 100.0
MIN_DELTA: Final = 1e-15
MIN_NOISE: Final = 0.1
MAX_NOISE: Final = 10_000.0
MIN_RATE: Final = 1e-9
MAX_STEPS: Final = 10_000_000
MAX_UNITS: Final = 2**48
MIN_NORM: Final = 1e-6
MAX_NORM: Final = 1e6

_CODE: Final = "invalid_privacy_parameter"


def check_epsilon(value: object) -> float:
    """Return a budget or target epsilon between 0.01 and 100.

    Raises:
        UnprocessableError: not a finite number in that range (so no negative, NaN, infinite, huge or subnormal one).
    """
    return _between("epsilon", value, MIN_EPSILON, MAX_EPSILON)


def check_delta(value: object) -> float:
    """Return a delta with 1e-15 <= delta < 1; raises UnprocessableError otherwise."""
    number = _between("delta", value, MIN_DELTA, 1.0)
    if number >= 1.0:
        message = "`delta` must be below 1; choose it well below one over the number of people"
        raise UnprocessableError(message, code=_CODE, details={"parameter": "delta"})
    return number


def check_noise_multiplier(value: object) -> float:
    """Return a noise multiplier between 0.1 and 10 000; raises UnprocessableError otherwise."""
    return _between("noise_multiplier", value, MIN_NOISE, MAX_NOISE)


def check_sample_rate(value: object) -> float:
    """Return a sampling probability between 1e-9 and 1; raises UnprocessableError otherwise."""
    return _between("sample_rate", value, MIN_RATE, 1.0)


def check_clip_norm(value: object) -> float:
    """Return a clipping norm between 1e-6 and 1e6; raises UnprocessableError otherwise."""
    return _between("clip_norm", value, MIN_NORM, MAX_NORM)


def check_steps(value: object, *, minimum: int = 1) -> int:
    """Return a number of steps between `minimum` and ten million; raises UnprocessableError otherwise."""
    return _whole("steps", value, minimum, MAX_STEPS)


def check_units(value: object) -> int:
    """Return N_public, a declared number of privacy units, at least 1; raises UnprocessableError otherwise."""
    return _whole("n_public", value, 1, MAX_UNITS)


def _between(name: str, value: object, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _refusal(name, f"a number between {low:g} and {high:g}")
    # The comparison is written so that NaN fails it, and it is made before float() could overflow.
    if not low <= value <= high or not math.isfinite(value):
        raise _refusal(name, f"a number between {low:g} and {high:g}")
    return float(value)


def _whole(name: str, value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _refusal(name, f"a whole number between {low} and {high}")
    return value


def _refusal(name: str, wanted: str) -> UnprocessableError:
    return UnprocessableError(f"`{name}` must be {wanted}", code=_CODE, details={"parameter": name})
