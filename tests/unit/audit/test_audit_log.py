"""Entries, integration, checkpoints and proofs, over a real database; and what someone who edits it gets."""

import base64
import json

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fakes.audit import MODEL, ORIGIN, Log, event
from fakes.core import ACME, GLOBEX, FakeClock, operator_caller, tenant_caller
from fakes.log import FakeSigner
from fakes.storage import writing
from modelkeep_platform.audit.checkpoint import Checkpoint, CheckpointError, sign, verify
from modelkeep_platform.audit.integrator import LEASE_S
from modelkeep_platform.audit.log import MAX_QUEUED
from modelkeep_platform.audit.merkle import ProofError, verify_consistency, verify_inclusion
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import Role
from modelkeep_platform.core.decisions import Decision, Side
from modelkeep_platform.core.errors import (
    ForbiddenError,
    IntegrityError,
    NotFoundError,
    UnavailableError,
    UnprocessableError,
)
from modelkeep_platform.core.ids import PLATFORM
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.pages import PageRequest
from modelkeep_platform.storage.tables.audit import audit_entries, audit_lease, audit_nodes


@pytest.fixture
def log(database: Database, clock: FakeClock) -> Log:
    return Log(database, clock)


def test_an_entry_is_readable_by_its_tenant_and_proven_in_the_checkpoint(log: Log) -> None:
    for _ in range(5):
        log.record(event(facts={"version": 3}, personal={"note": "n"}))
    assert log.integrator.integrate_now() == 5
    page = log.service.entries(tenant_caller(), PageRequest(limit=2))
    entry = page.items[0]
    assert (entry.index, entry.action, entry.outcome, entry.name) == (4, "model:read", "done", "alice")
    assert entry.facts == {"version": 3, "note": "n"}
    rest = log.service.entries(tenant_caller(), PageRequest(limit=3, cursor=page.next_cursor))
    assert [item.index for item in rest.items] == [2, 1, 0]
    assert rest.next_cursor is None
    proof = log.service.inclusion(tenant_caller(), 2)
    checkpoint = verify(proof.checkpoint, origin=ORIGIN, public_key=log.signer.public_key())
    verify_inclusion(
        base64.b64decode(proof.leaf_hash),
        2,
        checkpoint.size,
        checkpoint.root,
        [base64.b64decode(h) for h in proof.hashes],
    )


def test_an_older_checkpoint_is_a_prefix_of_a_newer_one(log: Log) -> None:
    caller = tenant_caller()
    roots = {}
    for size in range(1, 12):
        log.record(event())
        log.integrator.integrate_now()
        roots[size] = verify(log.service.checkpoint(caller), origin=ORIGIN, public_key=log.signer.public_key()).root
    for old in range(1, 12):
        proof = log.service.consistency(caller, old, 11)
        verify_consistency(old, 11, roots[old], roots[11], [base64.b64decode(h) for h in proof.hashes])


def test_personal_fields_are_sealed_and_a_foreign_actor_is_named_only_in_its_own_log(log: Log) -> None:
    log.record(event(actor=tenant_caller(GLOBEX, name="bob")))
    with log.database.platform(read_only=True) as tx:
        bodies = [json.loads(row["body"]) for row in tx.all(sa.select(audit_entries).order_by(audit_entries.c.seq))]
    assert [body["tenant"] for body in bodies] == [ACME, GLOBEX]
    assert bodies[0]["personal"] == ""
    assert bodies[0]["actor"] == {"tenant": GLOBEX, "kind": "user"}
    assert all("bob" not in json.dumps({**body, "personal": ""}) for body in bodies)
    assert log.service.entries(tenant_caller(), PageRequest()).items[0].name is None
    assert log.service.entries(tenant_caller(GLOBEX), PageRequest()).items[0].name == "bob"


def test_each_log_names_the_policies_of_its_own_tenant_alone(log: Log) -> None:
    decision = Decision(
        allow=True,
        action=Action.MODEL_PREDICT,
        ref=MODEL,
        caller_tenant=GLOBEX,
        sides=(
            Side(tenant=GLOBEX, policies=("developer-builds", "callers-own"), policy_version=7),
            Side(tenant=ACME, policies=("grant", "owners-own"), policy_version=3),
        ),
        grant_id="grt_1",
    )
    log.record(event(actor=tenant_caller(GLOBEX), decision=decision))
    log.record(event(actor=operator_caller(), decision=decision))
    with log.database.platform(read_only=True) as tx:
        bodies = [json.loads(row["body"]) for row in tx.all(sa.select(audit_entries).order_by(audit_entries.c.seq))]
    assert [(body["tenant"], body["policies"], body["policy_version"], body["grant"]) for body in bodies] == [
        (ACME, ["grant", "owners-own"], 3, "grt_1"),
        (GLOBEX, ["developer-builds", "callers-own"], 7, "grt_1"),
        (ACME, ["grant", "owners-own"], 3, "grt_1"),
        (PLATFORM, [], None, "grt_1"),
    ]


def test_a_shredded_audit_key_blanks_names_and_the_log_still_verifies(log: Log) -> None:
    log.record(event())
    log.integrator.integrate_now()
    log.sealer.keys.clear()
    assert log.service.entries(tenant_caller(), PageRequest()).items[0].facts == {"personal": "unreadable"}
    assert log.service.inclusion(tenant_caller(), 0).size == 1


def test_operators_are_recorded_in_the_platform_log_alone(log: Log) -> None:
    log.record(event(tenant=PLATFORM, actor=operator_caller(), action=Action.TENANT_CREATE, ref=None))
    assert log.service.entries(operator_caller(), PageRequest()).items[0].name == "operator"
    assert log.service.entries(tenant_caller(), PageRequest()).items == []


def test_what_an_operator_does_to_a_tenant_is_in_both_logs_and_only_the_platforms_names_the_operator(log: Log) -> None:
    log.record(event(actor=operator_caller(), action=Action.TENANT_LIMIT, ref=None, facts={"members": 3}))
    (own,) = log.service.entries(tenant_caller(), PageRequest()).items
    (platforms,) = log.service.entries(operator_caller(), PageRequest()).items
    for entry in (own, platforms):
        assert (entry.action, entry.actor_tenant, entry.actor_kind) == ("tenant:limit", PLATFORM, "operator")
        assert entry.facts == {"members": 3}
    assert (own.name, own.principal, platforms.name) == (None, None, "operator")


def test_another_tenants_entry_has_no_proof(log: Log) -> None:
    log.record(event())
    log.integrator.integrate_now()
    with pytest.raises(NotFoundError):
        log.service.inclusion(tenant_caller(GLOBEX), 0)
    with pytest.raises(NotFoundError):
        log.service.inclusion(tenant_caller(GLOBEX), 99)


@pytest.mark.parametrize("read", ["entries", "checkpoint", "key", "inclusion", "consistency"])
def test_every_reading_asks_policy(log: Log, read: str) -> None:
    arguments: list[object] = {"entries": [PageRequest()], "inclusion": [0], "consistency": [0]}.get(read, [])  # type: ignore[assignment]
    with pytest.raises(ForbiddenError):
        getattr(log.service, read)(tenant_caller(ACME, Role.ANALYST), *arguments)


@pytest.mark.parametrize(("old", "new"), [(2, 1), (0, 9), (-1, 1)])
def test_sizes_that_the_log_never_had_are_refused(log: Log, old: int, new: int) -> None:
    log.record(event())
    log.integrator.integrate_now()
    with pytest.raises(UnprocessableError) as caught:
        log.service.consistency(tenant_caller(), old, new)
    assert caught.value.error_code == "invalid_log_size"


def test_edited_and_deleted_entries_no_longer_match_their_proof(log: Log) -> None:
    for _ in range(4):
        log.record(event())
    log.integrator.integrate_now()
    with log.database.platform() as tx:
        tx.execute(sa.update(audit_entries).where(audit_entries.c.log_index == 1).values(body=b'{"forged":1}'))
    proof = log.service.inclusion(tenant_caller(), 1)
    root = verify(proof.checkpoint, origin=ORIGIN, public_key=log.signer.public_key()).root
    with pytest.raises(ProofError):
        verify_inclusion(base64.b64decode(proof.leaf_hash), 1, 4, root, [base64.b64decode(h) for h in proof.hashes])


def test_a_tree_that_was_changed_is_not_signed(log: Log) -> None:
    for _ in range(3):
        log.record(event())
    log.integrator.integrate_now()
    with log.database.platform() as tx:
        tx.execute(
            sa.update(audit_nodes).where(audit_nodes.c.level == 0, audit_nodes.c.position == 2).values(hash=bytes(32))
        )
    log.record(event())
    with pytest.raises(IntegrityError) as caught:
        log.integrator.integrate_now()
    assert caught.value.error_code == "log_changed"
    assert log.service.checkpoint(tenant_caller()).split("\n")[1] == "3"


def test_only_the_lease_holder_integrates_and_the_lease_moves_when_it_dies(log: Log, clock: FakeClock) -> None:
    log.record(event())
    assert log.integrator.integrate_now() == 1
    other = log.new_integrator()
    log.record(event())
    assert other.integrate_now() == 1
    clock.advance(LEASE_S + 1)
    assert other.integrate_now() == 2
    assert log.integrator.integrate_now() == 2


def test_who_looked_before_another_took_the_lease_leaves_it_alone(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    other = log.new_integrator()
    log.record(event())
    assert log.integrator.integrate_now() == 1
    log.record(event())
    # Both looked while nobody had it; this one comes second.
    monkeypatch.setattr(other, "_anything_to_do", lambda _tx: True)
    assert other.integrate_now() == 1
    assert log.integrator.integrate_now() == 2


def test_a_look_that_finds_nothing_writes_nothing_until_the_lease_is_half_over(log: Log, clock: FakeClock) -> None:
    log.record(event())
    assert log.integrator.integrate_now() == 1
    other = log.new_integrator()

    def writes() -> list[int]:
        found = []
        for one in (log.integrator, other):
            with writing(log.database) as begun:
                one.integrate_now()
            found.append(len(begun))
        return found

    assert writes() == [0, 0]
    log.record(event())
    assert writes() == [1, 0]
    clock.advance(LEASE_S // 2)
    assert writes() == [1, 0], "a holder that lives renews its lease"
    clock.advance(LEASE_S // 2)
    assert other.integrate_now() == 2
    with log.database.platform(read_only=True) as tx:
        lease = tx.first(sa.select(audit_lease))
    assert lease is not None
    assert lease["holder"] == log.integrator._holder


def test_a_holder_that_stops_lets_go_of_the_lease(log: Log, clock: FakeClock) -> None:
    log.integrator.start()
    log.integrator.close()
    # Set back while nobody ran: the next one does not wait for the clock.
    clock.time_s -= 86_400
    log.record(event())
    assert log.new_integrator().integrate_now() == 1


def test_an_empty_log_has_a_checkpoint_of_size_zero(log: Log) -> None:
    log.integrator.integrate_now()
    note = log.service.checkpoint(tenant_caller())
    assert verify(note, origin=ORIGIN, public_key=log.signer.public_key()).size == 0


def test_an_entry_rolls_back_with_its_effect(log: Log) -> None:
    with pytest.raises(RuntimeError), log.database.platform() as tx:
        log.log.record(tx, event())
        raise RuntimeError("the effect failed")
    assert log.service.entries(tenant_caller(), PageRequest()).items == []


def test_queued_entries_are_committed_together_and_on_close(log: Log) -> None:
    log.log.start()
    for _ in range(50):
        log.log.record_soon(event(action=Action.MODEL_PREDICT))
    log.log.close()
    assert log.integrator.integrate_now() == 50
    with pytest.raises(UnavailableError) as caught:
        log.log.record_soon(event())
    assert caught.value.error_code == "audit_unavailable"


def test_predictions_are_refused_while_the_writer_cannot_keep_up(log: Log) -> None:
    for _ in range(MAX_QUEUED):
        log.log.record_soon(event())
    with pytest.raises(UnavailableError):
        log.log.record_soon(event())


def test_entries_that_could_not_be_committed_stay_queued(log: Log) -> None:
    log.log.record_soon(event())
    with log.database.platform() as tx:
        tx.execute(sa.text("ALTER TABLE audit_entries RENAME TO gone"))
    with pytest.raises(sa.exc.OperationalError):
        log.log.flush()
    with log.database.platform() as tx:
        tx.execute(sa.text("ALTER TABLE gone RENAME TO audit_entries"))
    log.log.flush()
    assert log.integrator.integrate_now() == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda note: note.replace(ORIGIN, "other/log"),
        lambda note: note.replace("\n3\n", "\n4\n"),
        lambda note: note.replace("\n3\n", "\n03\n"),
        lambda note: note.split("\n\n")[0],
        lambda note: note.replace("— ", "- "),
        lambda note: note[:-10] + "AAAAAAAA\n",
        lambda note: note[:-3] + "*\n",
    ],
    ids=["origin", "size", "leading-zero", "unsigned", "dash", "signature", "base64"],
)
def test_a_changed_checkpoint_does_not_verify(damage: object) -> None:
    signer = FakeSigner()
    note = sign(Checkpoint(origin=ORIGIN, size=3, root=bytes(32)), signer)
    assert verify(note, origin=ORIGIN, public_key=signer.public_key()).size == 3
    with pytest.raises(CheckpointError):
        verify(damage(note), origin=ORIGIN, public_key=signer.public_key())  # type: ignore[operator]


def test_a_checkpoint_signed_by_another_key_does_not_verify() -> None:
    other = Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    note = sign(Checkpoint(origin=ORIGIN, size=3, root=bytes(32)), FakeSigner())
    with pytest.raises(CheckpointError):
        verify(note, origin=ORIGIN, public_key=other)
