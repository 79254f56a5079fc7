"""The drill: back up while serving, lose everything, restore, and find every promise kept."""

import base64
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from modelkeep.errors import BudgetExceededError, RollbackError
from modelkeep_platform.app.backup import BackedUp, backup, compare, newest_checkpoint, restore
from modelkeep_platform.app.installation import open_database
from modelkeep_platform.cli.main import main
from modelkeep_platform.core.errors import ConflictError, IntegrityError, ModelkeepError
from modelkeep_platform.core.ids import PLATFORM, ObjectId, TenantId
from modelkeep_platform.keys.roots.file import FileRootKey
from modelkeep_platform.privacy.ledger import BudgetLedger
from modelkeep_platform.storage.tables.privacy import privacy_budgets
from modelkeep_platform.storage.transactions import TenantTransaction
from modelkeep_platform.telemetry.system import SystemClock, SystemEntropy
from services.house import House, Installation, ServerThread, Tenant, job

pytestmark = pytest.mark.e2e


@dataclass(slots=True)
class Drill:
    """A backup taken while a server ran, and what was true then."""

    made: Installation
    acme: Tenant
    out: Path
    keys: Path
    done: BackedUp
    spent: float
    in_flight: ObjectId
    checkpoint: str
    later: str

    def restore(self, folder: Path) -> Installation:
        restored = Installation(folder, url=self.made.url, operator_secret=self.made.operator_secret)
        restore(self.out, keys=self.keys, root_key=self.made.folder / "root.key", data=restored.data)
        return restored

    def write(self, folder: Path, note: str) -> Path:
        path = folder / "checkpoint.txt"
        path.write_text(note)
        return path


def ledger() -> BudgetLedger:
    return BudgetLedger(clock=SystemClock(), entropy=SystemEntropy())


def open_ledger(data: Path, work: Callable[[TenantTransaction, str], Any]) -> Any:
    """Do something in a transaction of the owner of the only private dataset."""
    database = open_database(data)
    try:
        with database.platform() as tx:
            row = tx.first(sa.select(privacy_budgets))
            assert row is not None
            return work(tx.as_tenant(TenantId(row["tenant_id"])), row["dataset_id"])
    finally:
        database.close()


def reserve_for_a_job_that_runs(house: House) -> ObjectId:
    def reserve(tx: TenantTransaction, dataset: str) -> ObjectId:
        plan = (
            ledger()
            .plan(tx, ObjectId(dataset), epsilon=0.3, sample_rate=0.5, steps=10, clip_norm=1.0, n_public=4)
            .mechanism
        )
        held = ledger().reserve(tx, ObjectId(dataset), ObjectId("job_in_flight"), plan, fence=1)
        return ledger().charge(tx, held.id, 2, 1, segment=0).id

    reserved: ObjectId = open_ledger(house.made.data, reserve)
    return reserved


def recorded(data: Path, action: str) -> list[dict[str, Any]]:
    """Return the facts of the log's entries of an action."""
    connection = sqlite3.connect(data / "platform.db")
    bodies = [json.loads(row[0]) for row in connection.execute("SELECT body FROM audit_entries ORDER BY seq")]
    connection.close()
    return [body["facts"] for body in bodies if body["action"] == action]


@pytest.fixture(scope="module")
def drill(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drill]:
    folder = Path(tmp_path_factory.mktemp("drill"))
    house = House(folder)
    house.fill()
    app = house.acme.clients["developer"]
    app.jobs.wait(app.jobs.create(job()).id)
    house.acme.admin.audit.verify()
    checkpoint = newest_checkpoint(house.made.data)
    in_flight = reserve_for_a_job_that_runs(house)
    spent = app.budgets.get("rows").epsilon_spent
    out, keys = folder / "backup", folder / "elsewhere" / "keys.json"
    done = backup(house.made.data, out=out, keys=keys)
    # What comes after the backup and is lost with the disk.
    app.jobs.wait(app.jobs.create(job(into="after")).id)
    house.acme.admin.audit.verify()
    later = newest_checkpoint(house.made.data)
    house.server.close()
    yield Drill(house.made, house.acme, out, keys, done, spent, in_flight, checkpoint, later)
    for tenant in (house.acme, house.globex):
        for client in (tenant.admin, *tenant.clients.values()):
            client.close()
    house.operator.close()


def serve(restored: Installation, check: Callable[[], None]) -> None:
    server = ServerThread(restored)
    try:
        check()
    finally:
        server.close()


def test_the_backup_holds_no_key(drill: Drill) -> None:
    wrapped = [row["wrapped"] for row in json.loads(drill.keys.read_bytes())]
    assert len(wrapped) == 3
    connection = sqlite3.connect(drill.out / "platform.db")
    assert connection.execute("SELECT count(*) FROM wrapped_keks").fetchone() == (0,)
    connection.close()
    for path in drill.out.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert not any(base64.b64decode(one) in content for one in wrapped), path


def test_everything_promised_is_there_and_training_waits(drill: Drill, tmp_path: Path) -> None:
    restored = drill.restore(tmp_path)
    app = drill.acme.clients["developer"]

    def check() -> None:
        assert app.predict("model", [[1.0, 1.0]]) == [[3.5, 6.5]]
        assert app.models.get("trained").latest_version == 1
        assert app.budgets.get("rows").epsilon_spent == drill.spent
        with pytest.raises(BudgetExceededError) as caught:
            app.jobs.create(job(into="again", privacy={"epsilon": 0.3, "clip_norm": 1.0}))
        assert caught.value.code == "budget_frozen"
        public = app.jobs.create(job(dataset="open", privacy=None, into="public"))
        assert app.jobs.wait(public.id).state == "succeeded"

    serve(restored, check)


def test_a_job_that_ran_has_ended_with_a_time_after_which_its_room_is_given_back(tmp_path: Path) -> None:
    made = Installation(tmp_path / "one").init()
    connection = sqlite3.connect(made.data / "platform.db")
    with connection:
        connection.execute(
            "INSERT INTO jobs (tenant_id, id, kind, name, payload, principal, state, cancel, fence, step, steps, "
            "created_at, stored_bytes) VALUES ('t', 'job_1', 'training', 'm', x'00', 'p', 'running', 0, 1, 2, 4, 1, 8)"
        )
    connection.close()
    backup(made.data, out=tmp_path / "out", keys=tmp_path / "keys.json")
    data = tmp_path / "two"
    ended = restore(
        tmp_path / "out", keys=tmp_path / "keys.json", root_key=made.folder / "root.key", data=data
    ).ended_jobs
    assert ended == 1
    connection = sqlite3.connect(data / "platform.db")
    ((state, fence, payload, finished_at),) = connection.execute("SELECT state, fence, payload, finished_at FROM jobs")
    connection.close()
    assert (state, fence, payload) == ("failed", 2, b"")
    assert finished_at > 1_700_000_000


def test_a_client_with_a_later_checkpoint_finds_out(drill: Drill, tmp_path: Path) -> None:
    restored = drill.restore(tmp_path)

    def check() -> None:
        with pytest.raises(RollbackError):
            drill.acme.admin.audit.verify()

    serve(restored, check)


def test_a_checkpoint_that_the_log_contains_frees_the_budgets(drill: Drill, tmp_path: Path) -> None:
    restored = drill.restore(tmp_path)
    assert compare(restored.data, checkpoint=drill.write(tmp_path, drill.checkpoint)).freed
    app = drill.acme.clients["developer"]

    def check() -> None:
        again = app.jobs.create(job(into="again", privacy={"epsilon": 0.3, "clip_norm": 1.0}))
        assert app.jobs.wait(again.id).state == "succeeded"
        assert app.budgets.get("rows").epsilon_spent > drill.spent

    serve(restored, check)
    with pytest.raises(ConflictError) as caught:
        compare(restored.data, checkpoint=drill.write(tmp_path, drill.checkpoint))
    assert caught.value.error_code == "nothing_restored"


def test_the_ledger_restarts_and_says_so(drill: Drill, tmp_path: Path) -> None:
    runner = CliRunner()
    data = tmp_path / "data"
    arguments = ["--keys", str(drill.keys), "--root-key", str(drill.made.folder / "root.key"), "--data", str(data)]
    said = runner.invoke(main, ["restore", str(drill.out), *arguments])
    assert said.exit_code == 0, said.output
    (facts,) = recorded(data, "platform:restore")
    named = f"{facts['ledger_epoch']} ({facts['ledger_epoch_id']}"
    assert facts["ledger_epoch"] == 2
    assert f"The ledger is in epoch {named})" in said.output
    assert {"frozen_budgets": 1, "log_size": drill.done.log_size}.items() <= facts.items()
    looked = runner.invoke(main, ["doctor", "--data", str(data)])
    assert f"ok    the ledger is in epoch {named}, restored " in looked.output
    assert "warn  1 budgets wait to be compared since a restore" in looked.output
    note = str(drill.write(tmp_path, drill.checkpoint))
    compared = runner.invoke(main, ["compare-budgets", "--data", str(data), "--checkpoint", note])
    assert f"The ledger is in epoch {named})" in compared.output
    (freed,) = recorded(data, "platform:compare-budgets")
    assert {"freed": True, "budgets": 1, "ledger_epoch": 2, "ledger_epoch_id": facts["ledger_epoch_id"]}.items() <= (
        freed.items()
    )
    assert "wait to be compared" not in runner.invoke(main, ["doctor", "--data", str(data)]).output


def test_another_restore_of_the_same_backup_has_another_id(drill: Drill, tmp_path: Path) -> None:
    found = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        found += recorded(drill.restore(tmp_path / name).data, "platform:restore")
    assert [facts["ledger_epoch"] for facts in found] == [2, 2]
    assert found[0]["ledger_epoch_id"] != found[1]["ledger_epoch_id"]


def test_a_job_that_ran_through_the_restore_can_move_nothing(drill: Drill, tmp_path: Path) -> None:
    restored = drill.restore(tmp_path)
    compare(restored.data, checkpoint=drill.write(tmp_path, drill.checkpoint))
    moves: list[Callable[[TenantTransaction], object]] = [
        lambda tx: ledger().charge(tx, drill.in_flight, 2, 9, segment=1),
        lambda tx: ledger().commit(tx, drill.in_flight, 9),
        lambda tx: ledger().release(tx, drill.in_flight, 9),
    ]
    for move in moves:
        with pytest.raises(ConflictError) as caught:
            open_ledger(restored.data, lambda tx, _dataset, move=move: move(tx))  # type: ignore[misc]
        assert caught.value.error_code == "stale_ledger_epoch"
    app = drill.acme.clients["developer"]

    def check() -> None:
        budget = app.budgets.get("rows")
        assert budget.epsilon_reserved > 0
        assert [line.steps for line in budget.charges if line.job_id == "job_in_flight"] == [2]

    serve(restored, check)


@pytest.mark.parametrize("with_later", [True, False], ids=["a later checkpoint", "no checkpoint"])
def test_what_may_be_lost_counts_as_spent(drill: Drill, tmp_path: Path, with_later: bool) -> None:
    restored = drill.restore(tmp_path)
    note = drill.write(tmp_path, drill.later) if with_later else None
    assert not compare(restored.data, checkpoint=note).freed
    app = drill.acme.clients["developer"]

    def check() -> None:
        with pytest.raises(BudgetExceededError) as caught:
            app.jobs.create(job(privacy={"epsilon": 0.3, "clip_norm": 1.0}))
        assert (caught.value.code, caught.value.details["reason"]) == ("budget_frozen", "exhausted")

    serve(restored, check)


def test_a_forged_checkpoint_frees_nothing(drill: Drill, tmp_path: Path) -> None:
    restored = drill.restore(tmp_path)
    lines = drill.checkpoint.splitlines(keepends=True)
    for forged in (
        drill.checkpoint.replace(lines[0], "another-log\n", 1),
        drill.checkpoint.replace(lines[1], "1\n", 1),
        drill.checkpoint[:-8],
        "",
    ):
        with pytest.raises(ModelkeepError):
            compare(restored.data, checkpoint=drill.write(tmp_path, forged))
    connection = sqlite3.connect(restored.data / "platform.db")
    assert connection.execute("SELECT DISTINCT frozen FROM privacy_budgets").fetchall() == [("restored",)]
    connection.close()


def change_a_blob(out: Path) -> None:
    blob = next(path for path in sorted((out / "blobs").rglob("*")) if path.is_file())
    content = bytearray(blob.read_bytes())
    content[60] ^= 1
    blob.write_bytes(content)


def drop_a_blob(out: Path) -> None:
    next(path for path in sorted((out / "blobs").rglob("*")) if path.is_file()).unlink()


def change_the_database(out: Path) -> None:
    connection = sqlite3.connect(out / "platform.db")
    connection.execute("UPDATE privacy_budgets SET charged = reserved")
    connection.commit()
    connection.close()


def point_outside(out: Path) -> None:
    manifest = json.loads((out / "backup.json").read_bytes())
    manifest["files"]["../root.key"] = "0" * 64
    (out / "backup.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("harm", [change_a_blob, drop_a_blob, change_the_database, point_outside])
def test_a_backup_that_was_changed_is_refused(drill: Drill, tmp_path: Path, harm: Callable[[Path], None]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(drill.out, copy)
    harm(copy)
    with pytest.raises(IntegrityError) as caught:
        restore(copy, keys=drill.keys, root_key=drill.made.folder / "root.key", data=tmp_path / "data")
    assert caught.value.error_code == "backup_damaged"
    assert not (tmp_path / "data").exists()


def test_nothing_is_overwritten(drill: Drill, tmp_path: Path) -> None:
    for out, keys in (
        (drill.out, tmp_path / "k"),
        (tmp_path / "b", drill.keys),
        (tmp_path / "b", tmp_path / "b" / "k"),
    ):
        with pytest.raises(ConflictError):
            backup(drill.made.data, out=out, keys=keys)
    with pytest.raises(ConflictError):
        restore(drill.out, keys=drill.keys, root_key=drill.made.folder / "root.key", data=drill.made.data)


def other_root(drill: Drill, folder: Path) -> tuple[Path, Path]:
    FileRootKey.create(folder / "other.key", data=folder / "data")
    return drill.keys, folder / "other.key"


def changed_key(drill: Drill, folder: Path) -> tuple[Path, Path]:
    rows = json.loads(drill.keys.read_bytes())
    rows[0]["wrapped"] = rows[1]["wrapped"]
    (folder / "keys.json").write_text(json.dumps(rows))
    return folder / "keys.json", drill.made.folder / "root.key"


def missing_key(drill: Drill, folder: Path) -> tuple[Path, Path]:
    rows = json.loads(drill.keys.read_bytes())
    (folder / "keys.json").write_text(json.dumps([row for row in rows if row["tenant_id"] == PLATFORM]))
    return folder / "keys.json", drill.made.folder / "root.key"


def no_keys(drill: Drill, folder: Path) -> tuple[Path, Path]:
    (folder / "keys.json").write_text('{"not": "a list of keys"}')
    return folder / "keys.json", drill.made.folder / "root.key"


WRONG = {
    "another root key": (other_root, "root_key_other"),
    "two keys swapped": (changed_key, "keys_damaged"),
    "a tenant's key is missing": (missing_key, "keys_other"),
    "no file of keys": (no_keys, "keys_damaged"),
}


@pytest.mark.parametrize(("make", "code"), WRONG.values(), ids=WRONG)
def test_keys_that_do_not_belong_are_refused_before_anything_is_written(
    drill: Drill, tmp_path: Path, make: Callable[[Drill, Path], tuple[Path, Path]], code: str
) -> None:
    keys, root_key = make(drill, tmp_path)
    with pytest.raises(IntegrityError) as caught:
        restore(drill.out, keys=keys, root_key=root_key, data=tmp_path / "data")
    assert caught.value.error_code == code
    assert not [path for path in tmp_path.iterdir() if "data" in path.name]


def test_a_restore_that_fails_midway_leaves_nothing_and_can_be_repeated(
    drill: Drill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "data").mkdir()
    with monkeypatch.context() as patched:
        patched.setattr("modelkeep_platform.app.backup.restoring.begin_restored_epoch", fail)
        with pytest.raises(OSError, match="No space"):
            drill.restore(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert not list((tmp_path / "data").iterdir())
    restored = drill.restore(tmp_path)
    modes = {path.stat().st_mode & 0o777 for path in restored.data.rglob("*") if path.is_dir()}
    assert modes == {0o700}


def test_a_folder_that_holds_something_is_left_alone(drill: Drill, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine").write_text("kept")
    with pytest.raises(ConflictError) as caught:
        drill.restore(tmp_path)
    assert caught.value.error_code == "folder_not_empty"
    assert (tmp_path / "data" / "mine").read_text() == "kept"
