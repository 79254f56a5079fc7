"""CSV (RFC 4180, UTF-8, with a header that names exactly the declared columns, in any order)."""

import codecs
import csv
import re
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from modelkeep_platform.datasets.readers.errors import BadCellError
from modelkeep_platform.datasets.spec import Column, DatasetSpec, InvalidDatasetError

_MAX_FIELD: Final = 4096
_MAX_LINE: Final = 16 * 1024 * 1024
# Plain decimals: float() would also take `1_000`, ` 1`, `nan` and digits of other scripts.
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?").fullmatch


def check(spec: DatasetSpec, chunks: Iterable[bytes]) -> None:
    """Check every cell, holding one row at a time; see `readers.check`."""
    if not sum(1 for _ in _rows(spec, chunks)):
        raise InvalidDatasetError("the dataset has no rows")


def read(
    spec: DatasetSpec, chunks: Iterable[bytes]
) -> tuple[NDArray[np.float32], NDArray[np.int64] | NDArray[np.float32] | None]:
    """Return features and targets; see `readers.read`."""
    cells = array("d")
    for row in _rows(spec, chunks):
        cells.extend(row)
    if not cells:
        raise InvalidDatasetError("the dataset has no rows")
    columns = spec.schema.columns or []
    table = np.frombuffer(cells, dtype=np.float64).reshape(-1, len(columns))
    order = {column.name: at for at, column in enumerate(columns)}
    features = table[:, [order[column.name] for column in spec.features()]].astype(np.float32)
    target = spec.target()
    if target is None:
        return features, None
    values = table[:, order[target.name]]
    return features, values.astype(np.int64) if target.type == "category" else values.astype(np.float32)


def _rows(spec: DatasetSpec, chunks: Iterable[bytes]) -> Iterator[list[float]]:
    """Yield the numbers of each row, in the order of the schema."""
    columns = spec.schema.columns or []
    csv.field_size_limit(_MAX_FIELD)
    reader = csv.reader(_lines(chunks), strict=True)
    try:
        header = next(reader, [])
        if sorted(header) != sorted(column.name for column in columns):
            raise InvalidDatasetError("the header of the CSV names other columns than the schema")
        parsers = [(_parser(column), header.index(column.name)) for column in columns]
        for number, cells in enumerate(reader, start=1):
            if len(cells) != len(header):
                raise BadCellError(
                    number, header[min(len(cells), len(header) - 1)], "the row has another number of cells"
                )
            yield [parse(cells[at], number) for parse, at in parsers]
    except csv.Error as exc:
        raise InvalidDatasetError(f"the CSV cannot be read near line {reader.line_num}") from exc
    except UnicodeDecodeError:
        # `from None`: the exception holds the bytes it stumbled over.
        raise InvalidDatasetError("the CSV is not UTF-8") from None


def _parser(column: Column) -> Callable[[str, int], float]:
    if column.type == "category":
        known = {category: float(at) for at, category in enumerate(column.categories or [])}

        def category(cell: str, row: int) -> float:
            if cell not in known:
                raise BadCellError(row, column.name, "not one of the declared categories" if cell else "missing")
            return known[cell]

        return category
    low, high, whole = column.min, column.max, column.type == "int"

    def number(cell: str, row: int) -> float:
        if _NUMBER(cell) is None:
            raise BadCellError(row, column.name, "not a number" if cell.strip() else "missing")
        value = float(cell)
        if low is None or high is None or not low <= value <= high:
            raise BadCellError(row, column.name, "outside the declared bounds")
        if whole and not value.is_integer():
            raise BadCellError(row, column.name, "not a whole number")
        return value

    return number


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    pending = ""
    for chunk in chunks:
        pending += decoder.decode(chunk)
        *lines, pending = pending.split("\n")
        if len(pending) > _MAX_LINE:
            raise InvalidDatasetError("a line of the CSV is too long")
        yield from (f"{line}\n" for line in lines)
    pending += decoder.decode(b"", final=True)
    if pending:
        yield pending
