"""One running platform for the pages whose snippets are executed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.house import House


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A platform with Acme, Globex and Acme's things."""
    house = House(Path(tmp_path_factory.mktemp("docs")))
    house.fill()
    yield house
    house.close()
