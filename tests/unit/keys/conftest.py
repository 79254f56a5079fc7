"""The key tree over a real database."""

import pytest

from fakes.core import FakeClock
from fakes.sealed_room import SealedRoom
from modelkeep_platform.storage.database import Database


@pytest.fixture
def room(database: Database, clock: FakeClock) -> SealedRoom:
    return SealedRoom(database, clock)
