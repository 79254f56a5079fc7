"""Every Python block of every page runs, in order, against a real server; every command that a text names exists."""

import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from docs.pages import COMMANDS, PAGES, blocks, check_command, name_of, within
from modelkeep import Client
from services.house import House, approve

pytestmark = pytest.mark.e2e
PERSONS = {"acme": "acme-health-admin", "globex": "globex-inc-admin"}


WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
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


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_commands_that_a_page_names_exist(page: Path) -> None:
    for line in within(page, *COMMANDS):
        words = shlex.split(re.sub(r"[\[{(].*", "", line))
        check_command(words, name_of(page), whole=False)


def test_pages_keep_secrets_out() -> None:
    for page in PAGES:
        assert not re.search(r"mk[os]_[A-Za-z0-9_-]{20,}", page.read_text(encoding="utf-8")), page
    assert os.environ.get("OPERATOR_SECRET") is None
