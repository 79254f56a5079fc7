"""The real authorizer over a real database, made once: cases clean up after themselves."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.access import AccessRoom, quick_database
from fakes.core import FakeClock, FakeRecorder


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AccessRoom]:
    database = quick_database(Path(tmp_path_factory.mktemp("policy")) / "policy.db")
    yield AccessRoom(database, FakeClock(), FakeRecorder())
    database.close()
