"""What was set for one tenant holds for it alone, from the epoch of its change; the settings hold for the rest."""

import pytest

from fakes.core import ACME, GLOBEX, FakeEpoch
from modelkeep_platform.core.ids import PLATFORM, PrincipalId, TenantId
from modelkeep_platform.core.limits import TenantLimits
from modelkeep_platform.limits.store import LimitStore
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.tables.limits import tenant_limits
from modelkeep_platform.storage.transactions import System

BY = System(reason="test")
DEFAULTS = TenantLimits(members=5, storage_mib=7)


@pytest.fixture
def epoch() -> FakeEpoch:
    return FakeEpoch()


@pytest.fixture
def store(database: Database, epoch: FakeEpoch) -> LimitStore:
    return LimitStore(database=database, defaults=DEFAULTS, epoch=epoch)


def change(database: Database, store: LimitStore, tenant: TenantId = ACME, **limits: int | None) -> dict[str, int]:
    with database.tenant(tenant, by=BY) as tx:
        store.change(tx, limits, by=PrincipalId("op"), at=17)
        return store.own(tx)


def test_without_anything_set_the_settings_hold(store: LimitStore) -> None:
    assert store.of(ACME) == store.of(PLATFORM) == store.last_known(GLOBEX) == DEFAULTS


def test_what_is_set_holds_for_its_tenant_and_from_the_next_epoch(
    database: Database, store: LimitStore, epoch: FakeEpoch
) -> None:
    before = store.of(ACME)
    assert change(database, store, members=9, open_uploads=0) == {"members": 9, "open_uploads": 0}
    assert store.cached(ACME) == before, "the epoch has not moved"
    epoch.refresh()
    assert store.cached(ACME) is None
    assert store.last_known(ACME) == before
    found = store.of(ACME)
    assert (found.members, found.open_uploads, found.storage_mib) == (9, 0, 7)
    assert store.cached(ACME) == store.last_known(ACME) == found
    assert store.of(GLOBEX) == DEFAULTS


def test_setting_again_replaces_and_none_takes_back(database: Database, store: LimitStore) -> None:
    change(database, store, members=9, storage_mib=1)
    assert change(database, store, members=10) == {"members": 10, "storage_mib": 1}
    assert change(database, store, members=None, open_uploads=None) == {"storage_mib": 1}
    with database.tenant(ACME, by=BY, read_only=True) as tx:
        (row,) = tx.all(tx.select(tenant_limits))
    assert (row["name"], row["value"], row["set_by"], row["set_at"]) == ("storage_mib", 1, "op", 17)


def test_a_limit_of_another_version_is_left_alone(database: Database, store: LimitStore) -> None:
    with database.tenant(ACME, by=BY) as tx:
        tx.insert(tenant_limits, name="of_tomorrow", value=1, set_by="op", set_at=1)
    assert change(database, store, members=3) == {"members": 3}
    assert store.of(ACME).members == 3


def test_memory_is_bounded_by_forgetting_the_oldest(store: LimitStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelkeep_platform.limits.store._CACHED", 2)
    for tenant in (ACME, GLOBEX, PLATFORM):
        store.of(tenant)
    assert store.cached(ACME) is None
    assert store.cached(PLATFORM) is not None
