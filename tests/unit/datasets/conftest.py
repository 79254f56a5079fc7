"""A dataset service over real storage, uploads and ledger."""

import json
from collections.abc import Callable

import pytest

from fakes.core import FakeClock, FakeEntropy, FakeRecorder
from fakes.rooms import DataRoom
from modelkeep_platform.storage.blobs import LocalBlobs
from modelkeep_platform.storage.database import Database


@pytest.fixture
def room(
    database: Database, blobs: LocalBlobs, clock: FakeClock, entropy: FakeEntropy, recorder: FakeRecorder
) -> DataRoom:
    return DataRoom(database, blobs, clock, entropy, recorder)


@pytest.fixture
def events(recorder: FakeRecorder) -> Callable[[], list[tuple[str, str]]]:
    """Return the (action, outcome) pairs recorded so far."""
    return lambda: [(str(event.action), str(event.outcome)) for event in recorder.events]


@pytest.fixture
def recorded(recorder: FakeRecorder) -> Callable[[], str]:
    """Return everything recorded so far as one text, to look for what must not be in it."""
    return lambda: json.dumps([[dict(event.facts), dict(event.personal)] for event in recorder.events])
