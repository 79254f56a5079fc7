"""What is kept of the disk: nothing new is stored in it, everything else goes on."""

import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.core import FakeClock
from modelkeep_platform.storage.blobs import LocalBlobs, StorageError
from modelkeep_platform.storage.disk import Disk, ReservedBlobs

Usage = namedtuple("Usage", ["total", "used", "free"])  # noqa: PYI024 -- the shape that shutil returns


class Looks:
    """Answers for the operating system."""

    def __init__(self) -> None:
        self.free, self.count = 1000, 0

    def __call__(self, _path: Path) -> Usage:
        self.count += 1
        if self.free < 0:
            raise OSError
        return Usage(2000, 1000, self.free)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Looks]:
    looks = Looks()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", looks)
        yield looks


@pytest.fixture
def disk(looks: Looks, clock: FakeClock, tmp_path: Path) -> Disk:
    return Disk(tmp_path, reserve_bytes=100, clock=clock)


@pytest.mark.parametrize(("free", "room"), [(101, True), (100, False), (0, False), (-1, False)])
def test_there_is_room_above_the_reserve(looks: Looks, disk: Disk, free: int, room: bool) -> None:
    looks.free = free
    assert disk.has_room() is room
    assert disk.free_bytes() == max(free, 0)


def test_a_look_is_a_second_old_at_most(looks: Looks, disk: Disk, clock: FakeClock) -> None:
    for _ in range(100):
        disk.has_room()
    assert looks.count == 1
    looks.free = 0
    clock.advance(0.9)
    assert disk.has_room()
    clock.advance(0.1)
    assert not disk.has_room()


def test_a_full_disk_stores_nothing_new_and_reads_and_deletes(
    looks: Looks, disk: Disk, clock: FakeClock, blobs: LocalBlobs
) -> None:
    kept = ReservedBlobs(blobs, disk=disk)
    kept.put("a/1", b"one")
    assert kept.create("a/2", b"two")
    looks.free = 100
    clock.advance(1)
    for store in (kept.put, kept.create):
        with pytest.raises(StorageError) as caught:
            store("a/3", b"three")
        assert caught.value.error_code == "disk_full"
    assert sorted(kept.keys("a")) == ["a/1", "a/2"]
    assert kept.get("a/1") == b"one"
    kept.delete("a/1")
    kept.delete_prefix("a")
    assert list(kept.keys("a")) == []
    looks.free = 1000
    clock.advance(1)
    assert kept.create("a/3", b"three")
