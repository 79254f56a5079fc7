"""The SDK's own files: private, whole, and refused when they are not."""

import os
import stat
from pathlib import Path

import pytest

from fakes.sdk import FakeTime, fake_driver
from fakes.server import FakePlatform
from modelkeep._core.state import FileLock, State, default_folder
from modelkeep.errors import StateError


@pytest.fixture
def state(folder: Path) -> State:
    return State(folder)


def test_records_are_private_and_named_by_digest(state: State, folder: Path) -> None:
    state.write("token", "https://models.test/../../etc", value={"a": 1})
    (path,) = folder.iterdir()
    assert path.parent == folder
    assert "etc" not in path.name
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert state.read("token", "https://models.test/../../etc") == {"a": 1}
    assert state.read("token", "https://models.test") is None


def test_records_are_private_under_any_umask(state: State, folder: Path) -> None:
    before = os.umask(0)
    try:
        state.write("token", "x", value={})
    finally:
        os.umask(before)
    (path,) = folder.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_record_is_replaced_as_a_whole(state: State, folder: Path) -> None:
    state.write("config", value={"a": 1})
    state.write("config", value={"b": 2})
    assert state.read("config") == {"b": 2}
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    state.remove("config")
    state.remove("config")
    assert state.read("config") is None


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o620, 0o606])
def test_a_record_that_others_may_open_is_refused(state: State, folder: Path, mode: int) -> None:
    state.write("config", value={"a": 1})
    (folder / "config.json").chmod(mode)
    with pytest.raises(StateError, match="others may read"):
        state.read("config")


def test_a_folder_that_others_may_write_is_refused(state: State, folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(StateError, match="others may write"):
        state.write("config", value={})


def test_a_link_is_not_followed(state: State, folder: Path, tmp_path: Path) -> None:
    folder.mkdir(mode=0o700)
    elsewhere = tmp_path / "elsewhere.json"
    elsewhere.write_text("{}")
    elsewhere.chmod(0o600)
    (folder / "config.json").symlink_to(elsewhere)
    with pytest.raises(StateError, match="cannot be read"):
        state.read("config")
    state.write("config", value={"a": 1})
    assert elsewhere.read_text() == "{}"


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b"\xff", b"[" * 200_000], ids=["empty", "list", "cut", "bytes", "deep"]
)
def test_a_broken_record_is_refused(state: State, folder: Path, content: bytes) -> None:
    folder.mkdir(mode=0o700)
    path = folder / "config.json"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(StateError, match="broken"):
        state.read("config")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="state_dir"):
        State(tmp_path / "file" / "state").write("config", value={})


def test_a_lock_is_held_by_one(state: State, folder: Path, platform: FakePlatform, time: FakeTime) -> None:
    driver = fake_driver(platform.transport(), time)
    lock = driver.run(state.lock("token", "x"))
    path = next(folder.iterdir())
    assert FileLock.take(path) is None
    with pytest.raises(StateError, match="for a minute"):
        driver.run(state.lock("token", "x"))
    assert sum(time.waits) == pytest.approx(60)
    lock.release()
    lock.release()
    driver.run(state.lock("token", "x")).release()


def test_the_folder_is_the_users_or_the_one_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MODELKEEP_STATE_DIR", raising=False)
    assert default_folder().name == "modelkeep"
    monkeypatch.setenv("MODELKEEP_STATE_DIR", str(tmp_path))
    assert default_folder() == tmp_path
