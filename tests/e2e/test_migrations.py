"""An installation in use, with the database of an earlier version, is upgraded and goes on where it was."""

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import CliRunner

from modelkeep import ClientCredentials
from modelkeep_platform.app.installation import open_database
from modelkeep_platform.cli.main import main
from modelkeep_platform.storage import migrate
from services.house import House, Installation, ServerThread, Tenant, job
from services.revisions import EARLIER, downgrade

pytestmark = pytest.mark.e2e
KEPT: Final = Path(__file__).resolve().parents[1] / "vectors" / "earlier"


@dataclass(slots=True)
class Used:
    """An installation that was in use, and what was true then."""

    made: Installation
    acme: Tenant
    spent: float
    total: float
    log_size: int


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Used]:
    folder = Path(tmp_path_factory.mktemp("used"))
    house = House(folder)
    house.fill()
    app = house.acme.clients["developer"]
    assert app.jobs.wait(app.jobs.create(job()).id).state == "succeeded"
    budget = app.budgets.get("rows")
    assert budget.epsilon_spent > 0
    log = house.acme.admin.audit.verify()
    house.server.close()
    yield Used(house.made, house.acme, budget.epsilon_spent, budget.epsilon, log.size)
    for tenant in (house.acme, house.globex):
        for client in (tenant.admin, *tenant.clients.values()):
            client.close()
    house.operator.close()


def taken_at(used: Used, revision: str, folder: Path) -> Installation:
    """Return a copy of the installation as the version with that revision would have left it."""
    copy = Installation(folder / "copy", url=used.made.url, operator_secret=used.made.operator_secret)
    shutil.copytree(used.made.data, copy.data)
    database = open_database(copy.data)
    try:
        downgrade(database, revision)
        assert migrate.current(database) == revision
    finally:
        database.close()
    return copy


def migrated(made: Installation) -> None:
    """Upgrade an installation as its operator does, and see that this is asked for, needed once, and keeps the log."""
    runner, data = CliRunner(), str(made.data)
    serve = [sys.executable, "-m", "modelkeep_platform", "serve", "--data", data]
    refused = subprocess.run(serve, capture_output=True, text=True, check=False, timeout=60)
    assert refused.returncode == 1
    assert "modelkeep-platform migrate" in refused.stderr
    said = runner.invoke(main, ["migrate", "--data", data])
    assert (said.exit_code, said.output) == (0, f"The database is at revision {migrate.newest()}.\n")
    again = runner.invoke(main, ["migrate", "--data", data])
    assert (again.exit_code, again.output) == (0, said.output)
    checked = runner.invoke(main, ["audit", "verify", "--data", data])
    assert checked.exit_code == 0, checked.output


@pytest.mark.parametrize("revision", sorted({EARLIER[0], EARLIER[-1]}))  # each costs two starts of workers
def test_an_installation_of_an_earlier_version_goes_on(used: Used, revision: str, tmp_path: Path) -> None:
    made = taken_at(used, revision, tmp_path)
    migrated(made)
    app, admin = used.acme.clients["developer"], used.acme.admin
    server = ServerThread(made)
    try:
        assert app.predict("model", [[1.0, 1.0]]) == [[3.5, 6.5]]
        assert app.models.get("trained").latest_version == 1
        budget = app.budgets.get("rows")
        assert (budget.epsilon_spent, budget.epsilon) == (used.spent, used.total)
        # The client kept a checkpoint of before: the log holds it and has grown from it.
        log = admin.audit.verify()
        assert log.extends
        assert log.size >= used.log_size
        more = app.jobs.create(job(into="more", privacy={"epsilon": 0.3, "clip_norm": 1.0}))
        assert app.jobs.wait(more.id).state == "succeeded"
        assert used.spent < app.budgets.get("rows").epsilon_spent
    finally:
        server.close()


def left_behind(revision: str, folder: Path) -> tuple[Installation, dict[str, Any]]:
    """Return a kept installation of an earlier version at an address that is free here, and what was true of it."""
    kept = KEPT / revision
    true: dict[str, Any] = json.loads((kept / "true.json").read_text())
    made = Installation(folder, operator_secret=true["operator_secret"])
    made.data.mkdir(mode=0o700)
    (folder / "root.key").touch(mode=0o600)
    (folder / "root.key").write_bytes((kept / "root.key").read_bytes())
    settings = (kept / "settings.toml").read_text()
    for old, new in (
        (true["url"], made.url),
        (f"port = {true['url'].rpartition(':')[2]}\n", f"port = {made.url.rpartition(':')[2]}\n"),
        ("/etc/modelkeep/root.key", str(folder / "root.key")),
    ):
        assert old in settings
        settings = settings.replace(old, new)
    (made.data / "settings.toml").write_text(settings)
    with closing(sqlite3.connect(made.data / "platform.db")) as connection:
        connection.executescript((kept / "platform.sql").read_text().replace(true["url"], made.url))
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [(revision,)]
    shutil.copytree(kept / "blobs", made.data / "blobs")
    return made, true


@pytest.mark.parametrize("revision", sorted(path.parent.name for path in KEPT.glob("*/true.json")))
def test_what_an_earlier_version_left_behind_goes_on(revision: str, tmp_path: Path) -> None:
    made, true = left_behind(revision, tmp_path)
    migrated(made)
    server = ServerThread(made)
    try:
        with (
            made.operator() as operator,
            made.client(ClientCredentials(*true["developer"]), "developer") as app,
            made.client(ClientCredentials(*true["auditor"]), "auditor") as auditor,
        ):
            assert operator.tenants.get("acme").state == "active"
            for name, answer in true["predicted"].items():
                assert app.predict(name, [[1.0, 1.0]]) == [pytest.approx(row) for row in answer]
                assert app.models.download(name).weights
            assert app.jobs.get(true["job"]).state == "succeeded"
            budget = app.budgets.get("rows")
            assert (budget.epsilon_spent, budget.epsilon) == (true["epsilon_spent"], true["epsilon"])
            more = app.jobs.create(job(into="more", privacy={"epsilon": 0.3, "clip_norm": 1.0}))
            assert app.jobs.wait(more.id).state == "succeeded"
            assert app.budgets.get("rows").epsilon_spent > budget.epsilon_spent
            assert auditor.audit.verify().size > true["log_size"]
    finally:
        server.close()


def test_the_version_before_this_one_is_kept() -> None:
    assert (KEPT / EARLIER[-1] / "true.json").exists()
