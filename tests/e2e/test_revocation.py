"""A running job ends when what allowed it is gone: on a real server with a real worker."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelkeep.errors import ModelkeepError
from services.house import House, job, wait_until

pytestmark = pytest.mark.e2e

LONG_FROM_BASE = job(
    into="learnt", model={"name": "acme~model"}, steps=20_000, privacy={"epsilon": 0.4, "clip_norm": 1.0}
)
LONG = job(dataset="acme~rows", into="learnt", steps=20_000, privacy={"epsilon": 0.4, "clip_norm": 1.0})


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A platform of this test's own: it suspends and revokes."""
    house = House(tmp_path)
    house.fill()
    yield house
    house.close()


def revoke_the_grant(house: House) -> Callable[[], object]:
    (grant,) = house.acme.admin.grants.list()
    house.acme.admin.grants.revoke(grant.id)
    return lambda: None


def suspend_the_tenant(house: House) -> Callable[[], object]:
    house.operator.tenants.suspend("globex")
    return lambda: house.operator.tenants.resume("globex")


def delete_the_account(house: House) -> Callable[[], object]:
    client_id, _ = house.globex.secrets["developer"]
    (account,) = [one for one in house.globex.admin.service_accounts.list() if one.client_id == client_id]
    house.globex.admin.service_accounts.delete(account.id)
    return lambda: None


@pytest.mark.parametrize("change", [revoke_the_grant, suspend_the_tenant, delete_the_account])
def test_a_running_job_ends_when_its_right_is_gone(
    house: House, change: Callable[[House], Callable[[], object]]
) -> None:
    house.acme.admin.grants.create("dataset", "rows", grantee="globex", actions=["dataset:read", "dataset:train"])
    running = house.globex.clients["developer"].jobs.create(LONG)
    reader = house.globex.admin
    wait_until(lambda: reader.jobs.get(running.id).progress.step > 0, "a first step")
    restore = change(house)
    # Seen by the dataset's owner: a suspended tenant cannot look.
    wait_until(lambda: house.acme.admin.budgets.get("rows").epsilon_reserved == 0, "the end of the job")
    restore()
    ended = reader.jobs.get(running.id)
    assert ended.error is not None
    assert (ended.state, ended.error.code) == ("failed", "job_revoked")
    assert ended.progress.step < LONG["steps"]
    budget = house.acme.admin.budgets.get("rows")
    assert 0 < budget.epsilon_spent < 0.4
    assert budget.epsilon_reserved == 0
    with pytest.raises(ModelkeepError):
        reader.models.get("learnt")


def suspend_the_owner(house: House) -> Callable[[], object]:
    house.operator.tenants.suspend("acme")
    return lambda: house.operator.tenants.resume("acme")


def delete_the_version(house: House) -> Callable[[], object]:
    house.acme.admin.models.delete("model", version=1)
    return lambda: None


@pytest.mark.parametrize("change", [revoke_the_grant, suspend_the_owner, delete_the_version])
def test_a_running_job_ends_when_it_may_not_have_its_base_any_more(
    house: House, change: Callable[[House], Callable[[], object]]
) -> None:
    house.fill(house.globex)
    house.acme.admin.grants.create("model", "model", grantee="globex", actions=["model:export"])
    reader = house.globex.admin
    running = house.globex.clients["developer"].jobs.create(LONG_FROM_BASE)
    wait_until(lambda: reader.jobs.get(running.id).progress.step > 0, "a first step")
    restore = change(house)
    wait_until(lambda: reader.jobs.get(running.id).done, "the end of the job")
    restore()
    ended = reader.jobs.get(running.id)
    assert ended.error is not None
    assert (ended.state, ended.error.code) == ("failed", "job_revoked")
    assert ended.progress.step < LONG_FROM_BASE["steps"]
    budget = reader.budgets.get("rows")
    assert 0 < budget.epsilon_spent < 0.4
    assert budget.epsilon_reserved == 0
    with pytest.raises(ModelkeepError):
        reader.models.get("learnt")
