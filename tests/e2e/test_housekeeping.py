"""What is nobody's goes when a server starts and again and again while it runs; what is under way never does."""

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelkeep_platform.app import platform
from modelkeep_platform.core.ids import ObjectId
from services.house import GRAPH, ROWS, SCHEMA, WEIGHTS, House, ServerThread, job, wait_until

pytestmark = pytest.mark.e2e

PUBLIC = {"visibility": "public", "reason": "made up for a test"}


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    house.fill()
    yield house
    house.close()


def plant(house: House, version: int) -> Path:
    """Leave the bytes of a version that no row names, as a deletion does that is stopped halfway."""
    connection = sqlite3.connect(house.made.data / "platform.db")
    ((tenant, model),) = connection.execute("SELECT tenant_id, id FROM models WHERE name = 'model'")
    connection.close()
    folder = house.made.data / "blobs" / tenant / model
    return Path(shutil.copytree(folder / "1", folder / str(version)))


def test_what_a_crash_left_goes_when_a_server_starts(house: House) -> None:
    house.server.close()
    left = plant(house, 7)
    house.server = ServerThread(house.made)
    wait_until(lambda: not left.exists(), "the housekeeper")
    assert house.acme.clients["developer"].models.download("model").weights == WEIGHTS


def test_what_is_left_later_goes_while_the_server_runs(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    assert platform._EXPIRY_S == 600
    house.server.close()
    monkeypatch.setattr(platform, "_EXPIRY_S", 0.1)
    house.server = ServerThread(house.made)
    for version in (8, 9):
        left = plant(house, version)
        wait_until(lambda left=left: not left.exists(), "the housekeeper")
    assert house.acme.clients["developer"].models.download("model").weights == WEIGHTS


CLEANER = """
import sys
from pathlib import Path

from modelkeep_platform.storage.blobs import LocalBlobs
from modelkeep_platform.storage.database import Database
from modelkeep_platform.uploads.orphans import Orphans

data = Path(sys.argv[1])
orphans = Orphans(database=Database(f"sqlite:///{data / 'platform.db'}"), blobs=LocalBlobs(data / "blobs"))
while True:
    orphans.clear()
    print(".", end="", flush=True)
"""


def test_a_cleaner_that_never_rests_takes_nothing_of_what_is_being_made(
    house: House, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    house.server.close()
    monkeypatch.setattr(platform, "_EXPIRY_S", 0.05)
    house.server = ServerThread(house.made)
    rounds = tmp_path / "rounds"
    with rounds.open("wb") as counted:
        other = subprocess.Popen([sys.executable, "-c", CLEANER, str(house.made.data)], stdout=counted)
    wait_until(lambda: rounds.stat().st_size, "a second process to clean")
    app = house.acme.clients["developer"]
    try:
        small = {"dataset": "open", "privacy": None, "checkpoint_every": 1}
        running = [app.jobs.create(job(into=f"t{number}", **small)).id for number in range(3)]
        for number in range(12):
            app.models.upload(f"m{number % 3}", graph=GRAPH, weights=WEIGHTS)
            app.datasets.upload_csv(f"d{number}", ROWS, schema=SCHEMA, privacy=PUBLIC)
            if number % 3 == 2:
                house.acme.admin.models.delete(f"m{number % 2}", version=1 + number // 3)
        assert [app.jobs.wait(job_id).state for job_id in running] == ["succeeded"] * 3
    finally:
        still = other.poll() is None
        other.kill()
        other.wait()
    assert still
    assert rounds.stat().st_size > 10
    for name in ("m0", "m1", "m2", "t0", "t1", "t2"):
        for version in app.models.versions(name):
            found = app.models.download(name, version=version.version)
            assert found.weights == WEIGHTS or name.startswith("t")
    rooms = house.server.platform.rooms
    tenant = rooms.registry.id_of("acme")
    assert tenant is not None
    for number in range(12):
        dataset = ObjectId(app.datasets.get(f"d{number}").id)
        assert b"".join(rooms.datasets.open_rows(tenant, dataset)) == ROWS
