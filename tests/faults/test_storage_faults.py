"""A disk that is broken or full: during uploads, reads, deletions and jobs.

Each call fails with its status and code, or works all the same where it may; no row changes by a refusal and nothing is
lost; what failed works when the disk does; the log verifies.
"""

import hashlib
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fakes.faulty_disk import READS, WRITES, DiskFault, FaultyDisk
from fakes.rooms import ScriptedRunner, ask, finish, hear_all, hear_brief, honest, send_checkpoint, small_graph
from modelkeep import Client, ClientCredentials
from modelkeep.errors import APIError, NotFoundError, UploadInterruptedError
from modelkeep_platform.app.administration import verify_log
from modelkeep_platform.workers.channel_sync import SyncChannel
from services.evidence import Evidence
from services.house import GRAPH, PRIVATE, ROWS, SCHEMA, WEIGHTS, House, job

pytestmark = pytest.mark.e2e
Script = Callable[[SyncChannel], None]
DAMAGED = {DiskFault.UNREAD: (503, "storage_failed"), DiskFault.SHORT: (500, "sealed_invalid")}
"""What a reader is told: that the disk failed, or that what it gave is not what was sealed."""


class Broken:
    """A platform whose disk breaks; its jobs run when a test says so, by a worker that follows a script."""

    def __init__(self, folder: Path) -> None:
        self.house = house = House(folder)
        house.fill()
        self.platform = house.server.platform
        self.evidence = Evidence(house)
        self.app = house.acme.clients["developer"]
        budget = {**PRIVATE, "budget": {"epsilon": 20.0, "delta": 1e-4}}
        self.app.datasets.upload_csv("many", ROWS, schema=SCHEMA, privacy=budget)
        self.dispatcher = self.platform.rooms.dispatcher
        self.dispatcher.close()
        self.dispatcher._stopping.clear()
        # Whoever is refused must not be answered by a repetition.
        self.once = Client(
            house.url,
            auth=ClientCredentials(*house.acme.secrets["developer"]),
            state_dir=folder / "state" / "once",
            retries=0,
        )
        house.acme.admin.audit.verify()

    def close(self) -> None:
        self.once.close()
        self.house.close()

    def run(self, script: Script) -> None:
        """Run the job that waits."""
        self.dispatcher._runner = ScriptedRunner(script)
        assert self.dispatcher.run_one()

    def blobs(self) -> set[str]:
        root = self.house.made.data / "blobs"
        return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}

    def check(self) -> None:
        """Check what holds whatever broke: nothing is lost, and the log goes on from what is kept of it."""
        assert self.app.models.download("model").weights == WEIGHTS
        self.app.datasets.get("rows")
        self.house.acme.admin.audit.verify()
        self.platform.ground.log.flush()
        verify_log(self.house.made.data)


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broken]:
    broken = Broken(Path(tmp_path_factory.mktemp("broken")))
    yield broken
    broken.close()


@pytest.fixture
def disk(broken: Broken, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyDisk]:
    yield FaultyDisk(monkeypatch)
    broken.check()


@pytest.fixture
def http(broken: Broken) -> Iterator[httpx.Client]:
    with broken.house.http(broken.app) as http:
        yield http


def refused(broken: Broken, answer: httpx.Response, status: int, code: str) -> None:
    """Assert status, code and shape, and that no path is told."""
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    assert set(answer.json()["error"]) == {"code", "message", "request_id", "details"}
    assert str(broken.house.made.folder) not in answer.text


# --- uploads ------------------------------------------------------------------------------------------

MODEL = {"graph": GRAPH, "weights_bytes": len(WEIGHTS), "weights_sha256": hashlib.sha256(WEIGHTS).hexdigest()}
DATASET = {
    "format": "csv",
    "schema": SCHEMA,
    "privacy": PRIVATE,
    "size_bytes": len(ROWS),
    "sha256": hashlib.sha256(ROWS).hexdigest(),
}


def begin(http: httpx.Client, kind: str, name: str) -> tuple[str, bytes]:
    """Declare an upload; return its path and the bytes to send."""
    if kind == "model":
        answer, data = http.post(f"/v1/models/{name}/versions", json=MODEL), WEIGHTS
    else:
        answer, data = http.post("/v1/datasets", json={**DATASET, "name": name}), ROWS
    assert answer.status_code == 201, answer.text
    return f"/v1/uploads/{answer.json()['upload']['id']}", data


def put(http: httpx.Client, path: str, data: bytes) -> httpx.Response:
    digest = b64encode(hashlib.sha256(data).digest()).decode()
    return http.put(f"{path}/parts/0", content=data, headers={"content-digest": f"sha-256=:{digest}:"})


def arrived(broken: Broken, kind: str, name: str) -> bool:
    """Return whether an upload became its object, whole."""
    if kind == "model":
        return bool(broken.app.models.download(name).weights == WEIGHTS)
    return any(one.name == name and one.state == "ready" for one in broken.app.datasets.list())


@pytest.mark.parametrize("kind", ["model", "dataset"])
@pytest.mark.parametrize("fault", WRITES, ids=lambda fault: fault.name)
def test_a_part_that_cannot_be_written_is_refused_and_sent_again(
    broken: Broken, disk: FaultyDisk, http: httpx.Client, kind: str, fault: DiskFault
) -> None:
    name = f"part-{kind}-{fault.name.lower()}"
    path, data = begin(http, kind, name)
    with broken.evidence.nothing_changes(), disk.breaks(fault):
        refused(broken, put(http, path, data), 503, "storage_failed")
    # Also where half of it lies, or all of it: what does not authenticate is replaced, what does is taken.
    assert put(http, path, data).status_code == 200
    assert http.post(f"{path}/complete").status_code == 200
    assert arrived(broken, kind, name)


@pytest.mark.parametrize("kind", ["model", "dataset"])
@pytest.mark.parametrize("fault", [DiskFault.FULL, DiskFault.EIO, DiskFault.TORN], ids=lambda fault: fault.name)
def test_an_upload_whose_manifest_cannot_be_written_stays_open(
    broken: Broken, disk: FaultyDisk, http: httpx.Client, kind: str, fault: DiskFault
) -> None:
    name = f"manifest-{kind}-{fault.name.lower()}"
    path, data = begin(http, kind, name)
    put(http, path, data)
    with broken.evidence.nothing_changes(), disk.breaks(fault, "manifest"):
        refused(broken, http.post(f"{path}/complete"), 503, "storage_failed")
    assert http.get(path).json()["state"] == "open"
    assert http.post(f"{path}/complete").status_code == 200
    assert arrived(broken, kind, name)


@pytest.mark.parametrize("kind", ["model", "dataset"])
@pytest.mark.parametrize("fault", READS, ids=lambda fault: fault.name)
def test_an_upload_that_cannot_be_read_for_its_admission_stays_open(
    broken: Broken, disk: FaultyDisk, http: httpx.Client, kind: str, fault: DiskFault
) -> None:
    name = f"read-{kind}-{fault.name.lower()}"
    path, data = begin(http, kind, name)
    put(http, path, data)
    with broken.evidence.nothing_changes(), disk.breaks(fault):
        refused(broken, http.post(f"{path}/complete"), *DAMAGED[fault])
    assert http.post(f"{path}/complete").status_code == 200
    assert arrived(broken, kind, name)


def test_the_sdk_says_how_to_go_on(broken: Broken, disk: FaultyDisk) -> None:
    with disk.breaks(DiskFault.EIO), pytest.raises(UploadInterruptedError) as caught:
        broken.once.models.upload("resumed", graph=GRAPH, weights=WEIGHTS)
    cause = caught.value.__cause__
    assert isinstance(cause, APIError)
    assert (cause.status, cause.code) == (503, "storage_failed")
    with pytest.raises(NotFoundError):
        broken.app.models.get("resumed")
    broken.once.uploads.resume(caught.value.upload_id, WEIGHTS)
    assert broken.app.models.download("resumed").weights == WEIGHTS


def test_an_upload_is_given_up_on_a_broken_disk(broken: Broken, disk: FaultyDisk, http: httpx.Client) -> None:
    before = broken.blobs()
    path, data = begin(http, "model", "given-up")
    put(http, path, data)
    with disk.breaks(DiskFault.EIO):
        answer = http.delete(path)
    refused(broken, answer, 503, "storage_failed")
    assert http.get(path).json()["state"] == "aborted"
    assert http.delete(path).status_code == 204
    broken.platform.rooms.upload_endings.expire()
    assert broken.blobs() == before


# --- reads --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", READS, ids=lambda fault: fault.name)
def test_what_cannot_be_read_whole_is_never_shown(
    broken: Broken, disk: FaultyDisk, http: httpx.Client, fault: DiskFault
) -> None:
    with disk.breaks(fault):
        answer = http.get("/v1/models/model/versions/1/weights")
    refused(broken, answer, *DAMAGED[fault])
    assert http.get("/v1/models/model/versions/1/weights").content == WEIGHTS


# --- deletions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["model", "version", "dataset"])
def test_what_is_deleted_is_gone_though_its_bytes_cannot_be_deleted_yet(
    broken: Broken, disk: FaultyDisk, http: httpx.Client, what: str
) -> None:
    before, name = broken.blobs(), f"deleted-{what}"
    if what == "dataset":
        path, data = begin(http, "dataset", name)
        put(http, path, data)
        http.post(f"{path}/complete")
    else:
        broken.app.models.upload(name, graph=GRAPH, weights=WEIGHTS)
    of = {"model": f"models/{name}", "version": f"models/{name}/versions/1", "dataset": f"datasets/{name}"}[what]
    with disk.breaks(DiskFault.EIO):
        answer = http.delete(f"/v1/{of}")
    assert answer.status_code == 204, answer.text
    (entry,) = broken.evidence.entries(answer.headers["x-request-id"])
    assert (entry.action, entry.outcome) == (f"{of.partition('s/')[0]}:delete", "done")
    assert http.get(f"/v1/{of}").status_code == 404
    assert broken.blobs() > before
    broken.platform._orphans.clear()
    assert broken.blobs() == before


# --- jobs ---------------------------------------------------------------------------------------------


def declared(into: str, **changes: Any) -> dict[str, Any]:
    """Return a small private job whose graph a scripted worker has weights for."""
    return job(dataset="many", into=into, model={"graph": small_graph()}, **changes)


def keeping(channel: SyncChannel) -> None:
    """Run each step as declared, with a checkpoint after every second."""
    fields, _ = hear_brief(channel)
    for number in range(fields["begin"], fields["spec"]["steps"]):
        ask(channel, number, 1)
        if number % 2:
            send_checkpoint(channel, number + 1)
    finish(channel, fields)


def unheard(channel: SyncChannel) -> None:
    """Take whatever comes of a brief."""
    hear_all(channel)


def ended(broken: Broken, job_id: str) -> tuple[str, str, int]:
    """Return how a job ended, its error and how many steps were charged of it; check its entry."""
    found = broken.app.jobs.get(job_id)
    entries = broken.house.acme.admin.audit.entries(limit=50)
    (entry,) = [one for one in entries if one.action == "job:end" and one.object_id == job_id]
    assert entry.outcome == {"succeeded": "done"}.get(found.state, found.state)
    state = broken.evidence.state()
    (row,) = [row for row in state["privacy_reservations"] if job_id in row]
    assert "'open'" not in row
    charged = int(row.partition("'charged_steps': ")[2].partition(",")[0].partition("}")[0])
    return found.state, found.error.code if found.error else "", charged


@pytest.mark.parametrize("fault", [DiskFault.FULL, DiskFault.EIO, DiskFault.TORN], ids=lambda fault: fault.name)
def test_a_checkpoint_that_cannot_be_kept_ends_its_job_and_no_other(
    broken: Broken, disk: FaultyDisk, fault: DiskFault
) -> None:
    name = f"kept-{fault.name.lower()}"
    started = broken.app.jobs.create(declared(name, checkpoint_every=2))
    with disk.breaks(fault, "/checkpoint/"):
        broken.run(keeping)
    # What ran stays charged, the rest is returned.
    assert ended(broken, started.id) == ("failed", "storage_failed", 2)
    with pytest.raises(NotFoundError):
        broken.app.models.get(name)
    again = broken.app.jobs.create(declared(name, checkpoint_every=2))
    broken.run(keeping)
    assert ended(broken, again.id) == ("succeeded", "", 4)
    assert broken.app.models.get(name).latest_version == 1


@pytest.mark.parametrize("fault", READS, ids=lambda fault: fault.name)
@pytest.mark.parametrize("part", ["/dataset/", "/checkpoint/"], ids=["rows", "checkpoint"])
def test_a_job_does_not_go_on_from_what_cannot_be_read(
    broken: Broken, disk: FaultyDisk, part: str, fault: DiskFault
) -> None:
    name = f"on-{part.strip('/')}-{fault.name.lower()}"

    def stopping(channel: SyncChannel) -> None:
        hear_brief(channel)
        for number in range(2):
            ask(channel, number, 1)
        broken.dispatcher._stopping.set()
        assert ask(channel, 2, 1) == "stop"
        send_checkpoint(channel, 2)

    started = broken.app.jobs.create(declared(name))
    broken.run(stopping)
    broken.dispatcher._stopping.clear()
    assert broken.app.jobs.get(started.id).state == "queued"
    with disk.breaks(fault, part):
        broken.run(unheard)
    code = DAMAGED[fault][1]
    assert ended(broken, started.id) == ("failed", code, 2)
    again = broken.app.jobs.create(declared(name))
    broken.run(honest)
    assert ended(broken, again.id) == ("succeeded", "", 4)


# --- the database -------------------------------------------------------------------------------------


def test_a_full_database_refuses_and_recovers(broken: Broken, disk: FaultyDisk, http: httpx.Client) -> None:
    with disk.database_is_full():
        n, before, answer = 0, broken.evidence.state(), http.post("/v1/models/full/versions", json=MODEL)
        while answer.status_code == 201 and n < 100:
            n, before, answer = n + 1, broken.evidence.state(), http.post(f"/v1/models/full{n}/versions", json=MODEL)
        assert broken.evidence.state() == before
    refused(broken, answer, 503, "disk_full")
    broken.app.models.upload("space", graph=GRAPH, weights=WEIGHTS)
    assert broken.app.models.download("space").weights == WEIGHTS
