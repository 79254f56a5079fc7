"""Whatever bytes come as a CSV: rows that are as declared, or the documented refusal, which never repeats a cell."""

import csv
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep_platform.datasets import readers
from modelkeep_platform.datasets.readers.errors import BadCellError
from modelkeep_platform.datasets.spec import DatasetSpec, InvalidDatasetError, parse

EVERY = settings(max_examples=300, deadline=None)
CATEGORIES = ["no", "yes", 'it, "depends"', "two\nlines", "é"]
COLUMNS = [
    {"name": "size", "type": "float", "min": -10.0, "max": 10.0},
    {"name": "count", "type": "int", "min": -4, "max": 4},
    {"name": "label", "type": "category", "categories": CATEGORIES},
]
SPEC: DatasetSpec = parse(
    {
        "name": "t",
        "format": "csv",
        "schema": {"columns": COLUMNS, "target": "label"},
        "privacy": {"visibility": "public", "reason": "made up"},
    }
)
SECRET = "31337"
rows = st.lists(
    st.tuples(st.floats(-10, 10, allow_subnormal=False), st.integers(-4, 4), st.sampled_from(CATEGORIES)),
    min_size=1,
    max_size=8,
)


def written(given_rows: list[tuple[Any, ...]], order: list[int], line_end: str) -> bytes:
    """Return rows as Python's writer writes them, in any order of the columns."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator=line_end)
    for row in [("size", "count", "label"), *given_rows]:
        writer.writerow([row[at] for at in order])
    return out.getvalue().encode()


def in_pieces(data: bytes, size: int) -> Iterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


def read(data: bytes, size: int = 7) -> tuple[Any, Any] | None:
    """Return what is read, by the check that streams and by the worker alike, or None for the refusal of both."""
    found: list[tuple[Any, Any] | None] = []
    for reader in (_checked, readers.read):
        try:
            found.append(reader(SPEC, in_pieces(data, size)))
        except (InvalidDatasetError, BadCellError) as exc:
            assert exc.error_code in {"invalid_dataset", "bad_cell"}  # noqa: PT017 -- or nothing is raised
            assert SECRET not in f"{exc.message} {exc.details}"  # noqa: PT017
            found.append(None)
    checked, whole = found
    assert (checked is None) == (whole is None), "one takes what the other refuses"
    return whole


def _checked(spec: DatasetSpec, chunks: Iterator[bytes]) -> tuple[Any, Any]:
    data = b"".join(chunks)
    readers.check(spec, in_pieces(data, 7), len(data))
    return (), ()


@EVERY
@given(rows, st.permutations(range(3)), st.sampled_from(["\n", "\r\n"]), st.integers(1, 40))
def test_rows_are_read_as_they_were_written(
    given_rows: list[tuple[float, int, str]], order: list[int], line_end: str, size: int
) -> None:
    found = read(written(given_rows, order, line_end), size)
    assert found is not None
    features, targets = found
    assert features.tolist() == [[float(np.float32(one)), float(count)] for one, count, _ in given_rows]
    assert targets.tolist() == [CATEGORIES.index(label) for _, _, label in given_rows]


HEADER = "size,count,label\n"
PIECES = [HEADER, ",", "\n", "\r", '"', "1.5", "nan", "1e999", "-4", "yes", "no", "é", "\0", "\ufeff", " ", SECRET]
pieces = st.sampled_from(PIECES)


@EVERY
@given(st.binary(max_size=200) | st.lists(pieces, max_size=30).map(lambda found: "".join(found).encode()))
def test_any_bytes_are_refused_or_are_rows_as_declared(data: bytes) -> None:
    for start in (b"", b"size,count,label\n"):
        found = read(start + data)
        if found is not None:
            features, targets = found
            assert len(features) == len(targets) > 0
            assert np.isfinite(features).all()
            assert (np.abs(features) <= [10, 4]).all()
            assert set(targets.tolist()) <= set(range(len(CATEGORIES)))


@EVERY
@given(rows, st.integers(0, 2), st.data())
def test_one_cell_that_is_not_as_declared_refuses_all_of_it(
    given_rows: list[tuple[Any, ...]], column: int, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(given_rows) - 1))
    bad = data.draw(st.sampled_from([SECRET, "", " 1", "1_0", "nan", "inf", "٣", "0x1", "1e999", "Yes", "no ", "1,5"]))
    changed = [*given_rows]
    changed[at] = tuple(bad if place == column else cell for place, cell in enumerate(given_rows[at]))
    assert read(written(changed, [0, 1, 2], "\n")) is None
