"""The access room, one a test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.access import AccessRoom, quick_database
from fakes.core import FakeClock, FakeRecorder


@pytest.fixture
def room(tmp_path: Path, clock: FakeClock, recorder: FakeRecorder) -> Iterator[AccessRoom]:
    database = quick_database(tmp_path / "access.db")
    yield AccessRoom(database, clock, recorder)
    database.close()
