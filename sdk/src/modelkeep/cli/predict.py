"""Predictions."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from typing import Any, Final

import click

from modelkeep.cli.files import read_text
from modelkeep.cli.output import print_json
from modelkeep.cli.shared import Command, Context, pass_context, version_of, with_client

_WHOLE: Final = re.compile(r"[+-]?[0-9]{1,18}\Z")
_NUMBER: Final = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?\Z")
_MAX_DIGITS: Final = 400


@click.command(cls=Command)
@click.argument("model")
@click.argument("file", type=click.Path(), default="-")
@click.option("--version", "version", help="A number or an alias; by default `production`, else the newest.")
@click.option("--csv", "as_csv", is_flag=True, help="FILE is CSV without a header; a name that ends in .csv says so.")
@pass_context
def predict(context: Context, model: str, file: str, version: str | None, *, as_csv: bool) -> None:
    """Predict with MODEL (`name` or `owner~name`) on the rows in FILE, `-` for standard input.

    JSON is an array for a model with one input, an object of arrays for several. The answer is JSON.
    """
    text = read_text(file)
    inputs = _csv(text) if as_csv or file.endswith(".csv") else _json(text)
    wanted = version_of(version)
    answer = with_client(context, lambda client: client.predict(model, inputs, version=wanted))
    print_json(_without_nan(answer), indent=None)


def _without_nan(value: object) -> object:
    """Return `value` with None for what is no number: JSON has no other word for it."""
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _json(text: str) -> Any:  # noqa: ANN401 -- JSON
    from modelkeep.errors import ConfigurationError

    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise ConfigurationError(f"the rows are not JSON: {exc}") from exc
    if not isinstance(value, list | dict | int | float):
        raise ConfigurationError("the rows are an array of numbers, or an object of arrays")
    return value


def _csv(text: str) -> list[list[float]]:
    from modelkeep.errors import ConfigurationError

    try:
        rows = [row for row in csv.reader(io.StringIO(text), strict=True) if row]
    except csv.Error as exc:
        raise ConfigurationError(f"the rows are not CSV: {exc}") from exc
    return [
        [_number(cell, row, column) for column, cell in enumerate(cells, start=1)]
        for row, cells in enumerate(rows, start=1)
    ]


def _number(cell: str, row: int, column: int) -> float:
    from modelkeep.errors import ConfigurationError

    text = cell.strip()
    if _WHOLE.match(text):
        return int(text)  # a token id or a class stays whole
    if len(text) <= _MAX_DIGITS and _NUMBER.match(text):
        return float(text)
    raise ConfigurationError(f"row {row}, column {column} is not a number; CSV of rows has no header and no gaps")
