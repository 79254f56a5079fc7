"""Fixtures that every family of tests shares."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from fakes.core import FakeClock, FakeEntropy, FakeRecorder
from modelkeep_platform.storage.blobs import LocalBlobs
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.schema import metadata
from modelkeep_platform.storage.tables.epoch import epoch


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """A fresh SQLite file with every table."""
    database = Database(f"sqlite:///{tmp_path / 'platform.db'}")
    metadata.create_all(database.engine)
    with database.platform() as tx:
        tx.execute(sa.insert(epoch).values(id=1, number=1))
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
