"""Local blobs: durable when put returns, keyed by the platform alone."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from modelkeep_platform.core.errors import IntegrityError
from modelkeep_platform.storage import blobs as module
from modelkeep_platform.storage.blobs import LocalBlobs, StorageError


def test_what_was_put_comes_back_and_a_second_put_replaces_it(blobs: LocalBlobs) -> None:
    blobs.put("tenant/object/1/weights/part-0", b"one")
    assert blobs.get("tenant/object/1/weights/part-0") == b"one"
    blobs.put("tenant/object/1/weights/part-0", b"")
    assert blobs.get("tenant/object/1/weights/part-0") == b""


def test_a_missing_blob_is_an_integrity_error_without_its_path(blobs: LocalBlobs) -> None:
    with pytest.raises(IntegrityError) as caught:
        blobs.get("tenant/object/1/nothing")
    assert caught.value.error_code == "blob_missing"
    assert "tenant" not in caught.value.message


BAD_KEYS = {
    "empty": "",
    "absolute": "/etc/passwd",
    "parent": "../x",
    "parent inside": "a/../b",
    "own folder": "a/./b",
    "hidden": "a/.b",
    "empty folder": "a//b",
    "folder": "a/b/",
    "newline": "a/b\n",
    "nul": "a\0b",
    "backslash": "a\\b",
    "percent": "a/%2e%2e/b",
    "space": "a b",
    "not ASCII": "a/ä",
}


@pytest.mark.parametrize("key", BAD_KEYS.values(), ids=BAD_KEYS.keys())
def test_a_key_the_platform_would_not_make_is_refused(blobs: LocalBlobs, key: str) -> None:
    for call in (lambda: blobs.put(key, b""), lambda: blobs.get(key), lambda: blobs.delete(key)):
        with pytest.raises(ValueError, match="not a blob key"):
            call()
    with pytest.raises(ValueError, match="not a blob key"):
        blobs.delete_prefix(key)


def test_one_blob_is_deleted_and_the_missing_are_no_error(blobs: LocalBlobs) -> None:
    blobs.put("a/1", b"x")
    blobs.put("a/2", b"x")
    blobs.delete("a/1")
    blobs.delete("a/1")
    assert list(blobs.keys("a")) == ["a/2"]


def test_a_prefix_is_a_folder_and_not_a_beginning(blobs: LocalBlobs) -> None:
    for key in ("a/1/x", "a/1/y", "a/10/x", "a/1x", "b/1/x"):
        blobs.put(key, b"x")
    blobs.delete_prefix("a/1")
    assert sorted([*blobs.keys("a"), *blobs.keys("b")]) == ["a/10/x", "a/1x", "b/1/x"]
    blobs.delete_prefix("a/1")


def test_file_and_every_folder_up_to_the_root_are_synced_before_put_returns(
    blobs: LocalBlobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(module, "fsync", synced.append)
    blobs.put("a/b/c", b"x")
    root = tmp_path / "blobs"
    assert synced == [root / "a/b/c", root / "a/b", root / "a", root]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC], ids=["EIO", "disk full"])
def test_a_put_that_cannot_be_synced_raises(blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    for store in (blobs.put, blobs.create):
        with pytest.raises(StorageError) as caught:
            store("a/b", b"x")
        assert caught.value.error_code == "storage_failed"
        assert "blobs" not in caught.value.message


def test_a_blob_that_cannot_be_read_is_said_to_be_so_and_not_to_be_missing(blobs: LocalBlobs, tmp_path: Path) -> None:
    blobs.put("a/b", b"x")
    for call in (lambda: blobs.get("a/b/c"), lambda: blobs.put("a/b/c", b"")):
        with pytest.raises(StorageError) as caught:
            call()
        assert str(tmp_path) not in str(caught.value)


def test_create_stores_once_and_syncs_what_another_stored(blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(module, "fsync", synced.append)
    assert blobs.create("a/b", b"first")
    once = list(synced)
    assert not blobs.create("a/b", b"second")
    assert synced == once * 2
    assert blobs.get("a/b") == b"first"


_DIES_WRITING = """
import resource, signal, sys
from pathlib import Path
from modelkeep_platform.storage.blobs import LocalBlobs
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
getattr(LocalBlobs(Path(sys.argv[1])), sys.argv[2])("a/b", bytes(5000))
"""


@pytest.mark.parametrize("call", ["put", "create"])
def test_what_a_process_left_that_died_while_it_wrote_is_no_blob_and_goes(
    blobs: LocalBlobs, tmp_path: Path, call: str
) -> None:
    died = subprocess.run([sys.executable, "-c", _DIES_WRITING, tmp_path / "blobs", call], check=False)
    assert died.returncode == -signal.SIGXFSZ
    (left,) = [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]
    assert (list(blobs.keys("a")), left.stat().st_size) == ([], 1000)
    blobs.put("a/b", b"whole")
    written_s = int(left.stat().st_mtime)
    assert blobs.clear_half_written(before_s=written_s) == 0  # it may be under way
    assert left.exists()
    assert blobs.clear_half_written(before_s=written_s + 1) == 1
    assert not left.exists()
    assert blobs.get("a/b") == b"whole"


def test_the_folder_is_the_owners_alone(tmp_path: Path) -> None:
    LocalBlobs(tmp_path / "new" / "blobs")
    assert (tmp_path / "new" / "blobs").stat().st_mode & 0o777 == 0o700
