"""A backup is one moment of a platform that goes on: all that it lists opens, and what was deleted before is not in it.

Some tests delete and upload at the exact point that matters; one lets a writer do as it likes.
"""

import base64
import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modelkeep import Client
from modelkeep_platform.app import settings as settings_file
from modelkeep_platform.app.backup import backup, gathering, publishing, restore, writing
from modelkeep_platform.app.backup.files import copy_file
from modelkeep_platform.core.errors import ConflictError, IntegrityError
from services.house import GRAPH, ROWS, SCHEMA, WEIGHTS, House, Installation, ServerThread, job
from services.opened import opened

pytestmark = pytest.mark.e2e

PUBLIC = {"visibility": "public", "reason": "made up for a test"}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(Path(tmp_path_factory.mktemp("house")))
    house.fill()
    yield house
    house.close()


@pytest.fixture
def app(house: House) -> Client:
    return house.acme.clients["developer"]


def back_up(house: House, folder: Path) -> Path:
    """Back up and restore below `folder`; return the restored data folder."""
    folder.mkdir(exist_ok=True)
    out, keys, data = folder / "out", folder / "keys.json", folder / "data"
    backup(house.made.data, out=out, keys=keys)
    restore(out, keys=keys, root_key=house.made.folder / "root.key", data=data)
    return data


def gone(out: Path) -> set[str]:
    """Return the blobs of a backup that its database does not name; what it names must be there."""
    connection = sqlite3.connect(out / "platform.db")
    names = set(gathering.named(connection))
    connection.close()
    blobs = out / "blobs"
    there = {str(path.relative_to(blobs)) for path in blobs.rglob("*") if path.is_file()}
    assert names <= there
    return there - names


def upload(app: Client, name: str) -> None:
    app.models.upload(name, graph=GRAPH, weights=WEIGHTS)


def a_version(app: Client, name: str) -> tuple[set[str], Callable[[], None]]:
    """Make a model of two versions; return what is lost when the second is deleted, and how."""
    upload(app, name)
    upload(app, name)
    app.models.set_alias(name, "best", version=2)
    return {f"{name}/2"}, lambda: app.models.delete(name, version=2)


def a_model(app: Client, name: str) -> tuple[set[str], Callable[[], None]]:
    upload(app, name)
    return {f"{name}/1"}, lambda: app.models.delete(name)


def a_dataset(app: Client, name: str) -> tuple[set[str], Callable[[], None]]:
    app.datasets.upload_csv(name, ROWS, schema=SCHEMA, privacy=PUBLIC)
    return {name}, lambda: app.datasets.delete(name)


Make = Callable[[Client, str], tuple[set[str], Callable[[], None]]]
KINDS = pytest.mark.parametrize("make", [a_version, a_model, a_dataset])


@KINDS
@pytest.mark.parametrize("at", ["part-0", "manifest"])
def test_what_is_deleted_while_its_blobs_are_copied_is_not_in_the_backup(
    house: House, app: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Make, at: str
) -> None:
    before = set(house_blobs(house))
    lost, delete = make(app, f"{make.__name__}-{at}".replace("_", "-"))
    last = max(house_blobs(house) - before).rpartition("/")[0]  # of two versions the second's
    done: list[str] = []

    def copy(source: Path, target: Path) -> str:
        if not done and str(source).endswith(f"{last}/{at}"):
            done.append(at)
            delete()
        return copy_file(source, target)

    monkeypatch.setattr(gathering, "copy_file", copy)
    found = opened(back_up(house, tmp_path))
    assert done
    assert not found & lost
    assert {"model/1", "rows", "open"} <= found
    assert not gone(tmp_path / "out")


def house_blobs(house: House) -> set[str]:
    blobs = house.made.data / "blobs"
    return {str(path.relative_to(blobs)) for path in blobs.rglob("*") if path.is_file()}


@KINDS
def test_what_is_deleted_after_it_was_copied_leaves_neither_key_nor_bytes(
    house: House, app: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Make
) -> None:
    lost, delete = make(app, f"{make.__name__}-shredded".replace("_", "-"))
    ahead = gathering.gather_ahead

    def then_delete(database: Path, gathered: gathering.Gathered) -> None:
        ahead(database, gathered)
        delete()
        upload(app, "late")

    monkeypatch.setattr(gathering, "gather_ahead", then_delete)
    found = opened(back_up(house, tmp_path))
    assert not found & lost
    assert any(name.startswith("late/") for name in found)
    assert not gone(tmp_path / "out")
    live, copy = (keys_in(path / "platform.db") for path in (house.made.data, tmp_path / "out"))
    assert copy == live


def keys_in(database: Path) -> set[str]:
    connection = sqlite3.connect(database)
    found = {row[0] for row in connection.execute("SELECT object_id FROM wrapped_deks")}
    connection.close()
    return found


@KINDS
def test_a_deletion_waits_until_what_it_deletes_was_copied(
    house: House, app: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Make
) -> None:
    ahead, named = gathering.gather_ahead, gathering.named
    made: list[tuple[set[str], threading.Thread]] = []

    def then_make(database: Path, gathered: gathering.Gathered) -> None:
        ahead(database, gathered)
        lost, delete = make(app, f"{make.__name__}-waits".replace("_", "-"))
        made.append((lost, threading.Thread(target=delete)))

    def then_delete(connection: sqlite3.Connection) -> Iterator[str]:
        yield from named(connection)
        if connection.in_transaction:
            made[0][1].start()
            time.sleep(1)
            assert made[0][1].is_alive()

    with monkeypatch.context() as patched:
        patched.setattr(gathering, "gather_ahead", then_make)
        patched.setattr(gathering, "named", then_delete)
        data = back_up(house, tmp_path)
    lost, deleting = made[0]
    deleting.join(timeout=30)
    assert lost <= opened(data)
    assert not gone(tmp_path / "out")
    assert not lost & opened(back_up(house, tmp_path / "again"))


@KINDS
def test_what_is_deleted_after_the_moment_is_whole_in_the_backup(
    house: House, app: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Make
) -> None:
    lost, delete = make(app, f"{make.__name__}-later".replace("_", "-"))
    part = writing._part_keys

    def after_deleting(copy: Path) -> bytes:
        delete()
        return part(copy)

    monkeypatch.setattr(writing, "_part_keys", after_deleting)
    assert lost <= opened(back_up(house, tmp_path))


def test_a_writer_that_never_rests_gets_into_no_backup_by_halves(house: House, app: Client, tmp_path: Path) -> None:
    stop, rounds, failed = threading.Event(), [0], list[BaseException]()

    def write() -> None:
        small = {"dataset": "open", "privacy": None, "into": "busy", "steps": 2}
        try:
            while not stop.is_set():
                for name in ("busy", "brief"):
                    upload(app, name)
                app.models.delete("busy", version=app.models.get("busy").latest_version)
                trained = app.jobs.wait(app.jobs.create(job(**small)).id)
                assert trained.state == "succeeded"
                app.datasets.upload_csv("brief", ROWS, schema=SCHEMA, privacy=PUBLIC)
                app.models.delete("brief")
                app.datasets.delete("brief")
                rounds[0] += 1
        except BaseException as exc:
            failed.append(exc)
            raise

    writer = threading.Thread(target=write)
    writer.start()
    try:
        restored = []
        for number in range(12):
            restored.append(back_up(house, tmp_path / str(number)))
            time.sleep(0.1)
    finally:
        stop.set()
        writer.join(timeout=60)
    assert not failed
    assert rounds[0]
    for number, data in enumerate(restored):
        assert {"model/1", "rows", "open"} <= opened(data)
        assert not gone(tmp_path / str(number) / "out")


def test_an_upload_goes_on_where_it_was(house: House, app: Client, tmp_path: Path) -> None:
    digest = hashlib.sha256(WEIGHTS)
    body = {"graph": GRAPH, "weights_bytes": len(WEIGHTS), "weights_sha256": digest.hexdigest()}
    with house.http(app) as http:
        begun = http.post("/v1/models/resumed/versions", json=body).json()["upload"]["id"]
        sent = {"content-digest": f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"}
        assert http.put(f"/v1/uploads/{begun}/parts/0", content=WEIGHTS, headers=sent).status_code == 200
        data = back_up(house, tmp_path)
        assert http.delete(f"/v1/uploads/{begun}").status_code == 204
        token = http.headers["authorization"]
    restored = Installation(tmp_path)
    assert restored.data == data
    server = ServerThread(restored)
    try:
        with house.http(None) as http:
            http.base_url = restored.url
            done = http.post(f"/v1/uploads/{begun}/complete", headers={"authorization": token})
            assert done.status_code == 200, done.text
    finally:
        server.close()
    assert "resumed/1" in opened(data)


@pytest.mark.parametrize("name", ["part-0", "manifest"])
def test_a_blob_that_is_missing_refuses_the_backup(house: House, app: Client, tmp_path: Path, name: str) -> None:
    upload(app, "damaged")
    connection = sqlite3.connect(house.made.data / "platform.db")
    ((model,),) = connection.execute("SELECT id FROM models WHERE name = 'damaged'")
    connection.close()
    (blob,) = (house.made.data / "blobs").glob(f"*/{model}/*/weights/{name}")
    blob.unlink()
    with pytest.raises(IntegrityError) as caught:
        back_up(house, tmp_path)
    assert caught.value.error_code == "blob_missing"
    assert not list(tmp_path.iterdir())
    app.models.delete("damaged")
    opened(back_up(house, tmp_path))


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return Installation(Path(tmp_path_factory.mktemp("quiet"))).init()


def full(*_: Any, **__: Any) -> Any:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        pytest.param(writing, "_part_keys", id="the database was copied"),
        pytest.param(writing, "write", id="the manifest is written"),
        pytest.param(publishing, "fsync_folders", id="all is written"),
        pytest.param(publishing, "write", id="the keys are written"),
        pytest.param(publishing, "fsync", id="the keys were written"),
    ],
)
def test_a_backup_that_fails_leaves_nothing_and_can_be_repeated(
    quiet: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    out, keys = tmp_path / "out", tmp_path / "keys.json"
    with monkeypatch.context() as patched:
        patched.setattr(module, name, full)
        with pytest.raises(OSError, match="No space"):
            backup(quiet.data, out=out, keys=keys)
    assert not list(tmp_path.iterdir())
    backup(quiet.data, out=out, keys=keys)
    restore(out, keys=keys, root_key=quiet.folder / "root.key", data=tmp_path / "data")
    modes = {path.stat().st_mode & 0o777 for path in (out, *out.rglob("*")) if path.is_dir()}
    assert modes == {0o700}
    assert {path.name for path in out.iterdir()} == {"platform.db", "backup.json", settings_file.FILE}


KILLED = """
import os, signal, sys
from pathlib import Path
from modelkeep_platform.app.backup import backup, publishing, writing
sys.modules["modelkeep_platform.app.backup." + sys.argv[1]].__dict__[sys.argv[2]] = lambda *_: os.kill(os.getpid(), 9)
backup(Path(sys.argv[3]), out=Path(sys.argv[4]), keys=Path(sys.argv[5]))
"""


def kill(quiet: Installation, folder: Path, where: tuple[str, str]) -> None:
    arguments = [*where, str(quiet.data), str(folder / "out"), str(folder / "keys.json")]
    ended = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False, timeout=60)
    assert ended.returncode == -signal.SIGKILL


def test_what_a_killed_backup_left_goes_with_the_next(quiet: Installation, tmp_path: Path) -> None:
    kill(quiet, tmp_path, ("writing", "_part_keys"))
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".modelkeep-backup-")
    with publishing.half_made(tmp_path / "another") as under_way:
        backup(quiet.data, out=tmp_path / "out", keys=tmp_path / "keys.json")
        assert under_way.is_dir()
    assert {path.name for path in tmp_path.iterdir()} == {"out", "keys.json"}


def test_keys_that_a_killed_backup_left_are_for_the_operator_to_delete(quiet: Installation, tmp_path: Path) -> None:
    kill(quiet, tmp_path, ("publishing", "fsync"))
    assert not (tmp_path / "out").exists()
    kept = (tmp_path / "keys.json").read_bytes()
    with pytest.raises(ConflictError, match="delete it if no backup belongs to it"):
        backup(quiet.data, out=tmp_path / "out", keys=tmp_path / "keys.json")
    assert (tmp_path / "keys.json").read_bytes() == kept
    backup(quiet.data, out=tmp_path / "out", keys=tmp_path / "other.json")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "keys.json", "other.json"}


def test_of_two_backups_to_one_place_one_is_made(quiet: Installation, tmp_path: Path) -> None:
    out, keys = tmp_path / "out", tmp_path / "keys.json"
    with publishing.half_made(out) as half:
        (half / "mine").write_bytes(b"")
        backup(quiet.data, out=out, keys=keys)
        kept = keys.read_bytes()
        with pytest.raises(ConflictError) as caught:
            publishing.publish(half, out, keys=keys, content=b"other")
    assert caught.value.error_code == "backup_exists"
    assert keys.read_bytes() == kept
    assert not os.path.lexists(half)
    restore(out, keys=keys, root_key=quiet.folder / "root.key", data=tmp_path / "data")
