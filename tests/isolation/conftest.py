"""One running platform for the whole matrix, with one of everything in Acme, and Globex outside."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from isolation.things import Things
from services.evidence import Evidence
from services.house import House


@pytest.fixture(scope="package")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A platform with Acme, Globex and things of both; each refusal is an entry of its own, however many there are."""
    house = House(
        Path(tmp_path_factory.mktemp("isolation")),
        tenant_refusals_per_minute=1_000_000,
        principal_refusals_per_minute=1_000_000,
    )
    house.fill()
    house.fill(house.globex)
    yield house
    house.close()


@pytest.fixture(scope="package")
def things(house: House) -> Things:
    """The ids of Acme's things."""
    return Things.make(house)


@pytest.fixture(scope="package")
def evidence(house: House, things: Things) -> Evidence:
    """What calls leave behind, once all things are made."""
    return Evidence(house)
