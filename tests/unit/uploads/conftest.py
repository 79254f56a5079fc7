"""Uploads of small parts over a database in memory."""

from collections.abc import Iterator

import pytest

from fakes.core import FakeClock
from fakes.sealed_room import PART_BYTES, SealedRoom, memory_database
from modelkeep_platform.uploads import artifacts, rows


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch, clock: FakeClock) -> Iterator[SealedRoom]:
    for module in (artifacts, rows):
        monkeypatch.setattr(module, "MAX_PART_BYTES", PART_BYTES)
    database = memory_database()
    yield SealedRoom(database, clock)
    database.close()
