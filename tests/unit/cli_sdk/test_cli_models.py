"""Models from the terminal: up, down into a folder and nowhere else, aliases, delete."""

import json
from pathlib import Path

import httpx
import pytest

from fakes.server import FakePlatform
from fakes.terminal import Terminal

GRAPH = {"format": "modelkeep.graph/1"}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "out"


@pytest.fixture(autouse=True)
def tumour(platform: FakePlatform) -> None:
    platform.add_model("tumour", weights=b"0123456789")


def test_upload_sends_graph_and_weights(terminal: Terminal, platform: FakePlatform) -> None:
    graph, weights = terminal.file("g.json", GRAPH), terminal.file("w.safetensors", b"weights")
    up = terminal.json("models", "upload", "m", "--graph", graph, "--weights", weights, "--description", "why")
    assert (up["name"], up["version"], up["weights_bytes"]) == ("m", 1, 7)
    body = terminal.body("POST", "/v1/models/m/versions")
    assert (body["graph"], body["description"]) == (GRAPH, "why")


@pytest.mark.parametrize(
    ("graph", "refusal"),
    [("[1, 2]", "does not hold a JSON object"), ("{", "is not JSON"), ("[" * 100_000, "is not JSON"), ("", "not JSON")],
    ids=["list", "cut", "deep", "empty"],
)
def test_a_graph_that_is_none_is_refused_here(
    terminal: Terminal, platform: FakePlatform, graph: str, refusal: str
) -> None:
    path, weights = terminal.file("g.json", graph), terminal.file("w.safetensors", b"weights")
    refused = terminal.run("models", "upload", "m", "--graph", path, "--weights", weights, status=1)
    assert refusal in refused.stderr
    assert not platform.requests


def test_files_that_cannot_be_read_are_named(terminal: Terminal, tmp_path: Path) -> None:
    weights = terminal.file("w.safetensors", b"weights")
    for path, why in ((str(tmp_path / "none"), "No such file"), (str(tmp_path), "Is a directory")):
        refused = terminal.run("models", "upload", "m", "--graph", path, "--weights", weights, status=1)
        assert f"error (configuration): `{path}` cannot be read: {why}" in refused.stderr
    latin = terminal.file("latin.json", b"\xff")
    refused = terminal.run("models", "upload", "m", "--graph", latin, "--weights", weights, status=1)
    assert "is not UTF-8" in refused.stderr


def test_a_file_may_not_be_endless(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelkeep.cli.files.MAX_FILE_BYTES", 4)
    assert "is larger than 4 bytes" in terminal.run("policies", "check", "-", text="12345", status=1).stderr


def test_download_writes_two_private_files(terminal: Terminal, out: Path) -> None:
    shown = terminal.json("models", "download", "tumour", "--out", str(out))
    assert {path.name for path in out.iterdir()} == {"tumour-1.graph.json", "tumour-1.safetensors"}
    assert Path(shown["weights"]).read_bytes() == b"0123456789"
    assert json.loads(Path(shown["graph"]).read_text()) == GRAPH
    assert Path(shown["weights"]).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("version", ["1", "production"])
def test_download_takes_a_number_or_an_alias(
    terminal: Terminal, platform: FakePlatform, out: Path, version: str
) -> None:
    platform.models["tumour"]["model"]["aliases"]["production"] = 1
    platform.add_model("tumour", weights=b"newer")
    assert terminal.json("models", "download", "tumour", "--version", version, "--out", str(out))["version"] == 1


@pytest.mark.parametrize("there", ["tumour-1.graph.json", "tumour-1.safetensors"])
def test_what_is_there_is_not_replaced_unasked(terminal: Terminal, out: Path, there: str) -> None:
    out.mkdir(parents=True)
    (out / there).write_text("mine")
    (out / there).chmod(0o644)
    refused = terminal.run("models", "download", "tumour", "--out", str(out), status=1)
    assert f"{there}` exists; remove it, or say that it may be replaced" in refused.stderr
    assert "--force" in refused.stderr
    assert [path.name for path in out.iterdir()] == [there]
    assert (out / there).read_text() == "mine"
    terminal.run("models", "download", "tumour", "--out", str(out), "--force")
    assert (out / there).read_text() != "mine"
    assert (out / there).stat().st_mode & 0o777 == 0o600


def test_a_link_is_never_followed(terminal: Terminal, out: Path, tmp_path: Path) -> None:
    out.mkdir(parents=True)
    (tmp_path / "victim").write_text("mine")
    (out / "tumour-1.safetensors").symlink_to(tmp_path / "victim")
    for force in ([], ["--force"]):
        terminal.run("models", "download", "tumour", "--out", str(out), *force, status=1)
    assert (tmp_path / "victim").read_text() == "mine"


@pytest.mark.parametrize(
    "name", ["../evil", "..", "a/b", "a\\b", "/etc/evil", "a..b", ".hidden", "A", "a\nb", "x" * 80]
)
def test_a_name_that_a_server_gives_stays_in_the_folder(
    terminal: Terminal, platform: FakePlatform, out: Path, name: str
) -> None:
    # The server answers for another name than was asked: refused before any name becomes a path.
    platform.models["tumour"]["versions"][1]["shown"]["name"] = name
    refused = terminal.run("models", "download", "tumour", "--version", "1", "--out", str(out), status=1)
    assert refused.stderr.startswith("error (protocol)")
    assert not list(out.iterdir())


def test_a_name_that_was_asked_for_does_too(terminal: Terminal, platform: FakePlatform, out: Path) -> None:
    platform.add_model("a..b")
    refused = terminal.run("models", "download", "a..b", "--out", str(out), status=1)
    assert "is not a name that files may have" in refused.stderr
    assert not list(out.iterdir())


def test_bytes_of_another_digest_are_not_kept(terminal: Terminal, platform: FakePlatform, out: Path) -> None:
    platform.models["tumour"]["versions"][1]["weights"] = b"012345678X"
    assert "digests differ" in terminal.run("models", "download", "tumour", "--out", str(out), status=1).stderr
    assert not list(out.iterdir())


def test_a_folder_that_cannot_be_made(terminal: Terminal, platform: FakePlatform, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = terminal.run("models", "download", "tumour", "--out", str(tmp_path / "file" / "out"), status=1)
    assert "cannot be made: Not a directory" in refused.stderr
    assert not platform.requests


def test_aliases_are_set_and_deleted(terminal: Terminal, platform: FakePlatform) -> None:
    assert terminal.json("models", "set-alias", "tumour", "production", "1")["aliases"] == {"production": 1}
    assert terminal.json("models", "delete-alias", "tumour", "production") == {"deleted": "production"}
    assert platform.sent("DELETE", "/v1/models/tumour/aliases/production")


DELETIONS = [
    ("models delete m", "/v1/models/m"),
    ("models delete m --version 2", "/v1/models/m/versions/2"),
    ("datasets delete d", "/v1/datasets/d"),
    ("members remove p-1", "/v1/members/p-1"),
    ("service-accounts delete s-1", "/v1/service-accounts/s-1"),
]


@pytest.mark.parametrize(("command", "path"), DELETIONS, ids=[line[0] for line in DELETIONS])
def test_deleting_asks_and_a_no_is_a_no(terminal: Terminal, platform: FakePlatform, command: str, path: str) -> None:
    for answer in ("n\n", "\n", ""):
        refused = terminal.run(*command.split(), text=answer, status=1)
        assert (refused.stdout, "Aborted" in refused.stderr) == ("", True)
    assert not platform.requests
    terminal.run(*command.split(), text="y\n")
    terminal.run(*command.split(), "--yes")
    assert len(platform.sent("DELETE", path)) == 2


def test_the_question_says_what_goes(terminal: Terminal) -> None:
    said = terminal.run("models", "delete", "m", text="n\n", status=1).stderr
    assert "Delete m and all its versions? There is no way back." in said


def test_an_upload_that_stops_says_how_to_go_on(terminal: Terminal) -> None:
    graph, weights = terminal.file("g.json", GRAPH), terminal.file("w.safetensors", b"weights")

    def broken(request: httpx.Request) -> httpx.Response | None:
        if request.method == "PUT":
            raise httpx.ConnectError("down")
        return None

    terminal.platform.before.append(broken)
    stopped = terminal.run("models", "upload", "m", "--graph", graph, "--weights", weights, status=1)
    assert stopped.stderr.startswith("error (upload_interrupted): the upload stopped")
    assert "client.uploads.resume('up-1', data)" in stopped.stderr
