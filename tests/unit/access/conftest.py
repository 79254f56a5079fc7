"""The access room, one a test."""

import pytest

from fakes.access import AccessRoom
from fakes.core import FakeClock, FakeRecorder
from modelkeep_platform.storage.database import Database


@pytest.fixture
def room(database: Database, clock: FakeClock, recorder: FakeRecorder) -> AccessRoom:
    return AccessRoom(database, clock, recorder)
