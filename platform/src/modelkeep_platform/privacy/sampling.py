"""Poisson sampling: each record joins each step independently with probability q.

The realised batch size is private: it is never used as a denominator, and must not leave the worker.
"""

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from modelkeep_platform.core.ports import Entropy
from modelkeep_platform.privacy.checks import check_sample_rate
from modelkeep_platform.privacy.keystream import Keystream

Indices = npt.NDArray[np.int64]

_BITS: Final = 53
_BLOCK: Final = 2**20


class PoissonSampler:
    """Draws the records of each step.

    Args:
        entropy: the operating system's in production; its key is drawn once.
        records: how many records there are; private.
        sample_rate: q. A record joins with probability ⌊q · 2**53⌋ / 2**53, which is never above q.
    """

    def __init__(self, *, entropy: Entropy, records: int, sample_rate: float) -> None:
        if records < 0:
            message = "there cannot be fewer than no records"
            raise ValueError(message)
        self._stream = Keystream(entropy=entropy)
        self._records = records
        self._rate = check_sample_rate(sample_rate)
        self._threshold = np.uint64(math.floor(self._rate * 2.0**_BITS))
        self._ran = 0

    @property
    def sample_rate(self) -> float:
        """The q that samples are drawn with."""
        return self._rate

    @property
    def ran_steps(self) -> int:
        """How many samples were drawn."""
        return self._ran

    def sample(self) -> Indices:
        """Return the records of the next step in ascending order; there may be none.

        Returns:
            Indices in [0, records), int64.
        """
        self._ran += 1
        parts = [
            np.flatnonzero(self._joins(min(_BLOCK, self._records - begin))) + begin
            for begin in range(0, self._records, _BLOCK)
        ]
        return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, np.int64)

    def _joins(self, count: int) -> npt.NDArray[np.bool_]:
        uniforms = self._stream.words(count) >> np.uint64(64 - _BITS)
        return uniforms < self._threshold
