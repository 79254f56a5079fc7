"""A registry over storage and uploads in memory."""

from collections.abc import Iterator

import pytest

from fakes.registry import ModelRoom, memory_room


@pytest.fixture
def room() -> Iterator[ModelRoom]:
    with memory_room() as room:
        yield room
