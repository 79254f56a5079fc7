"""The training room with one private and one public dataset."""

import pytest

from fakes.core import FakeClock, FakeEntropy, FakeRecorder
from fakes.rooms import CELLS, OPEN_CELLS, TrainingRoom, cells
from modelkeep_platform.storage.blobs import LocalBlobs
from modelkeep_platform.storage.database import Database


@pytest.fixture
def room(
    database: Database, blobs: LocalBlobs, clock: FakeClock, entropy: FakeEntropy, recorder: FakeRecorder
) -> TrainingRoom:
    room = TrainingRoom(database, blobs, clock, entropy, recorder)
    room.add(CELLS, cells())
    room.add(OPEN_CELLS, cells())
    recorder.events.clear()
    return room
