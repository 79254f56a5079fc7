"""One world for the tests of a file: what one leaves behind must not harm the next."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.harness import World


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """An installation whose server can be killed."""
    with World(Path(tmp_path_factory.mktemp("world"))) as world:
        world.fill()
        yield world
