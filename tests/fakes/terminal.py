"""A terminal in which the `modelkeep` command talks to the fake platform, as one service account or as a person."""

import json
import unicodedata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result

from fakes.sdk import FakeTime
from fakes.server import FakePlatform, answer_json
from modelkeep.cli.main import main
from modelkeep.client import Client

CLIENT = {"MODELKEEP_CLIENT_ID": "app", "MODELKEEP_CLIENT_SECRET": "s3cret"}
_CLEAN = (
    "MODELKEEP_TOKEN",
    "MODELKEEP_PROFILE",
    "MODELKEEP_CA_FILE",
    "MODELKEEP_CLIENT_ID",
    "MODELKEEP_CLIENT_SECRET",
)


class Terminal:
    """Runs commands; `answers` are given before the fake platform's own."""

    def __init__(self, platform: FakePlatform, folder: Path, time: FakeTime, patch: pytest.MonkeyPatch) -> None:
        self.platform = platform
        self.folder = folder
        self.env: dict[str, str | None] = dict.fromkeys(_CLEAN)
        self.env |= {"MODELKEEP_SERVER": platform.base_url, "MODELKEEP_STATE_DIR": str(folder), **CLIENT}
        self.answers: dict[tuple[str, str], object] = {}
        platform.before.append(self._answer)

        def connect(*args: Any, **options: Any) -> Client:
            made = Client(*args, transport=self.platform.transport(), **options)
            made._driver.sleep = time.wait
            return made

        patch.setattr("modelkeep.client.Client", connect)
        patch.setattr("modelkeep.client.time", SimpleNamespace(time=time))

    def run(self, *args: str, status: int = 0, text: str | None = None) -> Result:
        """Run a command and check its status."""
        result = CliRunner().invoke(main, list(args), env=self.env, input=text, catch_exceptions=False)
        assert result.exit_code == status, result.output
        return result

    def json(self, *args: str, text: str | None = None) -> Any:
        """Run a command with `--json` and return what it prints."""
        return json.loads(self.run(*args, "--json", text=text).stdout)

    def file(self, name: str, content: object) -> str:
        """Write a file and return its path."""
        path = self.folder.parent / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return str(path)

    def body(self, method: str, path: str) -> Any:
        """Return what the one request of this kind said."""
        (request,) = self.platform.sent(method, path)
        return json.loads(request.content)

    def _answer(self, request: httpx.Request) -> httpx.Response | None:
        found = self.answers.get((request.method, request.url.path))
        return found if found is None or isinstance(found, httpx.Response) else answer_json(found)


def unsafe_in(text: str) -> set[str]:
    """Return the characters of `text` that could steer a terminal; line feeds end lines and are not among them."""
    wrong = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
    return {character for character in text if character != "\n" and unicodedata.category(character) in wrong}
