"""Fixtures that every family of tests shares."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.core import FakeClock, FakeEntropy, FakeRecorder
from fakes.storage import fresh
from modelkeep_platform.storage.blobs import LocalBlobs
from modelkeep_platform.storage.database import Database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """A fresh SQLite file with every table."""
    database = fresh(f"sqlite:///{tmp_path / 'platform.db'}")
    yield database
    database.close()


@pytest.fixture
def blobs(tmp_path: Path) -> LocalBlobs:
    """An empty folder of blobs."""
    return LocalBlobs(tmp_path / "blobs")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def entropy() -> FakeEntropy:
    return FakeEntropy()


@pytest.fixture
def recorder() -> FakeRecorder:
    return FakeRecorder()
