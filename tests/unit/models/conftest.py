"""A registry over real storage and uploads."""

import pytest

from fakes.core import FakeClock, FakeEntropy, FakeRecorder
from fakes.registry import ModelRoom
from modelkeep_platform.storage.blobs import LocalBlobs
from modelkeep_platform.storage.database import Database


@pytest.fixture
def room(
    database: Database, blobs: LocalBlobs, clock: FakeClock, entropy: FakeEntropy, recorder: FakeRecorder
) -> ModelRoom:
    return ModelRoom(database, blobs, clock, entropy, recorder)
