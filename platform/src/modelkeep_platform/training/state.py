"""What a run needs to go on where it stopped: weights, and what its optimizer keeps of each of them.

One safetensors file: ``weights/NAME``, and for each of the optimizer's slots ``SLOT/NAME``, of the weight's shape.
Adam counts the steps of each weight in ``steps/NAME``, one number. What was never stepped has zeros, which is where
both optimizers begin.
"""

import math
from collections.abc import Mapping
from typing import Final, TypeAlias

from modelkeep_platform.models.graph.description import DTYPES
from modelkeep_platform.training.spec import Optimizer

WEIGHTS: Final = "weights"
STEPS: Final = "steps"
_SLOTS: Final[Mapping[str, tuple[str, ...]]] = {"adam": ("first", "second", STEPS), "momentum": ("momentum",)}

Tensors: TypeAlias = Mapping[str, tuple[str, tuple[int, ...]]]
"""Name to dtype and shape."""


def slots(optimizer: Optimizer) -> tuple[str, ...]:
    """Return the names of what an optimizer keeps of each weight."""
    return _SLOTS.get(optimizer.name, ())


def tensors(optimizer: Optimizer, weights: Tensors) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the tensors of a state.

    Args:
        optimizer: the job's.
        weights: the graph's parameters.
    """
    kinds = (WEIGHTS, *slots(optimizer))
    return {
        f"{kind}/{name}": ("int64", (1,)) if kind == STEPS else wanted
        for kind in kinds
        for name, wanted in weights.items()
    }


def size_bytes(optimizer: Optimizer, weights: Tensors) -> int:
    """Return how many bytes the tensors of a state have together."""
    return sum(math.prod(shape) * DTYPES[dtype] for dtype, shape in tensors(optimizer, weights).values())
