"""Abuse of the log by somebody who can write the database, by a server that lies, and by floods of refused calls.

Edits are found by `audit verify` (every entry against the newest checkpoint), by the integrator (it signs nothing over
a tree that is not the one it signed last), and by whoever keeps an earlier checkpoint.
"""

import base64
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from fakes.asgi import AsgiClient
from fakes.audit import ORIGIN, Log, event, hashes
from fakes.core import ACME, FakeClock, operator_caller, tenant_caller
from fakes.log import FakeSigner
from modelkeep_platform.app import administration
from modelkeep_platform.audit.checkpoint import Checkpoint, CheckpointError, sign, verify
from modelkeep_platform.audit.entries import AUDIT_KEY, leaf_data
from modelkeep_platform.audit.integrator import LEASE_S
from modelkeep_platform.audit.log import AuditLog
from modelkeep_platform.audit.merkle import ProofError, leaf_hash, root_of, verify_consistency, verify_inclusion
from modelkeep_platform.audit.strangers import STRANGERS
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.errors import IntegrityError, UnavailableError
from modelkeep_platform.core.ids import PLATFORM
from modelkeep_platform.core.limits import TenantLimits
from modelkeep_platform.core.refusals import SUMMARY
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.pages import PageRequest
from modelkeep_platform.storage.tables.audit import audit_checkpoints, audit_entries, audit_nodes
from services.house import House


@pytest.fixture
def log(database: Database, clock: FakeClock) -> Log:
    return Log(database, clock)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(Path(tmp_path_factory.mktemp("audit")))
    house.acme.admin.audit.verify()
    yield house
    house.close()


# --- entries ----------------------------------------------------------------------------------------


LAST = sa.select(sa.func.max(audit_entries.c.log_index)).scalar_subquery()


def copy_of_first(index: sa.ColumnElement[int]) -> sa.Insert:
    entry = sa.select(
        sa.literal("log_forged"),
        audit_entries.c.tenant,
        audit_entries.c.created_at,
        audit_entries.c.request_id,
        audit_entries.c.salt,
        audit_entries.c.body,
        index,
    ).where(audit_entries.c.log_index == 0)
    return sa.insert(audit_entries).from_select(
        ["id", "tenant", "created_at", "request_id", "salt", "body", "log_index"], entry
    )


def at(index: int) -> sa.ColumnElement[bool]:
    return audit_entries.c.log_index == index


NUMBER = audit_entries.c.log_index
EDITS = [
    pytest.param([sa.delete(audit_entries).where(at(2))], id="deleted"),
    pytest.param([sa.delete(audit_entries).where(NUMBER == LAST)], id="last-deleted"),
    pytest.param([sa.update(audit_entries).where(at(2)).values(body=b'{"v":1}')], id="edited"),
    pytest.param([sa.update(audit_entries).where(at(2)).values(salt=bytes(32))], id="salt-edited"),
    pytest.param(
        [
            sa.update(audit_entries).where(at(1)).values(log_index=-1),
            sa.update(audit_entries).where(at(2)).values(log_index=1),
            sa.update(audit_entries).where(at(-1)).values(log_index=2),
        ],
        id="reordered",
    ),
    pytest.param([copy_of_first(LAST + 1)], id="inserted-at-the-end"),
    pytest.param(
        [
            sa.update(audit_entries).where(NUMBER >= 2).values(log_index=-1 - NUMBER),
            sa.update(audit_entries).where(NUMBER < 0).values(log_index=-NUMBER),
            copy_of_first(sa.literal(2)),
        ],
        id="inserted-between",
    ),
    pytest.param([sa.update(audit_entries).where(at(2)).values(log_index=None)], id="hidden"),
]


@pytest.mark.parametrize("statements", EDITS)
def test_entries_that_were_tampered_with_are_not_what_the_checkpoint_commits_to(
    log: Log, statements: list[sa.Executable]
) -> None:
    checkpoint = log.grow(5)
    log.tamper(*statements)
    with log.database.platform(read_only=True) as tx:
        rows = tx.all(
            sa.select(audit_entries).where(audit_entries.c.log_index.is_not(None)).order_by(audit_entries.c.log_index)
        )
    found = [leaf_data(row["salt"], row["body"]) for row in rows]
    assert root_of([leaf_hash(data) for data in found]) != checkpoint.root or len(found) != checkpoint.size


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installation whose server has stopped."""
    house = House(Path(tmp_path_factory.mktemp("stopped")))
    house.acme.admin.audit.verify()
    house.close()
    return house.made.data


@pytest.mark.parametrize("statements", EDITS)
def test_the_operators_command_finds_it(installation: Path, tmp_path: Path, statements: list[sa.Executable]) -> None:
    data = tmp_path / "copy"
    shutil.copytree(installation, data)
    size, note = administration.verify_log(data)
    assert note.split("\n")[1] == str(size)
    assert size >= 5
    database = Database(f"sqlite:///{data / 'platform.db'}")
    with database.platform() as tx:
        for statement in statements:
            tx.execute(statement)
    database.close()
    with pytest.raises(IntegrityError) as caught:
        administration.verify_log(data)
    assert caught.value.error_code == "log_changed"


def test_an_edited_entry_has_no_proof(log: Log) -> None:
    log.grow(5)
    log.tamper(sa.update(audit_entries).where(at(2)).values(body=log_body(log, 1)))
    proof = log.service.inclusion(tenant_caller(), 2)
    root = verify(proof.checkpoint, origin=ORIGIN, public_key=log.signer.public_key()).root
    with pytest.raises(ProofError):
        verify_inclusion(base64.b64decode(proof.leaf_hash), 2, 5, root, hashes(proof.hashes))


def log_body(log: Log, index: int) -> bytes:
    with log.database.platform(read_only=True) as tx:
        row = tx.first(sa.select(audit_entries.c.body).where(at(index)))
    assert row is not None
    return bytes(row["body"])


def test_a_sealed_field_moved_to_another_entry_does_not_open(log: Log) -> None:
    log.record(event(actor=tenant_caller(ACME, name="alice")))
    log.record(event(actor=tenant_caller(ACME, name="bob")))
    log.integrator.integrate_now()
    log.tamper(sa.update(audit_entries).where(at(1)).values(body=log_body(log, 0)))
    shown = log.service.entries(tenant_caller(), PageRequest()).items[0]
    assert (shown.name, shown.facts) == (None, {"personal": "unreadable"})


# --- a log rolled back -------------------------------------------------------------------------------


def rolled_back(size: int) -> list[sa.Executable]:
    """Return what makes a log of `size` entries of a longer one, so that it is whole in itself."""
    return [
        sa.delete(audit_checkpoints).where(audit_checkpoints.c.size > size),
        sa.delete(audit_entries).where(audit_entries.c.log_index >= size),
        *(
            sa.delete(audit_nodes).where(audit_nodes.c.level == level, audit_nodes.c.position >= size >> level)
            for level in range(8)
        ),
    ]


def test_a_running_server_signs_no_log_that_was_rolled_back(log: Log) -> None:
    log.grow(3)
    kept = log.grow(4)
    log.tamper(*rolled_back(3))
    assert log.checkpoint().size == 3
    log.record(event())
    with pytest.raises(IntegrityError) as caught:
        log.integrator.integrate_now()
    assert caught.value.error_code == "log_changed"
    assert log.checkpoint().size == 3 < kept.size


def test_a_log_rolled_back_while_no_server_ran_is_found_by_an_earlier_checkpoint(log: Log, clock: FakeClock) -> None:
    log.grow(3)
    kept = log.grow(4)
    log.tamper(*rolled_back(3))
    clock.advance(LEASE_S + 1)
    log.integrator = log.new_integrator()
    log.grow(6)
    proof = log.service.consistency(tenant_caller(), kept.size)
    new = verify(proof.checkpoint, origin=ORIGIN, public_key=log.signer.public_key())
    assert new.size == 9
    with pytest.raises(ProofError):
        verify_consistency(kept.size, new.size, kept.root, new.root, hashes(proof.hashes))


def test_a_log_that_became_shorter_has_no_proof_of_the_kept_size(log: Log) -> None:
    log.grow(3)
    kept = log.grow(4)
    log.tamper(*rolled_back(3))
    with pytest.raises(Exception, match="sizes of this log") as caught:
        log.service.consistency(tenant_caller(), kept.size)
    assert caught.value.error_code == "invalid_log_size"  # type: ignore[attr-defined]
    with pytest.raises(ProofError, match="shorter"):
        verify_consistency(kept.size, 3, kept.root, log.checkpoint().root, [])


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param(sa.update(audit_nodes).where(audit_nodes.c.level == 2).values(hash=bytes(32)), id="node"),
        pytest.param(sa.delete(audit_nodes).where(audit_nodes.c.level == 0), id="hole"),
        pytest.param(sa.delete(audit_checkpoints), id="no-checkpoint"),
    ],
)
def test_a_tree_that_was_tampered_with_is_signed_by_nobody(log: Log, statement: sa.Executable) -> None:
    log.grow(5)
    log.tamper(statement)
    log.record(event())
    with pytest.raises((IntegrityError, sa.exc.IntegrityError)):
        log.integrator.integrate_now()
    with log.database.platform(read_only=True) as tx:
        waiting = tx.all(sa.select(audit_entries.c.id).where(audit_entries.c.log_index.is_(None)))
        signed = tx.all(sa.select(audit_checkpoints.c.size).where(audit_checkpoints.c.size > 5))
    assert (len(waiting), signed) == (1, [])


# --- forged checkpoints ------------------------------------------------------------------------------


def forged(log: Log, *, signer: FakeSigner | None = None, origin: str = ORIGIN, size: int = 5) -> str:
    root = log.checkpoint().root
    return sign(Checkpoint(origin=origin, size=size, root=root), signer or log.signer)


FORGERIES: list[tuple[str, Callable[[Log], str]]] = [
    ("other key", lambda log: forged(log, signer=FakeSigner(b"x" * 32))),
    ("other origin", lambda log: forged(log, origin="other.test/log")),
    ("other size, old signature", lambda log: forged(log).replace("\n5\n", "\n6\n")),
    ("other key under our name and hash", lambda log: _grafted(forged(log), forged(log, signer=FakeSigner(b"x" * 32)))),
]


def _grafted(ours: str, theirs: str) -> str:
    """Put their signature behind our key's hash."""
    head, _, blob = ours.rstrip("\n").rpartition(" ")
    other = base64.b64decode(theirs.rstrip("\n").rpartition(" ")[2])
    return f"{head} {base64.b64encode(base64.b64decode(blob)[:4] + other[4:]).decode()}\n"


@pytest.mark.parametrize("forge", [forge for _, forge in FORGERIES], ids=[name for name, _ in FORGERIES])
def test_a_forged_checkpoint_verifies_nowhere_and_nothing_is_built_on_it(log: Log, forge: Callable[[Log], str]) -> None:
    log.grow(5)
    note = forge(log)
    with pytest.raises(CheckpointError):
        verify(note, origin=ORIGIN, public_key=log.signer.public_key())
    log.tamper(sa.update(audit_checkpoints).values(note=note))
    log.record(event())
    with pytest.raises(CheckpointError):
        log.integrator.integrate_now()


def test_a_checkpoint_of_another_size_under_the_right_key_does_not_fit_the_tree(log: Log) -> None:
    log.grow(5)
    log.tamper(sa.update(audit_checkpoints).values(note=forged(log, size=4)))
    log.record(event())
    with pytest.raises(IntegrityError) as caught:
        log.integrator.integrate_now()
    assert caught.value.error_code == "log_changed"


def test_an_origin_that_would_read_as_two_lines_cannot_be_one() -> None:
    for origin in ("a\n5", "a b", "a+b", "", "a\u2028b"):
        with pytest.raises(CheckpointError):
            Checkpoint(origin=origin, size=0, root=bytes(32))


# --- the writer stopped ------------------------------------------------------------------------------


def test_predictions_are_refused_from_the_first_failure_of_the_writer_until_it_recovers(log: Log) -> None:
    log.log.record_soon(event(action=Action.MODEL_PREDICT))
    log.tamper(sa.text("ALTER TABLE audit_entries RENAME TO gone"))
    with pytest.raises(OperationalError):
        log.log.flush()
    with pytest.raises(UnavailableError) as caught:
        log.log.record_soon(event(action=Action.MODEL_PREDICT))
    assert caught.value.error_code == "audit_unavailable"
    log.tamper(sa.text("ALTER TABLE gone RENAME TO audit_entries"))
    log.log.flush()
    log.log.record_soon(event(action=Action.MODEL_PREDICT))
    log.log.flush()
    assert log.integrator.integrate_now() == 2


def test_predictions_are_refused_when_the_writer_has_died(log: Log) -> None:
    ended = threading.Thread(target=lambda: None)
    ended.start()
    ended.join()
    log.log._thread = ended
    with pytest.raises(UnavailableError):
        log.log.record_soon(event())


def test_an_effect_whose_entry_cannot_be_written_does_not_happen(log: Log) -> None:
    log.tamper(sa.text("CREATE TABLE effects (n INTEGER)"))
    log.sealer.keys.clear()
    with pytest.raises(IntegrityError), log.database.platform() as tx:
        tx.execute(sa.text("INSERT INTO effects VALUES (1)"))
        log.log.record(tx, event())
    with log.database.platform(read_only=True) as tx:
        assert tx.first(sa.select(sa.text("n")).select_from(sa.text("effects"))) is None


def test_one_tenants_lost_key_does_not_hold_up_the_entries_of_others(log: Log) -> None:
    log.log.record_soon(event())
    log.log.record_soon(event(tenant=PLATFORM, actor=operator_caller(), ref=None))
    log.sealer.keys.remove((ACME, AUDIT_KEY))
    log.log.flush()
    assert log.integrator.integrate_now() == 2
    assert log.service.entries(operator_caller(), PageRequest()).items[0].name == "operator"
    shown = log.service.entries(tenant_caller(), PageRequest()).items[0]
    assert (shown.action, shown.name) == ("model:read", None)


def test_an_entry_says_when_it_happened_and_not_when_it_was_written(log: Log, clock: FakeClock) -> None:
    happened = clock.now_s()
    log.log.record_soon(event())
    clock.advance(30)
    log.log.flush()
    assert log.service.entries(tenant_caller(), PageRequest()).items[0].time == happened


def test_a_prediction_is_not_answered_while_the_log_takes_no_entries(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.fill()
    body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 1]}]}
    with house.http(house.acme.clients["developer"]) as http:
        assert http.post("/v2/models/model/infer", json=body).status_code == 200
        monkeypatch.setattr(house.server.platform.ground.log, "_failing", True)
        refused = http.post("/v2/models/model/infer", json=body)
        monkeypatch.undo()
        assert (refused.status_code, refused.headers["x-error-code"]) == (503, "audit_unavailable")
        assert http.post("/v2/models/model/infer", json=body).status_code == 200


# --- refusals are recorded ----------------------------------------------------------------------------


def test_a_refused_call_of_a_known_caller_is_in_its_tenants_log(house: House) -> None:
    with house.http(house.acme.admin) as http:
        answer = http.post("/v1/policies/check", content=b"{")
    assert answer.status_code == 400
    house.server.platform.ground.log.flush()
    (entry,) = house.acme.admin.audit.entries(request_id=answer.headers["x-request-id"])
    assert (entry.action, entry.outcome, entry.name) == ("policy:read", "denied", "acme-admin")
    assert entry.facts == {"reason": "invalid_json", "route": "POST /v1/policies/check"}
    assert list(house.globex.admin.audit.entries(request_id=answer.headers["x-request-id"])) == []


def test_a_flood_of_refusals_fills_a_counter_and_not_the_log(house: House) -> None:
    app = AsgiClient(house.server.platform.edge.asgi, base_url=house.url)
    headers = {"authorization": f"Bearer {house.token(house.globex.admin)}"}
    most = TenantLimits().refusals_per_minute // 5
    for _ in range(most + 30):
        assert app.post("/v1/policies/check", content=b"{", headers=headers).status_code == 400
    platform = house.server.platform
    platform.ground.refusals.sweep(unfinished=True)
    platform.ground.log.flush()
    found = [entry for entry in house.globex.admin.audit.entries(limit=200) if entry.outcome == "denied"]
    single = [entry for entry in found if entry.facts.get("route") == "POST /v1/policies/check"]
    counted = sum(int(entry.facts["unrecorded"]) for entry in found if entry.action == SUMMARY)
    assert len(single) + counted == most + 30
    assert len(single) <= 2 * most
    assert counted


def test_strangers_are_one_entry_of_the_operators_log_for_each_source(house: House) -> None:
    platform = house.server.platform
    platform.ground.refusals.sweep(unfinished=True)
    for path, headers in [("/v1/whoami", {}), ("/v2/models/m", {"authorization": "Bearer junk"}), ("/v1/nothing", {})]:
        httpx.get(f"{house.url}{path}", headers=headers, timeout=10)
    httpx.post(f"{house.url}/issuer/token", data={"grant_type": "client_credentials"}, timeout=10)
    platform.ground.refusals.sweep(unfinished=True)
    platform.ground.log.flush()
    newest = next(entry for entry in house.operator.audit.entries() if entry.action == STRANGERS)
    assert (newest.outcome, newest.principal, newest.facts["source"]) == ("denied", None, "127.0.0.1")
    statuses = {name: count for name, count in newest.facts.items() if name.startswith("status_")}
    assert newest.facts["count"] == 4 == sum(int(count) for count in statuses.values())
    assert statuses["status_404"] == 1
    assert all(entry.action != STRANGERS for entry in house.acme.admin.audit.entries(limit=200))


def test_the_recorder_takes_storage_transactions_only(log: Log) -> None:
    with pytest.raises(TypeError):
        log.log.record(object(), event())  # type: ignore[arg-type]
    assert isinstance(log.log, AuditLog)
