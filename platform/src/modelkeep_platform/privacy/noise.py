"""Gaussian noise from our own cryptographic generator, in float64 from 53-bit uniforms.

Box-Muller: two uniforms on (0, 1) give two independent standard normals. The largest value is
√(2 · 54 · ln 2) = 8.65 (24-bit uniforms stop at 5.85, which a tail test shows).

Not protected against: attacks on floating point itself (Mironov 2012): the noisy sum is a float, not a point of
a discrete grid.
"""

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from modelkeep_platform.core.ports import Entropy
from modelkeep_platform.privacy.checks import check_clip_norm, check_noise_multiplier
from modelkeep_platform.privacy.keystream import Keystream

Normals = npt.NDArray[np.float64]

_SHIFT: Final = np.uint64(11)  # keeps the upper 53 of 64 bits
_SCALE: Final = 2.0**-53
_BLOCK: Final = 2**16  # pairs at a time: three float64 arrays of this size stay in the cache


class GaussianNoise:
    """Draws the noise of each step, and counts the steps it was drawn for.

    Args:
        entropy: the operating system's in production; its key is drawn once.
        noise_multiplier: σ.
        clip_norm: C; the noise has standard deviation σ · C.
    """

    def __init__(self, *, entropy: Entropy, noise_multiplier: float, clip_norm: float) -> None:
        self._stream = Keystream(entropy=entropy)
        self._sigma = check_noise_multiplier(noise_multiplier)
        self._norm = check_clip_norm(clip_norm)
        self._ran = 0

    @property
    def noise_multiplier(self) -> float:
        """The σ that noise is drawn with."""
        return self._sigma

    @property
    def clip_norm(self) -> float:
        """The C that noise is scaled by."""
        return self._norm

    @property
    def ran_steps(self) -> int:
        """How many steps noise was drawn for."""
        return self._ran

    def step(self, count: int) -> Normals:
        """Return the noise of one whole step: `count` independent N(0, σ²C²) values, float64.

        Args:
            count: the number of parameters of the model; every one of them, every step, once.
        """
        self._ran += 1
        normals = self._standard(count)
        normals *= self._sigma * self._norm
        return normals

    def _standard(self, count: int) -> Normals:
        pairs = (count + 1) // 2
        out = np.empty(2 * pairs, dtype=np.float64)
        for begin in range(0, pairs, _BLOCK):
            end = min(begin + _BLOCK, pairs)
            self._fill(out[2 * begin : 2 * end])
        return out[:count]

    def _fill(self, out: Normals) -> None:
        half = len(out) // 2
        words = self._stream.words(2 * half)
        uniforms = (words >> _SHIFT).astype(np.float64)
        uniforms += 0.5
        uniforms *= _SCALE
        radius, angle = uniforms[:half], uniforms[half:]
        np.log(radius, out=radius)
        radius *= -2.0
        np.sqrt(radius, out=radius)
        angle *= 2.0 * math.pi
        np.cos(angle, out=out[:half])
        np.sin(angle, out=out[half:])
        out[:half] *= radius
        out[half:] *= radius
