"""One identity room a test, with passwords that are cheap to hash."""

import pytest

from fakes.core import FakeClock, FakeRecorder
from fakes.identity import IdentityRoom
from modelkeep_platform.identity import secrets
from modelkeep_platform.storage.database import Database


@pytest.fixture
def room(database: Database, clock: FakeClock, recorder: FakeRecorder, monkeypatch: pytest.MonkeyPatch) -> IdentityRoom:
    monkeypatch.setattr(secrets, "MEMORY_KIB", 64)
    return IdentityRoom(database, clock, recorder)
