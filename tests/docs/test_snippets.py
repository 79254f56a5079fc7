"""Every Python block of every page runs, in order, against a real server; every command of a console block exists."""

import os
import re
import shlex
import textwrap
from pathlib import Path
from typing import Any

import click
import pytest

from docs.generate import ROOT
from modelkeep import Client
from modelkeep.cli.main import main as sdk_command
from modelkeep_platform.cli.main import main as platform_command
from services.house import House, approve

pytestmark = pytest.mark.e2e
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
COMMANDS: dict[str, click.Command] = {"modelkeep": sdk_command, "modelkeep-platform": platform_command}
PERSONS = {"acme": "acme-health-admin", "globex": "globex-inc-admin"}


def blocks(page: Path, language: str) -> list[str]:
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(code) for _, code in found]


WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_python_of_a_page_runs(page: Path, house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client_id, secret = house.acme.secrets["developer"]
    for name, value in {
        "MODELKEEP_CLIENT_ID": client_id,
        "MODELKEEP_CLIENT_SECRET": secret,
        "MODELKEEP_STATE_DIR": str(tmp_path / "state"),
        "OPERATOR_SECRET": house.made.operator_secret,
    }.items():
        monkeypatch.setenv(name, value)
    waiting = iter(PERSONS.values())
    monkeypatch.setattr(
        "modelkeep.auth._print_prompt",
        lambda prompt: approve(prompt, next(waiting), "correct horse battery staple"),
    )
    names: dict[str, Any] = {
        "admin": house.acme.admin,
        "app": house.acme.clients["developer"],
        "partner": house.globex.clients["developer"],
    }
    given = set(map(id, names.values()))
    try:
        for code in blocks(page, "python"):
            exec(compile(code.replace("https://models.example", house.url), str(page), "exec"), names)  # noqa: S102
    finally:
        for value in names.values():
            if isinstance(value, Client) and id(value) not in given:
                value.close()


def console_lines() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for code in blocks(page, "console"):
            joined = code.replace("\\\n", " ")
            lines = [line[2:] for line in joined.splitlines() if line.startswith("$ ")]
            found += [(str(page.relative_to(ROOT)), line) for line in lines if line.split()[0] in COMMANDS]
    return found


@pytest.mark.parametrize(("page", "line"), console_lines(), ids=lambda value: value[:60])
def test_the_commands_of_a_page_exist(page: str, line: str) -> None:
    words = shlex.split(line)
    at: click.Command = COMMANDS[words[0]]
    rest = words[1:]
    while rest:
        names = {option: one for one in at.params if isinstance(one, click.Option) for option in one.opts}
        word = rest.pop(0)
        if word.startswith("--"):
            assert word in names, f"{page}: `{line}` has no option {word}"
            if not names[word].is_flag:
                rest.pop(0)
        elif isinstance(at, click.Group):
            assert word in at.commands, f"{page}: `{line}` names no command {word}"
            at = at.commands[word]
    assert not isinstance(at, click.Group), f"{page}: `{line}` is no whole command"


def test_pages_keep_secrets_out() -> None:
    for page in PAGES:
        assert not re.search(r"mk[os]_[A-Za-z0-9_-]{20,}", page.read_text(encoding="utf-8")), page
    assert os.environ.get("OPERATOR_SECRET") is None
