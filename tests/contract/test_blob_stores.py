"""What every blob store promises, over the fakes and the real one."""

from pathlib import Path

import pytest

from fakes.faulty_blobs import FaultyBlobs, MemoryBlobs
from modelkeep_platform.core.errors import IntegrityError
from modelkeep_platform.storage.blobs import BlobStore, LocalBlobs


@pytest.fixture(params=["memory", "faulty", "local"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    if request.param == "memory":
        return MemoryBlobs()
    return FaultyBlobs(MemoryBlobs()) if request.param == "faulty" else LocalBlobs(tmp_path / "blobs")


def test_put_replaces_and_create_does_not(store: BlobStore) -> None:
    assert store.create("a/1", b"one")
    assert not store.create("a/1", b"two")
    assert store.get("a/1") == b"one"
    store.put("a/1", b"three")
    assert store.get("a/1") == b"three"
    assert not store.create("a/1", b"four")


def test_what_was_deleted_is_missing_and_can_be_created_again(store: BlobStore) -> None:
    store.put("a/1", b"one")
    store.delete("a/1")
    store.delete("a/1")
    with pytest.raises(IntegrityError) as raised:
        store.get("a/1")
    assert raised.value.error_code == "blob_missing"
    assert store.create("a/1", b"")
    assert store.get("a/1") == b""


def test_a_prefix_is_a_folder(store: BlobStore) -> None:
    for key in ("a/1/x", "a/1/y", "a/10/x", "b/1/x"):
        store.put(key, b"x")
    assert sorted(store.keys("a")) == ["a/1/x", "a/1/y", "a/10/x"]
    store.delete_prefix("a/1")
    store.delete_prefix("a/1")
    assert sorted([*store.keys("a"), *store.keys("b")]) == ["a/10/x", "b/1/x"]
