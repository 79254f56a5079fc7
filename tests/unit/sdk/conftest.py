"""A fake platform, a clock, and a client of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.sdk import FakeTime, fake_client
from fakes.server import FakePlatform
from modelkeep._core.flows import Sync
from modelkeep.client import Nouns


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def platform(time: FakeTime) -> FakePlatform:
    return FakePlatform(now_s=time)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def client(platform: FakePlatform, folder: Path, time: FakeTime) -> Iterator[Nouns[Sync]]:
    with fake_client(platform, folder, time) as client:
        yield client
