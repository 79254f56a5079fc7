"""Reading the log: what was never published is refused in the caller's words; its threads outlive errors."""

import base64
from typing import cast

import pytest
import sqlalchemy as sa

from fakes.audit import ORIGIN, Log, event
from fakes.core import GLOBEX, FakeClock, FakeEntropy, tenant_caller
from modelkeep_platform.audit import integrator as integrators
from modelkeep_platform.audit.checkpoint import Checkpoint, CheckpointError, key_hash
from modelkeep_platform.audit.integrator import Integrator
from modelkeep_platform.audit.log import AuditLog
from modelkeep_platform.audit.merkle import ProofError, inclusion_path, verify_consistency
from modelkeep_platform.core.callers import TenantCaller
from modelkeep_platform.core.decisions import Attributes, Decision
from modelkeep_platform.core.errors import IntegrityError, MalformedError, NotFoundError, UnprocessableError
from modelkeep_platform.core.ports import Transaction
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.pages import PageRequest
from modelkeep_platform.storage.tables.audit import audit_checkpoints, audit_entries, audit_nodes


@pytest.fixture
def log(database: Database, clock: FakeClock) -> Log:
    return Log(database, clock)


@pytest.mark.parametrize("after", ["x", "-1", "²", "٣", "1" * 19, "1 ", "1e3", "\x00"])
def test_a_cursor_that_was_not_given_out_is_refused(log: Log, after: str) -> None:
    cursor = base64.urlsafe_b64encode(after.encode()).decode()
    with pytest.raises(MalformedError) as caught:
        log.service.entries(tenant_caller(), PageRequest(cursor=cursor))
    assert caught.value.error_code == "invalid_page"


def test_entries_are_found_by_their_request(log: Log) -> None:
    log.grow(2)
    assert len(log.service.entries(tenant_caller(), PageRequest(), request_id="request-1").items) == 2
    assert log.service.entries(tenant_caller(), PageRequest(), request_id="request-2").items == []
    assert log.service.entries(tenant_caller(GLOBEX), PageRequest(), request_id="request-1").items == []


@pytest.mark.parametrize("size", [2, 3, 6, 10**14], ids=["before-the-entry", "not-published", "one-more", "huge"])
def test_a_proof_at_a_size_that_was_not_published_is_the_callers_mistake(log: Log, size: int) -> None:
    log.grow(2)
    log.grow(3)
    with pytest.raises(UnprocessableError) as caught:
        log.service.inclusion(tenant_caller(), 2, size)
    assert caught.value.error_code == "invalid_log_size"


def test_a_proof_at_an_earlier_published_size(log: Log) -> None:
    log.grow(2)
    log.grow(3)
    assert log.service.inclusion(tenant_caller(), 1, 2).size == 2


def test_a_log_without_a_checkpoint_says_so(log: Log) -> None:
    with pytest.raises(UnprocessableError) as caught:
        log.service.checkpoint(tenant_caller())
    assert caught.value.error_code == "invalid_log_size"


def test_an_entry_that_is_not_there_is_never_shown_even_if_policy_errs(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    def allow(
        caller: TenantCaller, action: object, ref: object, attributes: Attributes | None = None
    ) -> Decision | None:
        return None

    monkeypatch.setattr(log.service._authorizer, "require", allow)
    with pytest.raises(AssertionError):
        log.service.inclusion(tenant_caller(), 0)
    monkeypatch.undo()
    with pytest.raises(NotFoundError):
        log.service.inclusion(tenant_caller(), 0)


def test_an_entry_may_have_no_actor(log: Log) -> None:
    log.record(event(actor=None, personal={"source": "192.0.2.1"}))
    (shown,) = log.service.entries(tenant_caller(), PageRequest()).items
    assert (shown.actor_tenant, shown.principal, shown.request_id) == (None, None, None)
    assert shown.facts == {"source": "192.0.2.1"}


def test_the_logs_key_is_named_as_its_checkpoints_name_it(log: Log) -> None:
    log.grow(1)
    note = log.service.checkpoint(tenant_caller())
    key = log.service.key(tenant_caller())
    assert (key.name, key.algorithm) == (ORIGIN, "Ed25519")
    assert base64.b64decode(key.public_key) == log.signer.public_key()
    signature = base64.b64decode(note.rstrip("\n").rsplit(" ", 1)[1])
    assert signature[:4] == key_hash(ORIGIN, log.signer.public_key())


def test_without_new_entries_nothing_new_is_signed(log: Log) -> None:
    log.grow(2)
    note = log.service.checkpoint(tenant_caller())
    assert log.integrator.integrate_now() == 2
    assert log.service.checkpoint(tenant_caller()) == note


def test_a_log_that_was_emptied_is_not_begun_again(log: Log) -> None:
    log.grow(3)
    log.tamper(sa.delete(audit_checkpoints), sa.delete(audit_nodes), sa.update(audit_entries).values(log_index=None))
    with pytest.raises(IntegrityError) as caught:
        log.integrator.integrate_now()
    assert caught.value.error_code == "log_changed"


def test_a_tree_with_a_hole_gives_no_proof(log: Log) -> None:
    log.grow(3)
    log.tamper(sa.delete(audit_nodes).where(audit_nodes.c.level == 0, audit_nodes.c.position == 1))
    with pytest.raises(IntegrityError) as caught:
        log.service.inclusion(tenant_caller(), 0)
    assert caught.value.error_code == "audit_damaged"


def test_the_log_takes_only_open_transactions(log: Log) -> None:
    with pytest.raises(TypeError):
        log.log.record(cast("Transaction", object()), event())


def test_the_queue_shows_how_many_wait_and_whether_it_takes_more(log: Log) -> None:
    assert (log.log.queued, log.log.accepting) == (0, True)
    log.log.flush()
    log.log.record_soon(event())
    assert (log.log.queued, log.log.accepting) == (1, True)
    log.log.close()
    assert log.log.accepting is False


def test_an_entry_whose_key_was_destroyed_meanwhile_holds_up_nobody(log: Log) -> None:
    log.log.record_soon(event())
    log.sealer.keys.clear()
    log.log.flush()
    assert log.log.queued == 0
    (shown,) = log.service.entries(tenant_caller(), PageRequest()).items
    assert shown.name is None
    with pytest.raises(IntegrityError):  # what is recorded with its effect fails with it
        log.record(event())


def test_many_entries_are_integrated_in_groups(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integrators, "GROUP", 2)
    for _ in range(5):
        log.record(event())
    assert log.integrator.integrate_now() == 5
    assert log.checkpoint().size == 5


def break_table(log: Log) -> None:
    log.tamper(sa.text("ALTER TABLE audit_entries RENAME TO gone"))


def test_the_integrator_outlives_an_error_and_says_so(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    break_table(log)
    log.integrator.start()
    log.integrator.close()
    assert "could not be integrated" in caplog.text
    log.tamper(sa.text("ALTER TABLE gone RENAME TO audit_entries"))
    assert log.integrator.integrate_now() == 0


def test_the_writer_outlives_an_error_and_says_what_it_could_not_write(
    log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    break_table(log)
    log.log.record_soon(event())
    log.log.start()
    log.log.close()
    assert "could not be committed" in caplog.text


def test_what_was_never_started_can_be_closed(database: Database, log: Log, clock: FakeClock) -> None:
    AuditLog(database=database, sealer=log.sealer, clock=clock, entropy=FakeEntropy()).close()
    Integrator(database=database, signer=log.signer, origin=ORIGIN, clock=clock, entropy=FakeEntropy()).close()


@pytest.mark.parametrize(("size", "root"), [(-1, bytes(32)), (1 << 63, bytes(32)), (0, bytes(31))])
def test_what_no_log_has_is_no_checkpoint(size: int, root: bytes) -> None:
    with pytest.raises(CheckpointError):
        Checkpoint(origin=ORIGIN, size=size, root=root)


def test_proofs_know_their_bounds() -> None:
    with pytest.raises(ProofError):
        verify_consistency(3, 5, bytes(32), bytes(32), [])
    with pytest.raises(ProofError):
        inclusion_path(3, 3, lambda level, index: bytes(32))
    with pytest.raises(ProofError):
        verify_consistency(1, 4, bytes(32), bytes(32), [])
