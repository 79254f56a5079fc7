"""One identity room a test."""

import pytest

from fakes.core import FakeClock, FakeRecorder
from fakes.identity import IdentityRoom
from modelkeep_platform.storage.database import Database


@pytest.fixture
def room(database: Database, clock: FakeClock, recorder: FakeRecorder) -> IdentityRoom:
    return IdentityRoom(database, clock, recorder)
