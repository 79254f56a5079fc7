"""Tensors on their way between protocol and worker: raw little-endian bytes with dtype and shape; no torch."""

import math
from dataclasses import dataclass
from typing import Final

from modelkeep_platform.core.errors import UnprocessableError
from modelkeep_platform.models.graph.format import Graph
from modelkeep_platform.models.graph.format import Tensor as Spec

WIDTHS: Final = {"float32": 4, "float64": 8, "int64": 8, "int32": 4, "bool": 1, "uint8": 1}


class InputError(UnprocessableError):
    """The inputs are not those the model takes."""

    code = "invalid_input"


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor; `data` is row-major, little-endian."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes | memoryview

    def __post_init__(self) -> None:
        if len(self.data) != math.prod(self.shape) * WIDTHS[self.dtype]:
            raise InputError("a tensor's data does not fit its shape")


def check_inputs(graph: Graph, inputs: dict[str, Tensor]) -> None:
    """Check names, dtypes and shapes against the graph.

    Raises:
        InputError: one is missing, unknown, or of another dtype or shape.
    """
    for spec in graph.inputs:
        given = inputs.get(spec.name)
        if given is None:
            raise InputError(f"the input `{spec.name}` is missing")
        if given.dtype != spec.dtype or not _fits(spec, given.shape):
            raise InputError(
                f"the input `{spec.name}` is {spec.dtype} {list(spec.shape)}, where -1 is any size; "
                f"{given.dtype} {list(given.shape)} was sent"
            )
    if len(inputs) != len(graph.inputs):
        raise InputError("there are inputs that the model does not have")


def _fits(spec: Spec, shape: tuple[int, ...]) -> bool:
    return len(spec.shape) == len(shape) and all(
        got > 0 and want in (-1, got) for want, got in zip(spec.shape, shape, strict=True)
    )


def batch_rows(graph: Graph, inputs: dict[str, Tensor]) -> int | None:
    """Return how many rows the inputs hold, if the model takes batches: every first dimension varies and agrees."""
    if any(not spec.shape or spec.shape[0] != -1 for spec in (*graph.inputs, *graph.outputs)):
        return None
    rows = {tensor.shape[0] for tensor in inputs.values()}
    return rows.pop() if len(rows) == 1 else None
