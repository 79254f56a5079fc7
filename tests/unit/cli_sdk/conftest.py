"""A terminal and the fake platform it talks to."""

from pathlib import Path

import pytest

from fakes.sdk import FakeTime
from fakes.server import FakePlatform
from fakes.terminal import Terminal


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def platform(time: FakeTime) -> FakePlatform:
    return FakePlatform(now_s=time)


@pytest.fixture
def terminal(platform: FakePlatform, time: FakeTime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    return Terminal(platform, tmp_path / "state", time, monkeypatch)
