"""The real authorizer over a real database, made once: cases clean up after themselves."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from fakes.access import AccessRoom
from fakes.core import FakeClock, FakeRecorder
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.schema import metadata
from modelkeep_platform.storage.tables.epoch import epoch


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AccessRoom]:
    path = Path(tmp_path_factory.mktemp("policy")) / "platform.db"
    database = Database(f"sqlite:///{path}")
    metadata.create_all(database.engine)
    with database.platform() as tx:
        tx.execute(sa.insert(epoch).values(id=1, number=1))
    yield AccessRoom(database, FakeClock(), FakeRecorder())
    database.close()
