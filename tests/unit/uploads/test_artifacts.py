"""Artifacts: what is written comes back, part by part, and the manifest says what it is."""

import hashlib

import pytest

from fakes.core import ACME
from fakes.faulty_blobs import Fault
from fakes.sealed_room import PART_BYTES, SealedRoom
from modelkeep_platform.core.errors import IntegrityError, UnavailableError
from modelkeep_platform.core.ids import ObjectId
from modelkeep_platform.core.sealing import Purpose
from modelkeep_platform.uploads.artifacts import Manifest, PartDigest

ONE = ObjectId("mdl_1")
WHERE = (ACME, ONE, 1, Purpose.CHECKPOINT)


@pytest.fixture(autouse=True)
def _key(room: SealedRoom) -> None:
    room.key_for(ONE)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("length", [0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES])
@pytest.mark.parametrize("chunk", [1, 7, PART_BYTES, 1000])
def test_any_length_in_any_chunks_comes_back_in_parts(room: SealedRoom, length: int, chunk: int) -> None:
    data = bytes(range(250))[:length] if length < 250 else bytes(length)
    manifest = room.artifacts.write(*WHERE, (data[at : at + chunk] for at in range(0, length, chunk)))
    assert (manifest.size_bytes, manifest.sha256) == (length, _digest(data))
    assert [part.size_bytes for part in manifest.parts] == [
        min(PART_BYTES, length - at) for at in range(0, length, PART_BYTES)
    ]
    read = list(room.artifacts.read(*WHERE))
    assert b"".join(read) == data
    assert [_digest(part) for part in read] == [part.sha256 for part in manifest.parts]
    assert room.artifacts.manifest(*WHERE) == manifest


def test_no_plaintext_lies_in_the_store_nor_its_digest(room: SealedRoom) -> None:
    data = b"the weights of the model" * 8
    room.artifacts.write(*WHERE, [data])
    stored = b"".join(room.memory.data.values()) + " ".join(room.memory.data).encode()
    assert b"weights of" not in stored
    assert _digest(data).encode() not in stored


def test_without_its_manifest_nothing_is_read(room: SealedRoom) -> None:
    room.artifacts.put_part(*WHERE, 0, b"part")
    with pytest.raises(IntegrityError) as raised:
        list(room.artifacts.read(*WHERE))
    assert raised.value.error_code == "blob_missing"


def test_a_writer_that_fails_midway_makes_nothing_readable(room: SealedRoom) -> None:
    room.blobs.order("write", Fault.FULL, after=1)
    with pytest.raises(UnavailableError):
        room.artifacts.write(*WHERE, [bytes(3 * PART_BYTES)])
    with pytest.raises(IntegrityError):
        list(room.artifacts.read(*WHERE))


def test_a_manifest_that_does_not_fit_the_parts_is_refused(room: SealedRoom) -> None:
    room.artifacts.put_part(*WHERE, 0, b"part")
    wrong = Manifest(4, _digest(b"part"), [PartDigest(4, _digest(b"trap"))])
    room.artifacts.put_manifest(*WHERE, wrong)
    with pytest.raises(IntegrityError) as raised:
        list(room.artifacts.read(*WHERE))
    assert raised.value.error_code == "part_mismatch"


def test_a_part_is_added_once_and_never_replaced_by_other_bytes(room: SealedRoom) -> None:
    store = room.artifacts
    assert store.add_part(*WHERE, 0, b"first")
    before = dict(room.memory.data)
    assert store.add_part(*WHERE, 0, b"first")
    assert not store.add_part(*WHERE, 0, b"second")
    assert room.memory.data == before


def test_a_torn_part_is_replaced(room: SealedRoom) -> None:
    store = room.artifacts
    store.add_part(*WHERE, 0, b"first")
    (key,) = room.memory.data
    room.memory.data[key] = room.memory.data[key][:-3]
    assert store.add_part(*WHERE, 0, b"second")
    assert store.open_part(*WHERE, 0) == b"second"


def test_deleting_a_version_leaves_the_others_and_deleting_the_object_leaves_none(room: SealedRoom) -> None:
    for version in (1, 2, 10):
        room.artifacts.write(ACME, ONE, version, Purpose.WEIGHTS, [b"x"])
    room.artifacts.delete(ACME, ONE, 1)
    assert {key.split("/")[2] for key in room.memory.data} == {"2", "10"}
    room.artifacts.delete(ACME, ONE)
    assert room.memory.data == {}
