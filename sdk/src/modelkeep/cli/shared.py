"""What commands share: the client, the login, output as table or JSON, and errors that end with status 1."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

import click

from modelkeep.cli.output import plain, print_fields, print_json, print_table, safe

if TYPE_CHECKING:
    from modelkeep._core.state import State
    from modelkeep.auth import Auth
    from modelkeep.client import Client

DEFAULT_PROFILE: Final = "default"
_RECORD: Final = "profile"


def _wants_json(ctx: click.Context, _option: click.Parameter, value: bool) -> None:  # noqa: FBT001 -- click's
    if value:
        ctx.find_root().ensure_object(Context).as_json = True


_JSON: Final = click.Option(
    ["--json"], is_flag=True, expose_value=False, callback=_wants_json, help="Print JSON instead of tables."
)


class Command(click.Command):
    """A command that takes `--json` after its name, too."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the command's own parameters and `--json`."""
        return [*super().get_params(ctx), _JSON]


class Group(click.Group):
    """A group whose commands show the SDK's errors and warnings as lines; an error ends them with status 1."""

    command_class = Command

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 -- click's own signature
        """Run the command."""
        from modelkeep.errors import ModelkeepError

        try:
            with _warnings_shown():
                return super().invoke(ctx)
        except ModelkeepError as exc:
            from modelkeep.cli.explaining import explained

            click.echo(explained(exc), err=True)
            ctx.exit(1)


@contextmanager
def _warnings_shown() -> Iterator[None]:
    """Print the SDK's own warnings on standard error, a line each, every time; others as they were."""
    from modelkeep.errors import UnacknowledgedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("always", UnacknowledgedWarning)
        others = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, UnacknowledgedWarning):
                click.echo(safe(f"warning: {message}"), err=True)
            else:
                others(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What the last login left for the commands to come; no secret is in it.

    Attributes:
        server: the platform's address.
        organization: the tenant's slug a person named.
        client_id: of an application; its secret is not kept.
        issuer: the issuer that was named at the login.
    """

    server: str | None = None
    organization: str | None = None
    client_id: str | None = None
    issuer: str | None = None


@dataclass(slots=True, kw_only=True)
class Context:
    """What the options of the command itself say."""

    server: str | None = None
    profile: str = DEFAULT_PROFILE
    state_dir: Path | None = None
    ca_file: str | None = None
    as_json: bool = False
    unsafe_allow_http: bool = False

    @property
    def progress(self) -> bool:
        """Return whether somebody watches: bars go to standard error, and only to a terminal."""
        return sys.stderr.isatty()

    def client(self, auth: Auth | None = None) -> Client:
        """Return a client of the server, logged in as `auth`, the environment or the profile says.

        Raises:
            ConfigurationError: no server is known, or half of a login.
        """
        from modelkeep.client import Client
        from modelkeep.errors import ConfigurationError

        kept = self.remembered()
        server = self.server or kept.server
        if not server:
            raise ConfigurationError("no server is known; run `modelkeep --server https://... login`")
        return Client(
            server,
            auth=auth or self._auth(kept),
            state_dir=self.state_dir,
            ca_file=self.ca_file,
            unsafe_allow_http=self.unsafe_allow_http,
        )

    def remembered(self) -> Profile:
        """Return what the last login of this profile left; nothing but the server when another one is asked for."""
        kept = self._kept()
        # INVARIANT: a login that was remembered for one server is not tried on another.
        return kept if self._is_of(kept) else Profile(server=self.server)

    def remember(self, profile: Profile) -> None:
        """Keep server and login for the commands to come, readable by the user only."""
        value = {name: getattr(profile, name) for name in Profile.__slots__}
        self._state().write(_RECORD, self.profile, value=value)

    def forget(self) -> None:
        """Forget server and login, unless they are those of another server than the one asked for."""
        if self._is_of(self._kept()):
            self._state().remove(_RECORD, self.profile)

    def person(self, kept: Profile) -> Auth:
        """Return the login of the profile's person, which does not ask."""
        from modelkeep.auth import DeviceCode

        return DeviceCode(
            prompt=DeviceCode.no_prompt, organization=kept.organization, issuer=kept.issuer, profile=self.profile
        )

    def _kept(self) -> Profile:
        record = self._state().read(_RECORD, self.profile) or {}
        return Profile(**{name: _text(record.get(name)) for name in Profile.__slots__})

    def _is_of(self, kept: Profile) -> bool:
        return not self.server or self.server.rstrip("/") == kept.server

    def _state(self) -> State:
        from modelkeep._core.state import State, default_folder

        return State(self.state_dir or default_folder())

    def _auth(self, kept: Profile) -> Auth:
        from modelkeep.auth import ClientCredentials, StaticToken
        from modelkeep.errors import ConfigurationError

        token = os.environ.get("MODELKEEP_TOKEN")
        if token:
            return StaticToken(token)
        client_id = os.environ.get("MODELKEEP_CLIENT_ID") or kept.client_id
        if not client_id:
            return self.person(kept)
        secret = os.environ.get("MODELKEEP_CLIENT_SECRET")
        if not secret:
            raise ConfigurationError(f"set MODELKEEP_CLIENT_SECRET to the secret of `{client_id}`; it is never kept")
        return ClientCredentials(client_id, secret, issuer=kept.issuer)

    # output -----------------------------------------------------------------------------------------

    def show(self, value: object) -> None:
        """Print one thing: its fields, a line each, or JSON."""
        fields = plain(value)
        if self.as_json:
            print_json(fields)
        else:
            print_fields(fields)

    def table(self, items: Iterable[object], *columns: str) -> None:
        """Print a list: a table of `columns`, or JSON with every field."""
        rows = [plain(item) for item in items]
        if self.as_json:
            print_json(rows)
        else:
            print_table(rows, columns)

    def done(self, text: str, **facts: str | int | None) -> None:
        """Say on standard error that something was done; with `--json`, the facts of it are printed, too."""
        click.echo(safe(text), err=True)
        if self.as_json and facts:
            print_json(facts)

    def confirm(self, question: str, *, yes: bool) -> None:
        """Ask before something that has no way back.

        Raises:
            click.Abort: the answer was no.
        """
        if not yes:
            click.confirm(safe(question), abort=True, err=True)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


pass_context = click.make_pass_decorator(Context)
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")
limit_option = click.option(
    "--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most so many."
)


def version_of(text: str | None) -> int | str | None:
    """Return a version that an option names: a number, an alias, or none."""
    return int(text) if text is not None and text.isascii() and text.isdecimal() else text


def with_client(context: Context, run: Callable[[Client], Any]) -> Any:  # noqa: ANN401 -- what `run` returns
    """Run `run` with a client and close it."""
    with context.client() as client:
        return run(client)
