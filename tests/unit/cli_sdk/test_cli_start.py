"""The surface: quick to start, helpful, `--json` everywhere, secrets never arguments, all of it in the docs."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from modelkeep.cli.main import main

HEAVY = ("httpx", "cryptography", "rich", "numpy", "torch", "platformdirs", "ssl")
PAGE = Path(__file__).resolve().parents[3] / "docs" / "reference" / "cli.md"


def commands(at: click.Command = main, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if isinstance(at, click.Group):
        for name, sub in sorted(at.commands.items()):
            yield from commands(sub, (*path, name))
    else:
        yield path, at


COMMANDS = list(commands())
NAMES = [" ".join(path) for path, _ in COMMANDS]


@pytest.mark.parametrize(
    "args", [["--help"], ["models", "--help"], ["jobs", "wait", "--help"], ["--version"]], ids=" ".join
)
def test_help_loads_nothing_heavy(args: list[str]) -> None:
    code = (
        "import sys, click.testing, modelkeep.cli.main as cli\n"
        f"assert click.testing.CliRunner().invoke(cli.main, {args!r}).exit_code == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=NAMES)
def test_every_command_explains_itself_and_takes_json(path: tuple[str, ...], command: click.Command) -> None:
    shown = CliRunner().invoke(main, [*path, "--help"]).output
    assert "Print JSON instead of tables." in shown
    assert command.help
    assert all(option.help for option in command.params if isinstance(option, click.Option))


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=NAMES)
def test_no_secret_is_an_option(path: tuple[str, ...], command: click.Command) -> None:
    names = {name for parameter in [*command.params, *main.params] for name in parameter.opts}
    assert not [name for name in names if "secret" in name or "token" in name or "password" in name]


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=NAMES)
def test_deleting_asks_first(path: tuple[str, ...], command: click.Command) -> None:
    asks = any("--yes" in parameter.opts for parameter in command.params)
    assert asks == (path[-1] in {"delete", "remove"})


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=NAMES)
def test_every_command_and_option_is_in_the_reference(path: tuple[str, ...], command: click.Command) -> None:
    _, heading, section = PAGE.read_text(encoding="utf-8").partition(f"#### `modelkeep {' '.join(path)}")
    assert heading
    section = section.partition("\n### ")[0].partition("\n#### ")[0]
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert f"`{parameter.opts[0]}`" in section


def test_a_locale_without_the_letters_is_no_reason_to_fail() -> None:
    code = "from modelkeep.cli.main import main; main()"
    args = [sys.executable, "-c", code, "datasets", "upload", "--help"]
    shown = subprocess.run(args, capture_output=True, check=True, env={**os.environ, "PYTHONIOENCODING": "latin-1"})
    assert b"?." in shown.stdout


def test_a_wrong_option_is_status_2() -> None:
    assert CliRunner().invoke(main, ["models", "list", "--limit", "0"]).exit_code == 2
    assert CliRunner().invoke(main, ["nothing"]).exit_code == 2
