"""What a reader of a dataset format does, what it gives, and how it refuses."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from modelkeep_platform.core.errors import UnprocessableError
from modelkeep_platform.datasets.schema import Schema


class DatasetFileError(UnprocessableError):
    """The bytes are not a file of the declared format."""

    code = "invalid_dataset_file"


class BadCellError(UnprocessableError):
    """One cell is not what the schema declares; the place is named, the value is not.

    Args:
        row: counted from 1; the header of a CSV file is not counted.
        column: the column's name, or the place within an image.
        reason: for example ``is above the declared maximum``.
    """

    code = "bad_cell"

    def __init__(self, *, row: int, column: str, reason: str) -> None:
        super().__init__(
            f"row {row}, column `{column[:80]}`: the cell {reason}; correct it and upload the dataset again",
            details={"row": row, "column": column[:80], "reason": reason},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """A whole dataset in memory; in workers only.

    Args:
        features: ``[N, d]`` or ``[N, C, H, W]``, in the units declared.
        targets: ``[N]`` int64 class numbers, ``[N]`` float64 numbers, or None when the target is the inputs.
    """

    features: npt.NDArray[np.float64] | npt.NDArray[np.float32] | npt.NDArray[np.uint8]
    targets: npt.NDArray[np.int64] | npt.NDArray[np.float64] | None


class Reader(Protocol):
    """Reads one format."""

    def check(self, chunks: Iterable[bytes], size_bytes: int, schema: Schema) -> None:
        """Check every cell of a stream, holding no more than a chunk of it.

        Args:
            chunks: the payload, in order.
            size_bytes: the length of the whole.
            schema: what was declared.

        Raises:
            DatasetFileError: not such a file, or it lacks a column.
            BadCellError: the first cell that is not what was declared.
        """

    def load(self, data: bytearray, schema: Schema) -> Rows:
        """Return all rows of a payload that was checked before; raises the same errors as `check`."""
