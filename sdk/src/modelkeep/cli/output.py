"""What a terminal sees: fields, tables and JSON.

INVARIANT: no control, format or bidirectional character of a server's text reaches the terminal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from typing import Any, Final

import click

_PIPE_WIDTH: Final = 1000
_FOR_PROOFS: Final = frozenset({"salt", "entry", "leaf_hash"})
_LAST_SECOND: Final = 253_402_300_799  # of the year 9999


def safe(text: str) -> str:
    """Return `text` without control, format and bidirectional characters, cut where it is very long."""
    from modelkeep.errors import printable

    return printable(text)


def print_text(text: str) -> None:
    """Print a text of several lines, whole: what is cut from a policy cannot be judged."""
    from modelkeep.errors import printable

    # Only line feeds end lines, as for the server that reads the text.
    for line in text.split("\n"):
        click.echo(printable(line, limit=len(line)))


def print_json(value: object, *, indent: int | None = 2) -> None:
    """Print JSON, escaped to ASCII."""
    text = json.dumps(value, indent=indent, ensure_ascii=True, default=str)
    click.echo(text.replace("\x7f", "\\u007f"))  # the one control character that is ASCII and JSON leaves alone


def print_fields(fields: Mapping[str, Any]) -> None:
    """Print the fields of one thing, a line each."""
    width = max((len(name) for name in fields), default=0)
    for name, item in fields.items():
        click.echo(f"{name:<{width}}  {cell(name, item)}")


def print_table(rows: Sequence[Mapping[str, Any]], columns: Iterable[str]) -> None:
    """Print a table of `columns`; a line on standard error when there are no rows."""
    if not rows:
        click.echo("none", err=True)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    names = tuple(columns)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        # An id is copied and pasted: it is never broken into lines.
        table.add_column(name.replace("_", " "), overflow="fold", no_wrap=name.endswith("id") or name == "name")
    for row in rows:
        table.add_row(*(Text(cell(name, row.get(name))) for name in names))
    # A pipe is no terminal: lines are as long as they need be.
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    Console(highlight=False, markup=False, width=width).print(table)


def plain(value: object) -> dict[str, Any]:
    """Return a value's fields, without those that only proofs need."""
    if is_dataclass(value) and not isinstance(value, type):
        return {name: item for name, item in asdict(value).items() if name not in _FOR_PROOFS}
    return dict(value) if isinstance(value, Mapping) else {"value": value}


def cell(name: str, value: object) -> str:
    """Return a value as a terminal may show it: `_at` as a moment, numbers short, lists and objects in a line."""
    if value is None:
        return "-"
    if name.endswith("_at") or name in {"at", "time"}:
        return _moment(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        shown = {key: _inner(item) for key, item in value.items() if item is not None}
        return safe(", ".join(f"{key}={item}" for key, item in shown.items()) or "-")
    if isinstance(value, Sequence) and not isinstance(value, str):
        return safe(", ".join(_named(item) for item in value) or "-")
    return safe(str(value))


def _named(value: object) -> str:
    """Return an object's name alone: in a list of such, the rest is for `--json`."""
    return str(value["name"]) if isinstance(value, Mapping) and value.get("name") else _inner(value)


def _inner(value: object) -> str:
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{key}={_inner(item)}" for key, item in value.items() if item is not None) + ")"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(_inner(item) for item in value) + "]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _moment(value: object) -> str:
    if not isinstance(value, int) or not 0 <= value <= _LAST_SECOND:
        return safe(str(value))
    return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
