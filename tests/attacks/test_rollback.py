"""Old files put back: whoever holds a later checkpoint finds out. The family *Rollback*; tests/e2e/test_backup too."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelkeep.errors import AuditError, ForkError, RollbackError
from services.house import House, Installation, ServerThread, job, wait_until

pytestmark = pytest.mark.e2e


class Lab:
    """An installation whose folder was copied while an auditor held an early checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.house = House(folder)
        self.house.fill()
        self.made: Installation = self.house.made
        self.admin = self.house.acme.admin
        self.app = self.house.acme.clients["developer"]
        self.early = self.admin.audit.verify()
        self.house.server.close()
        self.copy = folder / "copy"
        shutil.copytree(self.made.data, self.copy)
        self.server = ServerThread(self.made)

    def put_back(self) -> None:
        """Put the old files back, as somebody with the disk could."""
        self.server.close()
        shutil.rmtree(self.made.data)
        shutil.copytree(self.copy, self.made.data)
        self.server = ServerThread(self.made)

    def close(self) -> None:
        self.server.close()
        for tenant in (self.house.acme, self.house.globex):
            for client in (tenant.admin, *tenant.clients.values()):
                client.close()
        self.house.operator.close()


def in_the_log(lab: Lab, action: str) -> bool:
    return any(entry.action == action and entry.index is not None for entry in lab.admin.audit.entries(limit=20))


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.close()


def test_a_client_with_a_later_checkpoint_finds_a_rollback(lab: Lab) -> None:
    lab.app.jobs.wait(lab.app.jobs.create(job()).id)
    wait_until(lambda: in_the_log(lab, "job:end"), "the entry to be in the log")
    later = lab.admin.audit.verify()
    assert later.size > lab.early.size
    lab.put_back()
    assert lab.app.budgets.get("rows").epsilon_spent == 0, "the old ledger knows nothing of what was spent"
    with pytest.raises(RollbackError):
        lab.admin.audit.verify()
    with pytest.raises(RollbackError):
        lab.admin.audit.verify()


def size_of(checkpoint: str) -> int:
    return int(checkpoint.splitlines()[1])


def test_a_log_that_grew_past_the_checkpoint_again_is_a_fork(lab: Lab) -> None:
    account = lab.admin.service_accounts.create("one", roles=["analyst"])
    lab.admin.service_accounts.delete(account.service_account.id)
    wait_until(lambda: in_the_log(lab, "service_account:delete"), "the entry to be in the log")
    later = lab.admin.audit.verify()
    lab.put_back()
    with lab.house.http(lab.admin) as http:
        while not ((answer := http.get("/v1/audit/checkpoint")).is_success and size_of(answer.text) > later.size):
            assert http.get("/v1/models/never").status_code == 404
            time.sleep(0.05)
    with pytest.raises(AuditError) as caught:
        lab.admin.audit.verify()
    assert isinstance(caught.value, ForkError)


def test_without_a_later_checkpoint_nothing_shows(lab: Lab) -> None:
    # Said in the docs, and asserted here so that nobody reads more into the log than it can prove.
    lab.put_back()
    assert lab.admin.audit.verify().size >= lab.early.size
