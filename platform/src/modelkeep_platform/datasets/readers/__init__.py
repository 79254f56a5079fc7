"""Readers, one a format: they check every cell against the declaration and give arrays. No pickle, no torch."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from modelkeep_platform.datasets.readers import arrays, csv
from modelkeep_platform.datasets.spec import DatasetSpec

Records = tuple[NDArray[np.float32], NDArray[np.int64] | NDArray[np.float32] | None]


def check(spec: DatasetSpec, chunks: Iterable[bytes], size_bytes: int) -> None:
    """Check every cell of a payload as it streams past; a small part of it is held at any time.

    Args:
        spec: the declaration.
        chunks: the payload.
        size_bytes: its length.

    Raises:
        BadCellError: a cell is not as declared.
        InvalidDatasetError: the payload is not of its format.
    """
    if spec.format == "csv":
        csv.check(spec, chunks)
    else:
        arrays.check(spec, chunks, size_bytes)


def read(spec: DatasetSpec, chunks: Iterable[bytes]) -> Records:
    """Return features and targets of the whole dataset.

    Args:
        spec: the declaration.
        chunks: the payload.

    Returns:
        Features [N, ...] in their own units, float32, categories as their number; targets [N], int64 for classes and
        float32 for numbers, or None.

    Raises:
        BadCellError: a cell is not as declared.
        InvalidDatasetError: the payload is not of its format.
    """
    return csv.read(spec, chunks) if spec.format == "csv" else arrays.read(spec, chunks)
