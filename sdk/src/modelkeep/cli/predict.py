"""Predictions."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import click

from modelkeep.cli.shared import Context, pass_context, read_text, with_client


@click.command()
@click.argument("model")
@click.argument("file", type=click.Path(), default="-")
@click.option("--version", "version", help="A number or an alias; by default `production`, else the newest.")
@click.option("--csv", "as_csv", is_flag=True, help="FILE is CSV without a header; by default it is JSON.")
@pass_context
def predict(context: Context, model: str, file: str, version: str | None, *, as_csv: bool) -> None:
    """Predict with MODEL (`name` or `owner~name`) on the rows in FILE, `-` for standard input.

    JSON is an array for a model with one input, an object of arrays for several. The answer is JSON.
    """
    inputs = _rows(read_text(file), as_csv=as_csv)
    wanted = int(version) if version is not None and version.isdecimal() else version
    answer = with_client(context, lambda client: client.predict(model, inputs, version=wanted))
    click.echo(json.dumps(answer))


def _rows(text: str, *, as_csv: bool) -> Any:  # noqa: ANN401 -- JSON
    from modelkeep.errors import ConfigurationError

    try:
        if as_csv:
            return [[float(cell) for cell in row] for row in csv.reader(io.StringIO(text)) if row]
        return json.loads(text)
    except (ValueError, RecursionError, csv.Error) as exc:
        what = "CSV of numbers" if as_csv else "JSON"
        raise ConfigurationError(f"the rows are not {what}: {exc}") from exc
