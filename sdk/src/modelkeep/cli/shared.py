"""What commands share: the client, output as table or JSON, and errors as one line with the next step.

Whatever a server says is stripped of control characters before a terminal sees it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from modelkeep.auth import Auth
    from modelkeep.client import Client

DEFAULT_PROFILE: Final = "default"
_RECORD: Final = "profile"
_MAX_FILE_BYTES: Final = 64 * 1024 * 1024
_PIPE_WIDTH: Final = 1000
_SECRETS: Final = frozenset({"salt", "entry", "leaf_hash"})


class Group(click.Group):
    """A group whose commands show the SDK's errors as one line, and end with status 1."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 -- click's own signature
        """Run the command."""
        from modelkeep.errors import ModelkeepError

        try:
            return super().invoke(ctx)
        except ModelkeepError as exc:
            click.echo(explained(exc), err=True)
            ctx.exit(1)


@dataclass(slots=True)
class Context:
    """What the options of the command itself say."""

    server: str | None
    profile: str
    state_dir: Path | None
    ca_file: str | None
    as_json: bool
    unsafe_allow_http: bool

    def client(self, auth: Auth | None = None) -> Client:
        """Return a client of the server, logged in as the environment or the profile says.

        Raises:
            ConfigurationError: no server is known.
        """
        from modelkeep.client import Client
        from modelkeep.errors import ConfigurationError

        server = self.server or self.remembered().get("server")
        if not server:
            raise ConfigurationError("no server is known; run `modelkeep --server https://... login`")
        return Client(
            server,
            auth=auth or self._auth(),
            state_dir=self.state_dir,
            ca_file=self.ca_file,
            unsafe_allow_http=self.unsafe_allow_http,
        )

    def remembered(self) -> dict[str, Any]:
        """Return what the last login of this profile left: server and tenant."""
        return self._state().read(_RECORD, self.profile) or {}

    def remember(self, *, server: str, organization: str | None) -> None:
        """Keep server and tenant for the commands to come."""
        self._state().write(_RECORD, self.profile, value={"server": server, "organization": organization})

    def forget(self) -> None:
        """Forget server and tenant."""
        self._state().remove(_RECORD, self.profile)

    def _state(self) -> Any:  # noqa: ANN401 -- the SDK's own state
        from modelkeep._core.state import State, default_folder

        return State(self.state_dir or default_folder())

    def _auth(self) -> Auth:
        from modelkeep.auth import ClientCredentials, DeviceCode, StaticToken

        token = os.environ.get("MODELKEEP_TOKEN")
        if token:
            return StaticToken(token)
        client_id, secret = os.environ.get("MODELKEEP_CLIENT_ID"), os.environ.get("MODELKEEP_CLIENT_SECRET")
        if client_id and secret:
            return ClientCredentials(client_id, secret)
        organization = self.remembered().get("organization")
        return DeviceCode(prompt=DeviceCode.no_prompt, organization=organization, profile=self.profile)

    # output -----------------------------------------------------------------------------------------

    def show(self, value: object) -> None:
        """Print one thing: its fields, a line each, or JSON."""
        if self.as_json:
            _print_json(plain(value))
            return
        fields = plain(value)
        width = max((len(name) for name in fields), default=0)
        for name, item in fields.items():
            click.echo(f"{name:<{width}}  {cell(name, item)}")

    def table(self, items: Iterable[object], *columns: str) -> None:
        """Print a list: a table of `columns`, or JSON with every field."""
        rows = [plain(item) for item in items]
        if self.as_json:
            _print_json(rows)
            return
        if not rows:
            click.echo("none", err=True)
            return
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in columns:
            # An id is copied and pasted: it is never broken into lines.
            table.add_column(name.replace("_", " "), overflow="fold", no_wrap=name.endswith("id") or name == "name")
        for row in rows:
            table.add_row(*(Text(cell(name, row.get(name))) for name in columns))
        # A pipe is no terminal: lines are as long as they need be.
        width = None if sys.stdout.isatty() else _PIPE_WIDTH
        Console(highlight=False, markup=False, width=width).print(table)

    def show_line(self, text: str) -> None:
        """Print a line of a server's text."""
        click.echo(safe(text))

    def done(self, text: str) -> None:
        """Say that something was done; on standard error, so that JSON stays alone."""
        click.echo(safe(text), err=True)

    def confirm(self, question: str, *, yes: bool) -> None:
        """Ask before something that has no way back.

        Raises:
            click.Abort: the answer was no.
        """
        if not yes:
            click.confirm(safe(question), abort=True, err=True)


pass_context = click.make_pass_decorator(Context)
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")
limit_option = click.option(
    "--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most so many."
)


def plain(value: object) -> dict[str, Any]:
    """Return a value's fields, without those that only proofs need and those that never appear in `repr`."""
    if is_dataclass(value) and not isinstance(value, type):
        return {name: item for name, item in asdict(value).items() if name not in _SECRETS}
    return dict(value) if isinstance(value, Mapping) else {"value": value}


def cell(name: str, value: object) -> str:
    """Return a value as a terminal may show it."""
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
        return safe(", ".join(_inner(item) for item in value) or "-")
    return safe(str(value))


def _inner(value: object) -> str:
    if isinstance(value, Mapping):
        return str(value.get("name", dict(value)))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _moment(value: object) -> str:
    if not isinstance(value, int) or not 0 <= value < 1 << 40:
        return safe(str(value))
    return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def safe(text: str) -> str:
    """Return `text` without control, format and bidirectional characters."""
    from modelkeep.errors import printable

    return printable(text)


def explained(error: Exception) -> str:
    """Return an error as one line: code, message, request id, and what the server said to do."""
    from modelkeep.errors import APIError, AuthenticationError, BudgetExceededError, InvalidRequestError

    code = getattr(error, "code", "error")
    message = error.message if isinstance(error, APIError) else str(error)
    lines = [safe(f"error ({code}): {message}")]
    if isinstance(error, InvalidRequestError):
        places = error.details.get("errors")
        lines += [
            safe(f"  line {place.get('line')}, column {place.get('column')}: {place.get('message')}")
            for place in (places if isinstance(places, list) else [])
            if isinstance(place, Mapping)
        ]
    if isinstance(error, BudgetExceededError) and error.largest_epsilon is not None:
        lines.append(f"  the largest ε of a job of this shape that still fits is {error.largest_epsilon:g}")
    if isinstance(error, AuthenticationError):
        lines.append("  log in with `modelkeep login`")
    if isinstance(error, APIError) and error.request_id:
        lines.append(safe(f"  request {error.request_id}; the audit log and the operator know it by this id"))
    return "\n".join(lines)


def _print_json(value: object) -> None:
    # Escaped to ASCII: no control character of a server's reaches the terminal.
    click.echo(json.dumps(value, indent=2, ensure_ascii=True, default=str))


def read_json(path: str) -> Any:  # noqa: ANN401 -- JSON
    """Read a JSON file; ``-`` is standard input.

    Raises:
        ConfigurationError: it cannot be read, or is not JSON.
    """
    from modelkeep.errors import ConfigurationError

    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as exc:
        raise ConfigurationError(f"`{path}` is not JSON: {exc}") from exc


def read_text(path: str) -> str:
    """Read a text file; ``-`` is standard input.

    Raises:
        ConfigurationError: it cannot be read, is not UTF-8, or is larger than 64 MiB.
    """
    from modelkeep.errors import ConfigurationError

    try:
        if path == "-":
            data = sys.stdin.buffer.read(_MAX_FILE_BYTES + 1)
        else:
            with Path(path).open("rb") as file:
                data = file.read(_MAX_FILE_BYTES + 1)
        if len(data) > _MAX_FILE_BYTES:
            raise ConfigurationError(f"`{path}` is larger than {_MAX_FILE_BYTES} bytes")
        return data.decode("utf-8")
    except OSError as exc:
        raise ConfigurationError(f"`{path}` cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigurationError(f"`{path}` is not UTF-8 text") from exc


def with_client(context: Context, run: Callable[[Client], Any]) -> Any:  # noqa: ANN401 -- what `run` returns
    """Run `run` with a client and close it."""
    with context.client() as client:
        return run(client)
