"""Tensors on their way between protocol and worker: raw little-endian bytes with dtype and shape; no torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from modelkeep_platform.core.errors import UnprocessableError
from modelkeep_platform.models.graph.format import Graph
from modelkeep_platform.models.graph.format import Tensor as Spec
from modelkeep_platform.workers.errors import FrameError
from modelkeep_platform.workers.frames import Frame

WIDTHS: Final = {"float32": 4, "float64": 8, "int64": 8, "int32": 4, "bool": 1, "uint8": 1}
_MAX_RANK: Final = 16


class InputError(UnprocessableError):
    """The inputs are not those the model takes."""

    code = "invalid_input"


class OutputError(UnprocessableError):
    """The model gave other outputs than its graph declares."""

    code = "output_mismatch"


class _Answer(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    outputs: list[tuple[str, tuple[int, ...], int]]  # dtype, shape, bytes


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


def cut_outputs(graph: Graph, answer: Frame, rows: Sequence[int] | None) -> list[dict[str, Tensor]]:
    """Cut a worker's answer into the outputs of each request of the batch.

    Args:
        graph: whose outputs they are.
        answer: its one buffer holds all outputs, one after another.
        rows: how many rows each request sent; None when there was one request and it takes everything.

    Raises:
        FrameError: sizes, number or types contradict one another: the worker is not to be trusted.
        OutputError: they are tensors, but not those that the graph declares, or not one row for each row.
    """
    described = answer.read(_Answer).outputs
    if len(described) != len(graph.outputs) or len(answer.buffers) != 1:
        raise FrameError("a worker answered with another number of outputs")
    view, offset = memoryview(answer.buffers[0]), 0
    results: list[dict[str, Tensor]] = [{} for _ in rows or [0]]
    for spec, (dtype, shape, size) in zip(graph.outputs, described, strict=True):
        _check_size(dtype, shape, size)
        data = view[offset : offset + size]
        offset += size
        if len(data) != size:
            raise FrameError("a worker answered with fewer bytes than it says")
        _check_output(spec, dtype, shape, rows)
        begin, row_bytes = 0, 0 if rows is None else size // sum(rows)
        for result, count in zip(results, rows or [0], strict=True):
            if rows is None:
                result[spec.name] = Tensor(dtype, shape, data)
                continue
            end = begin + count * row_bytes
            result[spec.name] = Tensor(dtype, (count, *shape[1:]), data[begin:end])
            begin = end
    if offset != len(view):
        raise FrameError("a worker answered with more bytes than it says")
    return results


def _check_size(dtype: str, shape: tuple[int, ...], size: int) -> None:
    if len(shape) > _MAX_RANK or any(count < 0 for count in shape) or size < 0:
        raise FrameError("a worker answered with a shape that is none")
    if dtype in WIDTHS and math.prod(shape) * WIDTHS[dtype] != size:
        raise FrameError("a worker answered with a size that does not fit its shape")


def _check_output(spec: Spec, dtype: str, shape: tuple[int, ...], rows: Sequence[int] | None) -> None:
    fits = len(shape) == len(spec.shape) and all(want in (-1, got) for want, got in zip(spec.shape, shape, strict=True))
    if dtype != spec.dtype or not fits or (rows is not None and shape[0] != sum(rows)):
        raise OutputError(
            f"the model gave another output `{spec.name}` than its graph declares, {spec.dtype} {list(spec.shape)}; "
            "correct the graph"
        )
