"""One running platform for the whole matrix, with one of everything in Acme, and Globex outside."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from isolation.things import Things
from services.house import House


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A platform with Acme, Globex and Acme's things."""
    house = House(Path(tmp_path_factory.mktemp("isolation")))
    house.fill()
    yield house
    house.close()


@pytest.fixture(scope="session")
def things(house: House) -> Things:
    """The ids of Acme's things."""
    return Things.make(house)
