"""Bytes that are nobody's go; bytes that are under way never do, wherever another process's cleaner stands."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fakes.core import ACME, GLOBEX, FakeClock, FakeEntropy, FakeRecorder, tenant_caller
from fakes.faulty_blobs import Crash, Fault, FaultyBlobs, MemoryBlobs
from fakes.graphs import encoded, weights_of
from fakes.registry import GRAPH, LAYER, WEIGHTS, ModelRoom, memory_room
from fakes.rooms import CELLS, DataRoom, cells
from fakes.sealed_room import memory_database
from modelkeep_platform.core.errors import ConflictError
from modelkeep_platform.core.ids import ObjectId
from modelkeep_platform.core.sealing import Purpose
from modelkeep_platform.uploads import artifacts, rows
from modelkeep_platform.uploads.orphans import Orphans
from modelkeep_platform.uploads.rows import Upload

ME = tenant_caller()
PART_BYTES = 64


class Watched(MemoryBlobs):
    """Calls `point` before and after every write, where another process may do anything."""

    def __init__(self) -> None:
        super().__init__()
        self.point: Callable[[], None] = lambda: None

    def put(self, key: str, data: bytes) -> None:
        self.point()
        super().put(key, data)
        self.point()

    def create(self, key: str, data: bytes) -> bool:
        self.point()
        stored = super().create(key, data)
        self.point()
        return stored


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (artifacts, rows):
        monkeypatch.setattr(module, "MAX_PART_BYTES", PART_BYTES)


@pytest.fixture
def room(small_parts: None) -> Iterator[ModelRoom]:
    with memory_room() as room:
        room.blobs = room.artifacts._blobs = Watched()
        room.orphans = Orphans(database=room.database, blobs=room.blobs)
        yield room


@pytest.fixture
def data_room(small_parts: None) -> Iterator[DataRoom]:
    database = memory_database()
    yield DataRoom(database, Watched(), FakeClock(), FakeEntropy(), FakeRecorder())
    database.close()


def send(room: Any, upload: Upload, data: bytes) -> None:
    for number in range(upload.parts):
        part = data[number * PART_BYTES : (number + 1) * PART_BYTES]
        room.uploads.put_part(ME, upload.id, number, part, hashlib.sha256(part).digest())


def upload_a_model(room: ModelRoom, _name: str, between: Callable[[], None]) -> bytes:
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    new = room.admission.create_version(ME, "cells", encoded(LAYER), len(WEIGHTS), digest)
    between()
    send(room, new.upload, WEIGHTS)
    version = room.admission.complete(ME, new.upload.id).version
    between()
    return b"".join(room.models.export_weights(ME, "cells", str(version))[1])


def train_a_model(room: ModelRoom, name: str, between: Callable[[], None]) -> bytes:
    new = room.begin(job=name)
    between()
    made = room.trained.store(ACME, new, GRAPH, [WEIGHTS[at : at + 50] for at in range(0, len(WEIGHTS), 50)])
    room.publish(made, job=name)
    between()
    return b"".join(room.models.export_weights(ME, "cells", str(new.version))[1])


def upload_a_dataset(room: DataRoom, name: str, between: Callable[[], None]) -> bytes:
    data = cells(8)
    new = room.datasets.create(ME, {**CELLS, "name": name}, len(data), hashlib.sha256(data).hexdigest())
    between()
    send(room, new.upload, data)
    room.datasets.complete(ME, new.upload.id)
    between()
    return b"".join(room.datasets.open_rows(ACME, new.dataset_id))


Act = Callable[[Any, str, Callable[[], None]], bytes]


def interleaved(room: Any, act: Act, lists_at: int, reads_at: int) -> tuple[bytes, int]:
    """Let another process's cleaner list at one point of `act` and read rows at another; return what is there after."""
    other = Orphans(database=room.database, blobs=room.blobs)
    passed, listed = 0, set[tuple[str, str]]()

    def point() -> None:
        nonlocal passed, listed
        passed += 1
        if passed == lists_at:
            listed = other._places(ACME)
        if passed == reads_at:
            for object_id, version in other._garbage(ACME, listed):
                room.blobs.delete_prefix(f"{ACME}/{object_id}/{version}")

    room.blobs.point = point
    try:
        return act(room, f"x{lists_at}-{reads_at}", point), passed
    finally:
        room.blobs.point = lambda: None


@pytest.mark.parametrize(
    ("where", "act", "whole"),
    [
        pytest.param("room", upload_a_model, WEIGHTS, id="an upload of a model"),
        pytest.param("room", train_a_model, WEIGHTS, id="a version that a job makes"),
        pytest.param("data_room", upload_a_dataset, cells(8), id="an upload of a dataset"),
    ],
)
def test_what_is_being_written_is_never_taken_for_garbage(
    request: pytest.FixtureRequest, where: str, act: Act, whole: bytes
) -> None:
    room = request.getfixturevalue(where)
    kept, points = interleaved(room, act, 0, 0)
    assert kept == whole
    assert points >= 8
    for lists_at in range(1, points + 1):
        for reads_at in range(lists_at, points + 1):
            assert interleaved(room, act, lists_at, reads_at) == (whole, points), (lists_at, reads_at)
    assert room.orphans.clear() == 0


def places(room: ModelRoom) -> set[str]:
    """Return the numbers of versions that have bytes."""
    return {key.split("/")[2] for key in room.blobs.keys(ACME)}


@pytest.mark.parametrize("fault", [Fault.BEFORE, Fault.AFTER, Fault.EIO])
@pytest.mark.parametrize("delete", range(3))
def test_what_an_interrupted_deletion_of_a_version_left_goes_and_the_others_stay(
    room: ModelRoom, fault: Fault, delete: int
) -> None:
    for fill in range(3):
        room.add(fill=fill)
    room.artifacts._blobs = blobs = FaultyBlobs(room.blobs)
    blobs.order("delete", fault, after=delete)
    # A device that fails is no error of a deletion: its rows are gone.
    with contextlib.nullcontext() if fault is Fault.EIO else pytest.raises(Crash):
        room.models.delete_version(ME, "cells", "2")
    assert places(room) == {"1", "2", "3"}
    assert room.orphans.clear() == 1
    assert places(room) == {"1", "3"}
    for number, fill in ((1, 0), (3, 2)):
        assert b"".join(room.models.export_weights(ME, "cells", str(number))[1]) == weights_of(GRAPH, fill=fill)
    assert room.orphans.clear() == 0


def test_what_a_job_that_ended_otherwise_had_written_goes_and_the_versions_before_it_stay(room: ModelRoom) -> None:
    room.add(fill=1)
    room.trained.store(ACME, room.begin(), GRAPH, [WEIGHTS])
    room.artifacts._blobs = blobs = FaultyBlobs(room.blobs)
    blobs.order("delete", Fault.BEFORE)
    with pytest.raises(Crash):
        room.drop()
    assert places(room) == {"1", "2"}
    assert room.orphans.clear() == 1
    assert places(room) == {"1"}
    assert room.add().version == 3


def test_what_a_zombie_writes_after_its_job_was_ended_goes(room: ModelRoom) -> None:
    room.add(fill=1)
    new = room.begin()

    def slow() -> Iterator[bytes]:
        yield WEIGHTS[:100]
        room.drop()
        assert room.orphans.clear() == 0
        yield WEIGHTS[100:]

    made = room.trained.store(ACME, new, GRAPH, slow())
    with pytest.raises(ConflictError):
        room.publish(made)
    assert places(room) == {"1", "2"}
    assert room.orphans.clear() == 1
    assert places(room) == {"1"}


def test_a_part_that_comes_when_its_upload_was_given_up_and_swept_goes(room: ModelRoom) -> None:
    room.add(fill=1)
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    upload = room.admission.create_version(ME, "cells", encoded(LAYER), len(WEIGHTS), digest).upload
    room.uploads.abort(ME, upload.id)
    # Its server was about to write it, and died before it noticed that the upload is over.
    room.artifacts.put_part(ACME, upload.object_id, upload.version, Purpose.WEIGHTS, 0, WEIGHTS[:PART_BYTES])
    assert room.upload_endings.expire() == 0
    assert places(room) == {"1", "2"}
    assert room.orphans.clear() == 1
    assert places(room) == {"1"}


def test_what_has_no_key_goes_whatever_it_was(room: ModelRoom) -> None:
    made = room.add()
    theirs = room.add(caller=tenant_caller(GLOBEX))
    with room.database.tenant(ACME, by=ME) as tx:
        room.sealer.destroy_key(tx, ACME, made.model_id)
    room.blobs.put(f"{ACME}/dat_1/1/dataset/part-0", b"x")
    room.blobs.put(f"{ACME}/job_1/40/checkpoint/part-0", b"x")
    assert room.orphans.clear() == 3
    assert list(room.blobs.keys(ACME)) == []
    assert len(list(room.blobs.keys(f"{GLOBEX}/{theirs.model_id}"))) > 1


def test_a_checkpoint_stays_while_its_job_has_its_key(room: ModelRoom) -> None:
    with room.database.tenant(ACME, by=ME) as tx:
        room.sealer.create_key(tx, ACME, ObjectId("job_1"))
    room.blobs.put(f"{ACME}/job_1/40/checkpoint/part-0", b"x")
    assert room.orphans.clear() == 0
    with room.database.tenant(ACME, by=ME) as tx:
        room.sealer.destroy_key(tx, ACME, ObjectId("job_1"))
    assert room.orphans.clear() == 1
