"""Predictions from the terminal: rows from JSON or CSV, file or standard input; what is no number is refused."""

import json

import httpx
import pytest

from fakes.server import FakePlatform, answer_json
from fakes.terminal import Terminal


@pytest.fixture(autouse=True)
def doubler(platform: FakePlatform) -> None:
    platform.add_model("double")


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("[[1, 2, 3], [4.5, 0, -1]]", []),
        ('{"x": [[1, 2, 3], [4.5, 0, -1]]}', []),
        ("1,2,3\n4.5,0,-1\n", ["--csv"]),
        ("1, 2 ,+3\r\n45e-1,.0,-1.\r\n\r\n", ["--csv"]),
    ],
    ids=["json", "named", "csv", "csv of others"],
)
def test_rows_come_from_standard_input(terminal: Terminal, text: str, options: list[str]) -> None:
    shown = terminal.run("predict", "double", *options, text=text).stdout
    assert json.loads(shown) == [[2, 4, 6], [9, 0, -2]]


def test_a_single_row_gives_a_single_row(terminal: Terminal) -> None:
    assert terminal.json("predict", "double", text="[1, 2, 3]") == [2, 4, 6]


@pytest.mark.parametrize(("name", "content"), [("rows.csv", "1,2,3\n"), ("rows.json", "[[1, 2, 3]]")])
def test_rows_come_from_a_file_and_its_name_says_how(terminal: Terminal, name: str, content: str) -> None:
    assert terminal.json("predict", "double", terminal.file(name, content)) == [[2, 4, 6]]


@pytest.mark.parametrize(
    ("version", "path"),
    [("2", "/v2/models/double/versions/2/infer"), ("production", "/v2/models/double/versions/production/infer")],
)
def test_a_version_is_a_number_or_an_alias(terminal: Terminal, platform: FakePlatform, version: str, path: str) -> None:
    terminal.run("predict", "double", "--version", version, text="[1, 2, 3]")
    assert platform.sent("POST", path)


@pytest.mark.parametrize(
    "cell", ["", "x", "nan", "inf", "1_0", "0x10", "1e9999", "٣", "--1", "1" * 500, "=1+1", "1 2", "."]
)
def test_a_cell_that_is_no_number_is_named(terminal: Terminal, platform: FakePlatform, cell: str) -> None:
    refused = terminal.run("predict", "double", "--csv", text=f"1,2,3\n4,{cell},6\n", status=1)
    assert "error (configuration): row 2, column 2 is not a number" in refused.stderr
    assert not platform.requests


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("", "the rows are not JSON"),
        ("[1,", "the rows are not JSON"),
        ("[" * 100_000, "the rows are not JSON"),
        ('"abc"', "the rows are an array"),
        ("null", "the rows are an array"),
    ],
    ids=["empty", "cut", "deep", "text", "null"],
)
def test_rows_that_are_none_are_refused_here(
    terminal: Terminal, platform: FakePlatform, text: str, refusal: str
) -> None:
    assert refusal in terminal.run("predict", "double", text=text, status=1).stderr
    assert not platform.requests


@pytest.mark.parametrize(
    "text",
    [
        '[["a", "b", "c"]]',
        "[[1, 2], [3]]",
        "[[NaN, 1, 2]]",
        "[[1, null, 2]]",
        "[[1" + "0" * 400 + ", 1, 2]]",
        '{"y": [[1, 2, 3]]}',
        '{"x": null}',
        "{}",
    ],
    ids=["text", "ragged", "nan", "null", "huge", "unknown", "nothing", "missing"],
)
def test_rows_that_the_model_cannot_take_are_not_sent(terminal: Terminal, platform: FakePlatform, text: str) -> None:
    assert "error (configuration)" in terminal.run("predict", "double", text=text, status=1).stderr
    assert not platform.sent("POST", "/v2/models/double/infer")


def test_csv_with_a_broken_quote_is_refused(terminal: Terminal) -> None:
    assert "the rows are not CSV" in terminal.run("predict", "double", "--csv", text='1,"2\n', status=1).stderr


def test_what_is_no_number_comes_as_null(terminal: Terminal) -> None:
    terminal.platform.after.append(
        lambda request, answer: (
            answer if not request.url.path.endswith("/infer") else _with_data(request.content, [None, 1.0, 2.0])
        )
    )
    assert terminal.json("predict", "double", text="[[1, 2, 3]]") == [[None, 1.0, 2.0]]


def _with_data(content: bytes, data: list[float | None]) -> httpx.Response:
    output = {"name": "output", "datatype": "FP32", "shape": [1, 3], "data": data}
    return answer_json({"model_name": "double", "id": json.loads(content)["id"], "outputs": [output]})
