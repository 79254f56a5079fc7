"""What the pages say to type is typed, in order, in a fresh folder, against a real server.

Each page with a console block has a story: what is there before the reader begins, and what must be true in the end.
What cannot be typed in a test stands in `NOT_TYPED`, with its reason.
"""

import configparser
import json
import os
import re
import shlex
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import yaml  # type: ignore[import-untyped]

from docs.generate import ROOT
from docs.pages import COMMANDS, PAGES, blocks, check_command, fences, name_of, typed, within
from modelkeep_platform.app import settings as settings_file
from services.certificates import certificate
from services.house import _BIND, GRAPH, PRIVATE, ROWS, SCHEMA, WEIGHTS, Installation, free_port, job, join, wait_until

pytestmark = pytest.mark.e2e

NOT_TYPED = {
    ("README.md", "make demo"): "makes an environment from a package index; the tutorial's blocks are the same steps",
    ("README.md", "make test"): "these tests are part of it",
    ("docs/how-to/install.md", "python3.11 -m venv /opt/modelkeep"): "installs from a package index into /opt",
    ("docs/how-to/operate.md", "journalctl "): "reads the log of a systemd that runs the platform",
}
"""Page and beginning of each command that no test types, and why."""

CHECKED = {
    "python": "test_snippets.py types it",
    "console": "typed here",
    "ini": "here",
    "yaml": "here",
    "json": "here; the graph by test_reference.py",
    "cedar": "tests/policy/test_reference_page.py",
    "text": "what is shown, not typed",
}
"""The languages that blocks have, and who looks at them."""


class Reader:
    """Somebody with a shell in an empty folder, who types what a page says.

    Args:
        folder: the empty folder.
        tls: whether the page's server speaks TLS.
    """

    def __init__(self, folder: Path, *, tls: bool = False) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self.typed: list[str] = []
        self._server: subprocess.Popen[bytes] | None = None
        chain, _ = certificate(folder)
        self._chain = chain
        programs = folder / ".bin"
        programs.mkdir()
        for name, module in (("modelkeep", "modelkeep"), ("modelkeep-platform", "modelkeep_platform")):
            (programs / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m {module} "$@"\n')
            (programs / name).chmod(0o700)
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("MODELKEEP_")},
            "PATH": f"{programs}:{os.environ['PATH']}",
            "HOME": str(folder),
            "MODELKEEP_SERVER": self.url,
            "MODELKEEP_STATE_DIR": str(folder / ".state"),
            # The reader's machine trusts the made-up certificate, by each program's own means.
            "MODELKEEP_CA_FILE": str(chain),
            "CURL_CA_BUNDLE": str(chain),
            "SSL_CERT_FILE": str(chain),
        }

    def type(self, line: str) -> str:
        """Type one line as the page has it; return what was shown. A server stays, until the next one starts."""
        self.typed.append(line)
        words = self._here(line)
        if line.startswith("modelkeep-platform serve"):
            self._serve(words)
            return ""
        done = subprocess.run(
            ["bash", "-c", words], cwd=self.folder, env=self.env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"`{line}` ended with {done.returncode}: {done.stdout}{done.stderr}"
        secret = re.search(r"client secret: (\S+)", done.stdout)
        if secret:
            self.env |= {"MODELKEEP_CLIENT_ID": "operator", "MODELKEEP_CLIENT_SECRET": secret[1]}
        return done.stdout

    def type_all(self, lines: list[str]) -> str:
        """Type several; return what the last one showed."""
        return [self.type(line) for line in lines][-1]

    def install(self) -> None:
        """Make what most pages take as given: an installation."""
        self.type(f"modelkeep-platform init --data ./data --root-key ./keys/root.key --base-url {self.url}")

    @property
    def made(self) -> Installation:
        """Return the installation as other tests know it."""
        return Installation(self.folder, url=self.url, operator_secret=self.env["MODELKEEP_CLIENT_SECRET"])

    def stop(self) -> None:
        """Stop the server, if one runs, as systemd does."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.send_signal(signal.SIGTERM)
        try:
            assert server.wait(timeout=60) == 0
        finally:
            server.kill()

    def _here(self, line: str) -> str:
        """Return the line for this machine: addresses and ports that are free here."""
        for there, here in {
            "https://models.example": self.url,
            "http://127.0.0.1:8470": self.url,
            "--port 443": f"--port {self.port}",
            "--host 10.0.0.5": "--host 0.0.0.0",
        }.items():
            line = line.replace(there, here)
        return line

    def _serve(self, words: str) -> None:
        self.stop()
        shell = "import os, sys; os.execvp('bash', ['bash', '-c', sys.argv[1]])"
        log = self.folder / "server.log"
        with log.open("ab") as said:
            server = self._server = subprocess.Popen(
                [sys.executable, "-c", _BIND, str(os.getpid()), "-c", shell, f"exec {words}"],
                cwd=self.folder,
                env=self.env,
                stdout=said,
                stderr=said,
            )
        address = f"{'https' if '--tls-cert' in words else 'http'}://127.0.0.1:{self.port}/v2/health/ready"
        trust = ssl.create_default_context(cafile=str(self._chain))

        def ready() -> bool:
            assert server.poll() is None, f"`{words}` ended: {log.read_text()[-4000:]}"
            try:
                return httpx.get(address, verify=trust, timeout=2).status_code == 200
            except httpx.TransportError:
                return False

        wait_until(ready, f"`{words}`", timeout_s=60)


Lines = list[list[str]]


def install(reader: Reader, lines: Lines) -> None:
    init, serve, doctor = lines
    assert "operator logs in with" in reader.type_all(init)
    reader.type_all(serve)
    (curl,) = within(ROOT / "docs/how-to/install.md", "curl")
    assert f"`{curl}` answers `{reader.type(curl)}`" in (ROOT / "docs/how-to/install.md").read_text(encoding="utf-8")
    assert "answers as this platform" in reader.type_all(doctor)
    reader.stop()
    (migrate,) = within(ROOT / "docs/how-to/install.md", "modelkeep-platform migrate")
    assert "The database is at revision" in reader.type(migrate)


def back_up_and_restore(reader: Reader, lines: Lines) -> None:
    backup, checkpoint, restore, compare = lines
    reader.install()
    reader.type("modelkeep-platform serve --data ./data")
    acme = join(reader.made, "acme")
    app = acme.clients["developer"]
    app.models.upload("model", graph=GRAPH, weights=WEIGHTS)
    app.datasets.upload_csv("rows", ROWS, schema=SCHEMA, privacy=PRIVATE)
    app.jobs.wait(app.jobs.create(job()).id)
    spent = app.budgets.get("rows").epsilon_spent
    assert "Wrote" in reader.type_all(backup)
    reader.type_all(checkpoint)
    reader.stop()
    shutil.rmtree(reader.folder / "data")
    reader.type_all(restore)
    assert app.predict("model", [[1.0, 1.0]]) == [[3.5, 6.5]]
    assert "training goes on" in reader.type_all(compare)
    again = app.jobs.create(job(into="again", privacy={"epsilon": 0.3, "clip_norm": 1.0}))
    assert app.jobs.wait(again.id).state == "succeeded"
    assert spent < app.budgets.get("rows").epsilon_spent
    for client in (acme.admin, *acme.clients.values()):
        client.close()


def limit_a_tenant(reader: Reader, lines: Lines) -> None:
    ((show, change),) = lines
    reader.install()
    reader.type("modelkeep-platform serve --data ./data")
    with reader.made.operator() as operator:
        operator.tenants.create("acme", name="Acme")
        assert "members" in reader.type(show)
        reader.type(change)
        limits = operator.tenants.get("acme").limits
        assert (limits["members"].value, limits["storage_mib"].value) == (50, 500_000)


def operate(reader: Reader, lines: Lines) -> None:
    (doctor,) = lines
    reader.install()
    reader.type("modelkeep-platform serve --data ./data")
    assert "answers as this platform" in reader.type_all(doctor)


def serve_over_tls(reader: Reader, lines: Lines) -> None:
    direct, behind = lines
    reader.install()
    reader.type_all(direct)
    reader.type_all(behind)


def tutorial(reader: Reader, lines: Lines) -> None:
    ((init, serve),) = lines
    reader.type(init)
    reader.type(serve)


STORIES: dict[str, tuple[Callable[[Reader, Lines], None], bool]] = {
    "docs/how-to/install.md": (install, True),
    "docs/how-to/back-up-and-restore.md": (back_up_and_restore, False),
    "docs/how-to/limit-a-tenant.md": (limit_a_tenant, False),
    "docs/how-to/operate.md": (operate, False),
    "docs/how-to/tls.md": (serve_over_tls, True),
    "docs/tutorials/two-organisations.md": (tutorial, False),
}
"""By page, what a reader does, and whether the server speaks TLS."""


def is_typed(page: str, line: str) -> bool:
    return not any(page == one and line.startswith(begin) for one, begin in NOT_TYPED)


def lines_of(page: Path) -> Lines:
    """Return the lines that are typed, by block."""
    found = [[line for line in typed(code) if is_typed(name_of(page), line)] for code in blocks(page, "console")]
    return [lines for lines in found if lines]


@pytest.fixture
def readers() -> Iterator[list[Reader]]:
    made: list[Reader] = []
    yield made
    for reader in made:
        reader.stop()


@pytest.mark.parametrize("name", STORIES)
def test_what_a_page_says_to_type_works(name: str, tmp_path: Path, readers: list[Reader]) -> None:
    story, tls = STORIES[name]
    page, reader = ROOT / name, Reader(tmp_path, tls=tls)
    readers.append(reader)
    story(reader, lines_of(page))
    wanted = [line for lines in lines_of(page) for line in lines]
    assert [line for line in reader.typed if line in wanted] == wanted, "a story types each line once, in order"
    assert set(within(page, "curl")) <= set(reader.typed)


def test_every_console_block_is_typed_or_has_a_reason_not_to_be() -> None:
    unused = dict(NOT_TYPED)
    for page in PAGES:
        name = name_of(page)
        told = [*within(page, "curl", "systemctl", "journalctl", "apt", "apt-get")]
        for code in blocks(page, "console"):
            assert typed(code), f"{name} has a console block without a line that begins with `$ `: {code}"
            told += typed(code)
        for line in told:
            if is_typed(name, line):
                assert name in STORIES, f"{name}: nobody types `{line}`; give the page a story, or the line a reason"
            else:
                unused = {key: why for key, why in unused.items() if not (key[0] == name and line.startswith(key[1]))}
    assert not unused, "these are in no page any more"


def test_every_block_says_its_language_and_shows_no_hidden_commands() -> None:
    for page in PAGES:
        for language, code in fences(page):
            assert language in CHECKED, f"{name_of(page)}: ```{language} is looked at by no test"
            if language == "text":
                for line in code.splitlines():
                    first = line.removeprefix("$ ").split(" ")[0]
                    assert not line.startswith("$ "), f"{name_of(page)}: `{line}` belongs into a console block"
                    assert first not in {*COMMANDS, "curl", "make"}, f"{name_of(page)}: `{line}` is a command"


def test_json_of_a_page_is_json() -> None:
    for page in PAGES:
        for code in blocks(page, "json"):
            json.loads(code)


def test_the_collector_of_the_page_asks_the_ports_that_the_page_names() -> None:
    page = (ROOT / "docs/reference/metrics.md").read_text(encoding="utf-8")
    (code,) = blocks(ROOT / "docs/reference/metrics.md", "yaml")
    (scraped,) = yaml.safe_load(code)["scrape_configs"]
    assert set(scraped) <= {"job_name", "static_configs"}
    targets = [target for one in scraped["static_configs"] for target in one["targets"]]
    named = re.search(r"`serve --workers (\d+)` and `metrics_port = (\d+)`", page)
    assert named is not None
    assert targets == [f"127.0.0.1:{int(named[2]) + number}" for number in range(int(named[1]))]


def test_the_environment_of_the_page_is_of_settings() -> None:
    for page in PAGES:
        for code in blocks(page, "ini"):
            pairs = dict(line.removeprefix("Environment=").split("=", 1) for line in code.splitlines())
            assert settings_file.from_environment(pairs).keys() == {
                name.removeprefix(settings_file.PREFIX).lower() for name in pairs
            }


# --- the unit ---------------------------------------------------------------------------------------

UNIT = ROOT / "docs/how-to/modelkeep-platform.service"


class Unit(configparser.ConfigParser):
    def optionxform(self, optionstr: str) -> str:
        return optionstr  # names of directives have capitals


def unit() -> Unit:
    parser = Unit(interpolation=None, strict=True)
    parser.read_string(UNIT.read_text(encoding="utf-8"))
    return parser


def test_the_commands_of_the_unit_exist_and_meet_the_page() -> None:
    service, page = unit()["Service"], (ROOT / "docs/how-to/install.md").read_text(encoding="utf-8")
    for name in ("ExecStartPre", "ExecStart"):
        words = shlex.split(service[name])
        check_command(words, UNIT.name)
        assert Path(words[0]).parent == Path("/opt/modelkeep/bin")
        assert words[words.index("--data") + 1] == service["ReadWritePaths"]
    for place in ("/opt/modelkeep", service["ReadWritePaths"], service["ReadOnlyPaths"]):
        assert f"`{place}`" in page
    assert service["LimitNOFILE"] == "65536"  # as the doctor advises


def test_the_commands_of_the_unit_run_one_after_the_other(tmp_path: Path, readers: list[Reader]) -> None:
    reader = Reader(tmp_path)
    readers.append(reader)
    reader.install()
    service = unit()["Service"]
    for name in ("ExecStartPre", "ExecStart"):
        reader.type(service[name].replace("/opt/modelkeep/bin/", "").replace(service["ReadWritePaths"], "./data"))
    reader.stop()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    program = tmp_path / "modelkeep-platform"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    text = UNIT.read_text(encoding="utf-8").replace("/opt/modelkeep/bin/modelkeep-platform", str(program))

    def verify(text: str) -> tuple[int, str]:
        (tmp_path / UNIT.name).write_text(text)
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(tmp_path / UNIT.name)],
            capture_output=True,
            text=True,
            check=False,
        )
        # What it says of other units of this machine is not ours.
        return done.returncode, "\n".join(line for line in done.stderr.splitlines() if UNIT.name in line)

    assert verify(text) == (0, "")
    status, said = verify(text.replace("ProtectClock=", "ProtectKlock="))
    assert "ProtectKlock" in said, status
