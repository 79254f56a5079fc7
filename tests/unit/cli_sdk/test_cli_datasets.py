"""Datasets from the terminal: a declaration is whole and unambiguous before a byte is sent."""

import pytest

from fakes.server import FakePlatform
from fakes.terminal import Terminal

SCHEMA = {"columns": [{"name": "x", "type": "real", "bounds": [0, 1]}], "target": "x"}
PRIVATE = ("--epsilon", "2.5", "--delta", "1e-5", "--n-public", "400")


@pytest.fixture
def schema(terminal: Terminal) -> str:
    terminal.folder.parent.mkdir(exist_ok=True)
    return terminal.file("schema.json", SCHEMA)


def test_a_private_dataset_declares_unit_size_and_budget(terminal: Terminal, schema: str) -> None:
    rows = terminal.file("rows.csv", "x\n1\n")
    up = terminal.json("datasets", "upload", "d", rows, "--schema", schema, *PRIVATE, "--description", "why")
    budget = {"epsilon": 2.5, "delta": 1e-5}
    assert up["privacy"] == {"visibility": "private", "unit": "row", "n_public": 400, "budget": budget}
    assert (up["schema"], up["description"], up["format"]) == (SCHEMA, "why", "csv")
    assert terminal.platform.datasets["d"]["data"] == b"x\n1\n"


def test_a_public_dataset_says_why(terminal: Terminal, schema: str) -> None:
    rows = terminal.file("rows.safetensors", b"arrays")
    up = terminal.json("datasets", "upload", "d", rows, "--schema", schema, "--public", "in scikit-learn")
    assert up["privacy"] == {"visibility": "public", "reason": "in scikit-learn"}
    assert up["format"] == "arrays"


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--epsilon", "1"],
        ["--epsilon", "1", "--delta", "1e-5"],
        ["--public", "why", "--epsilon", "1"],
        ["--public", "why", "--n-public", "9"],
        [*PRIVATE, "--n-public", "0"],
        [*PRIVATE, "--epsilon", "many"],
        ["--public", ""],
    ],
    ids=["nothing", "no delta", "no size", "both", "size of public", "no rows", "no number", "no reason"],
)
def test_a_declaration_that_cannot_be_is_a_wrong_option(
    terminal: Terminal, platform: FakePlatform, schema: str, options: list[str]
) -> None:
    terminal.run("datasets", "upload", "d", terminal.file("r.csv", "x"), "--schema", schema, *options, status=2)
    assert not platform.requests


@pytest.mark.parametrize("number", ["nan", "inf"])
def test_a_budget_is_a_number(terminal: Terminal, platform: FakePlatform, schema: str, number: str) -> None:
    options = ("--epsilon", number, "--delta", "1e-5", "--n-public", "1")
    rows = terminal.file("r.csv", "x")
    assert terminal.run("datasets", "upload", "d", rows, "--schema", schema, *options, status=1).stderr
    assert not platform.sent("POST", "/v1/datasets")


def test_a_name_that_says_no_format_needs_one(terminal: Terminal, schema: str) -> None:
    rows = terminal.file("rows.txt", "x\n1\n")
    refused = terminal.run("datasets", "upload", "d", rows, "--schema", schema, *PRIVATE, status=2)
    assert "give --format" in refused.stderr
    up = terminal.json("datasets", "upload", "d", rows, "--schema", schema, *PRIVATE, "--format", "csv")
    assert up["format"] == "csv"


def test_a_schema_is_an_object(terminal: Terminal) -> None:
    rows, schema = terminal.file("r.csv", "x"), terminal.file("s.json", [SCHEMA])
    refused = terminal.run("datasets", "upload", "d", rows, "--schema", schema, *PRIVATE, status=1)
    assert "does not hold a JSON object" in refused.stderr
