"""Every cell is looked at: what is not as declared is refused with its place and never with its value."""

import json
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from modelkeep_platform.core.errors import UnprocessableError
from modelkeep_platform.datasets import readers
from modelkeep_platform.datasets.readers.errors import BadCellError
from modelkeep_platform.datasets.spec import DatasetSpec, InvalidDatasetError, parse

PUBLIC = {"visibility": "public", "reason": "made up"}
COLUMNS = [
    {"name": "size", "type": "float", "min": 0.0, "max": 10.0},
    {"name": "count", "type": "int", "min": -4, "max": 4},
    {"name": "label", "type": "category", "categories": ["no", "yes"]},
]
CSV = b"size,count,label\n1.5,2,yes\n10,-4,no\n0,0,no\n"


def table(*, form: str = "csv", target: str | None = "label") -> DatasetSpec:
    schema = {"columns": COLUMNS, "target": target}
    return parse({"name": "t", "format": form, "schema": schema, "privacy": PUBLIC})


def images() -> DatasetSpec:
    schema = {"images": {"shape": [1, 2, 2], "min": 0, "max": 16}, "classes": ["a", "b", "c"]}
    return parse({"name": "i", "format": "arrays", "schema": schema, "privacy": PUBLIC})


def in_pieces(data: bytes, size: int = 7) -> Iterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


def safetensors(**arrays: np.ndarray[Any, Any]) -> bytes:
    names = {"float32": "F32", "float64": "F64", "int64": "I64", "int32": "I32", "uint8": "U8"}
    header: dict[str, Any] = {}
    data = b""
    for name, array in arrays.items():
        begin = len(data)
        data += array.tobytes()
        header[name] = {
            "dtype": names[str(array.dtype)],
            "shape": list(array.shape),
            "data_offsets": [begin, len(data)],
        }
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def both(spec: DatasetSpec, data: bytes) -> UnprocessableError:
    """Return the one refusal that the streaming check and the worker's reading agree on."""
    with pytest.raises(UnprocessableError) as streamed:
        readers.check(spec, in_pieces(data), len(data))
    with pytest.raises(UnprocessableError) as whole:
        readers.read(spec, in_pieces(data))
    assert streamed.value.error_code == whole.value.error_code
    assert streamed.value.details == whole.value.details
    return streamed.value


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_csv_is_read_whatever_the_pieces(size: int) -> None:
    readers.check(table(), in_pieces(CSV, size), len(CSV))
    features, targets = readers.read(table(), in_pieces(CSV, size))
    assert features.tolist() == [[1.5, 2.0], [10.0, -4.0], [0.0, 0.0]]
    assert targets is not None
    assert targets.tolist() == [1, 0, 0]
    assert targets.dtype.name == "int64"


def test_columns_may_stand_in_any_order_and_lines_end_either_way() -> None:
    data = b'label,size,count\r\n"yes",1.5,2\r\nno,3,-1'
    features, targets = readers.read(table(), [data])
    assert features.tolist() == [[1.5, 2.0], [3.0, -1.0]]
    assert targets is not None
    assert targets.tolist() == [1, 0]


def test_a_target_of_numbers_and_none_at_all() -> None:
    _, targets = readers.read(table(target="size"), [CSV])
    assert targets is not None
    assert targets.tolist() == [1.5, 10.0, 0.0]
    assert targets.dtype.name == "float32"
    features, targets = readers.read(table(target=None), [CSV])
    assert features.shape == (3, 3)
    assert targets is None


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        pytest.param("10.1", "outside the declared bounds", id="above"),
        pytest.param("-0.1", "outside the declared bounds", id="below"),
        pytest.param("1e999", "outside the declared bounds", id="overflow"),
        pytest.param("nan", "not a number", id="nan"),
        pytest.param("inf", "not a number", id="inf"),
        pytest.param("1_0", "not a number", id="digit separator"),
        pytest.param(" 1", "not a number", id="space"),
        pytest.param("0x1", "not a number", id="hexadecimal"),
        pytest.param("\u0663", "not a number", id="digit of another script"),
        pytest.param("", "missing", id="empty"),
    ],
)
def test_a_bad_number_names_row_and_column_and_not_the_value(cell: str, reason: str) -> None:
    error = both(table(), f"size,count,label\n1,1,no\n{cell},1,no\n".encode())
    assert error.error_code == "bad_cell"
    assert error.details == {"row": 2, "column": "size", "reason": reason}
    if cell:
        assert cell not in error.message


@pytest.mark.parametrize(
    ("row", "column", "reason"),
    [
        pytest.param("1,1.5,no", "count", "not a whole number", id="int"),
        pytest.param("1,5,no", "count", "outside the declared bounds", id="int bounds"),
        pytest.param("1,1,maybe", "label", "not one of the declared categories", id="category"),
        pytest.param("1,1,", "label", "missing", id="category missing"),
        pytest.param("1,1", "label", "the row has another number of cells", id="short row"),
        pytest.param("1,1,no,4", "label", "the row has another number of cells", id="long row"),
    ],
)
def test_other_bad_cells(row: str, column: str, reason: str) -> None:
    error = both(table(), f"size,count,label\n{row}\n".encode())
    assert (error.error_code, error.details) == ("bad_cell", {"row": 1, "column": column, "reason": reason})


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"size,count,label\n", id="no rows"),
        pytest.param(b"size,count\n1,1\n", id="column missing"),
        pytest.param(b"size,count,label,more\n1,1,no,1\n", id="column too many"),
        pytest.param(b"size,size,label\n1,1,no\n", id="column twice"),
        pytest.param(b'size,count,label\n1,1,"no\n', id="quote not closed"),
        pytest.param(b"size,count,label\n1,1,\xff\xfe\n", id="not utf-8"),
        pytest.param(b"size,count,label\n1,1,n\x00o\n", id="nul"),
        pytest.param(b"size,count,label\n1,1," + b"n" * 5000 + b"\n", id="endless cell"),
        pytest.param(pickle.dumps({"size": 1}), id="pickle"),
    ],
)
def test_what_is_not_such_a_csv(data: bytes) -> None:
    assert both(table(), data).error_code in {"invalid_dataset", "bad_cell"}


def test_an_endless_line_is_refused_before_it_is_held() -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"x" * (1 << 20)

    with pytest.raises(InvalidDatasetError, match="too long"):
        readers.check(table(), endless(), 1 << 40)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_images_are_read_whatever_the_pieces(dtype: type) -> None:
    pixels: np.ndarray[Any, Any] = (np.arange(12) % 17).reshape(3, 1, 2, 2).astype(dtype)
    data = safetensors(images=pixels, target=np.array([0, 2, 1]))
    for size in (1, 9, 4096):
        readers.check(images(), in_pieces(data, size), len(data))
    features, targets = readers.read(images(), in_pieces(data))
    assert features.dtype == np.float32
    assert np.array_equal(features, pixels)
    assert targets is not None
    assert targets.tolist() == [0, 2, 1]


def test_features_as_arrays() -> None:
    data = safetensors(features=np.array([[1.5, 2], [3, -4]], np.float32), target=np.array([1, 0]))
    features, targets = readers.read(table(form="arrays"), [data])
    assert features.tolist() == [[1.5, 2.0], [3.0, -4.0]]
    assert targets is not None
    assert targets.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("value", "reason"),
    [(11.0, "outside the declared bounds"), (np.nan, "not a finite number"), (np.inf, "not a finite number")],
)
def test_a_bad_feature_in_arrays(value: float, reason: str) -> None:
    data = safetensors(features=np.array([[1, 1], [value, 1]], np.float64), target=np.array([1, 0]))
    error = both(table(form="arrays"), data)
    assert error.details == {"row": 2, "column": "size", "reason": reason}


def test_a_feature_that_is_not_whole_and_a_class_that_is_not() -> None:
    error = both(table(form="arrays"), safetensors(features=np.array([[1, 1.5]], np.float32), target=np.array([1])))
    assert error.details == {"row": 1, "column": "count", "reason": "not a whole number"}
    error = both(table(form="arrays"), safetensors(features=np.array([[1, 1]], np.float32), target=np.array([2])))
    assert error.details == {"row": 1, "column": "label", "reason": "outside the declared bounds"}


def test_a_bad_pixel_names_its_place() -> None:
    pixels = np.zeros((2, 1, 2, 2), np.uint8)
    pixels[1, 0, 1, 0] = 17
    error = both(images(), safetensors(images=pixels, target=np.array([0, 0])))
    assert error.details == {"row": 2, "column": "images[0, 1, 0]", "reason": "outside the declared bounds"}


def test_rows_are_counted_across_pieces_of_a_large_array() -> None:
    rows = np.zeros((700_000, 2), np.float32)
    rows[650_000, 0] = 99.0
    data = safetensors(features=rows, target=np.zeros(700_000, np.int64))
    with pytest.raises(BadCellError) as caught:
        readers.check(table(form="arrays"), in_pieces(data, 1 << 20), len(data))
    assert caught.value.details["row"] == 650_001


GOOD = safetensors(images=np.zeros((2, 1, 2, 2), np.uint8), target=np.array([0, 1]))


def header(document: object, data: bytes = b"") -> bytes:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x01\x00", id="shorter than a length"),
        pytest.param(b"\xff" * 8 + b"{}", id="header longer than the file"),
        pytest.param(GOOD[:-1], id="truncated"),
        pytest.param(GOOD + b"\x00", id="trailing byte"),
        pytest.param(header(b"[" * 10_000), id="depth bomb"),
        pytest.param(header(b'{"a":{},"a":{}}'), id="name twice"),
        pytest.param(header({"images": 1}), id="entry is no object"),
        pytest.param(header({"images": {"dtype": "BOOL", "shape": [1], "data_offsets": [0, 1]}}, b"0"), id="dtype"),
        pytest.param(header({"images": {"dtype": "U8", "shape": [-1], "data_offsets": [0, 1]}}, b"0"), id="negative"),
        pytest.param(
            header({"images": {"dtype": "U8", "shape": [1 << 62, 4], "data_offsets": [0, 1]}}, b"0"), id="overflow"
        ),
        pytest.param(
            header(
                {
                    "images": {"dtype": "U8", "shape": [2, 1, 2, 2], "data_offsets": [0, 8]},
                    "target": {"dtype": "U8", "shape": [2], "data_offsets": [6, 8]},
                },
                b"\x00" * 8,
            ),
            id="overlap",
        ),
        pytest.param(safetensors(images=np.zeros((2, 1, 2, 2), np.uint8)), id="no target"),
        pytest.param(
            safetensors(images=np.zeros((2, 1, 2, 2), np.uint8), target=np.array([0])), id="fewer targets than images"
        ),
        pytest.param(safetensors(images=np.zeros((2, 1, 2), np.uint8), target=np.array([0, 1])), id="other shape"),
        pytest.param(safetensors(images=np.zeros((0, 1, 2, 2), np.uint8), target=np.zeros(0, np.int64)), id="no rows"),
        pytest.param(pickle.dumps(np.zeros(3)), id="pickle"),
        pytest.param(b"\x93NUMPY\x01\x00" + b"\x00" * 64, id="npy"),
        pytest.param(b"PK\x03\x04" + b"\x00" * 64, id="zip"),
    ],
)
def test_what_is_not_such_an_array_file(data: bytes) -> None:
    assert both(images(), data).error_code == "invalid_dataset"
