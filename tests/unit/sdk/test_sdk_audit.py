"""Verification of the log against the checkpoint kept, and every way in which it must fail."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from fakes.log import FakeLog, FakeSigner
from fakes.sdk import FakeTime
from fakes.server import FakePlatform, answer_json
from modelkeep._core import merkle
from modelkeep._core.flows import Sync
from modelkeep.client import Nouns
from modelkeep.errors import (
    AuditError,
    CheckpointError,
    ForkError,
    KeyChangedError,
    ProofError,
    ProtocolError,
    RollbackError,
    StateError,
)
from modelkeep_platform.audit import merkle as server_merkle


def kept(folder: Path) -> Path:
    (path,) = folder.glob("checkpoint-*.json")
    return path


@pytest.mark.parametrize("sizes", [(1, 2), (3, 7), (4, 8), (7, 20), (1, 33), (6, 6)])
def test_a_log_that_grows_verifies(client: Nouns[Sync], platform: FakePlatform, sizes: tuple[int, int]) -> None:
    old, new = sizes
    platform.log.add(old)
    first = client.audit.verify()
    assert (first.size, first.extends, first.entries_checked) == (old, None, min(old, 10))
    platform.log.add(new - old)
    second = client.audit.verify(entries=3)
    assert (second.size, second.extends, second.entries_checked) == (new, old, min(new, 3))
    assert second.origin == platform.log.origin


def test_an_empty_log_verifies_and_may_grow(client: Nouns[Sync], platform: FakePlatform) -> None:
    assert client.audit.verify().size == 0
    platform.log.add(3)
    assert client.audit.verify().extends == 0


def test_the_checkpoint_is_kept_for_the_owner_only(client: Nouns[Sync], platform: FakePlatform, folder: Path) -> None:
    platform.log.add(3)
    client.audit.verify()
    record = json.loads(kept(folder).read_bytes())
    assert record["note"] == platform.log.checkpoint()
    assert kept(folder).stat().st_mode & 0o777 == 0o600


def test_a_shorter_log_is_a_rollback_and_the_checkpoint_stays(
    client: Nouns[Sync], platform: FakePlatform, folder: Path
) -> None:
    platform.log.add(9)
    client.audit.verify()
    before = kept(folder).read_bytes()
    platform.log.cut(5)
    for _ in range(2):
        with pytest.raises(RollbackError, match="5 entries and had 9"):
            client.audit.verify()
    assert kept(folder).read_bytes() == before


@pytest.mark.parametrize("more", [0, 4])
def test_a_rewritten_log_is_a_fork(client: Nouns[Sync], platform: FakePlatform, folder: Path, more: int) -> None:
    platform.log.add(9)
    client.audit.verify()
    before = kept(folder).read_bytes()
    platform.log.cut(5)
    platform.log.add(4 + more, outcome="denied")
    with pytest.raises(ForkError):
        client.audit.verify()
    assert kept(folder).read_bytes() == before


def test_another_key_is_refused(client: Nouns[Sync], platform: FakePlatform) -> None:
    platform.log.add(3)
    client.audit.verify()
    platform.log.signer = FakeSigner(b"z" * 32)
    with pytest.raises(KeyChangedError):
        client.audit.verify()


def test_another_name_is_refused(client: Nouns[Sync], platform: FakePlatform) -> None:
    platform.log.add(3)
    client.audit.verify()
    platform.log.origin = "elsewhere.test/log"
    with pytest.raises(KeyChangedError):
        client.audit.verify()


def change_answers(platform: FakePlatform, path: str, change: Any) -> None:
    def after(request: httpx.Request, answer: httpx.Response) -> httpx.Response:
        if not request.url.path.endswith(path):
            return answer
        if answer.headers["content-type"].startswith("text/plain"):
            return httpx.Response(200, text=change(answer.text))
        return answer_json(change(json.loads(answer.content)))

    platform.after.append(after)


@pytest.mark.parametrize(
    "change",
    [
        lambda note: note.replace("\n3\n", "\n4\n"),
        lambda note: note.replace("\n3\n", "\n03\n"),
        lambda note: note.replace("models.test/log\n3", "other/log\n3"),
        lambda note: note[: note.index("—")],
        lambda note: note.replace("—", "-"),
        lambda note: "x" * 20_000,
        lambda note: FakeLog(FakeSigner(b"z" * 32)).checkpoint(),
        lambda note: note.replace("\n\n", "\nextension\n\n"),
        lambda note: "",
    ],
    ids=["size", "zero", "origin", "unsigned", "dash", "long", "signer", "lines", "empty"],
)
def test_a_forged_checkpoint_is_refused(client: Nouns[Sync], platform: FakePlatform, folder: Path, change: Any) -> None:
    platform.log.add(3)
    change_answers(platform, "/checkpoint", change)
    with pytest.raises(CheckpointError):
        client.audit.verify()
    assert not list(folder.glob("checkpoint-*.json"))


@pytest.mark.parametrize(
    "change",
    [
        {"hashes": []},
        {"hashes": ["AAAA"]},
        {"hashes": "x"},
        {"hashes": [3]},
        {"hashes": ["%"]},
        {"hashes": ["AAAA"] * 200},
        {"old": 4},
        {"new": 4},
    ],
)
def test_a_broken_consistency_proof_is_a_fork(
    client: Nouns[Sync], platform: FakePlatform, change: dict[str, Any]
) -> None:
    platform.log.add(5)
    client.audit.verify()
    platform.log.add(5)
    change_answers(platform, "/consistency", lambda answer: {**answer, **change})
    with pytest.raises(ForkError):
        client.audit.verify()


@pytest.mark.parametrize("change", [{"hashes": []}, {"hashes": ["AAAA"]}, {"index": 1}, {"size": 1}])
def test_a_broken_inclusion_proof_is_refused(
    client: Nouns[Sync], platform: FakePlatform, change: dict[str, Any]
) -> None:
    platform.log.add(5)
    change_answers(platform, "/proof", lambda answer: {**answer, **change})
    with pytest.raises(ProofError):
        client.audit.verify()


@pytest.mark.parametrize(
    "change",
    [
        {"outcome": "done"},
        {"action": "model:list"},
        {"time": 1},
        {"id": "log-9"},
        {"actor_tenant": "t-9"},
        {"kind": "model"},
        {"object_id": "o"},
        {"policies": ["p"]},
        {"facts": {"n": 9}},
        {"facts": {}},
        {"salt": "AAAA"},
        {"entry": "e30="},
        {"entry": "AAAA"},
        {"index": 0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_an_entry_that_shows_something_else_is_refused(
    client: Nouns[Sync], platform: FakePlatform, change: dict[str, Any]
) -> None:
    platform.log.add(1)
    platform.log.add(1, outcome="denied")

    def edit(answer: dict[str, Any]) -> dict[str, Any]:
        return {**answer, "items": [{**answer["items"][0], **change}]}

    change_answers(platform, "/entries", edit)
    with pytest.raises(ProofError):
        client.audit.verify(entries=1)


def test_one_entry_is_verified(client: Nouns[Sync], platform: FakePlatform) -> None:
    platform.log.add(6)
    entry = client.audit.wait_for("req-4")
    assert client.audit.verify_entry(entry).size == 6


def test_an_entry_beyond_the_checkpoint_is_not_proven(client: Nouns[Sync], platform: FakePlatform) -> None:
    platform.log.add(6)
    entry = client.audit.wait_for("req-5")
    platform.log.cut(3)
    with pytest.raises(ProofError, match="does not reach"):
        client.audit.verify_entry(entry)


def test_waiting_for_an_entry_ends(client: Nouns[Sync], time: FakeTime) -> None:
    with pytest.raises(TimeoutError):
        client.audit.wait_for("req-9", timeout_s=1)
    assert sum(time.waits) > 1


def test_an_entry_without_an_index_is_waited_for(client: Nouns[Sync], platform: FakePlatform, time: FakeTime) -> None:
    platform.log.add(1)
    seen: list[int] = []

    def pending(answer: dict[str, Any]) -> dict[str, Any]:
        seen.append(1)
        hidden = None if len(seen) < 3 else 0
        return {**answer, "items": [{**item, "index": hidden} for item in answer["items"]]}

    change_answers(platform, "/entries", pending)
    assert client.audit.wait_for("req-0").index == 0
    assert time.waits == [0.1, 0.1]


def test_entries_of_another_request_are_refused(client: Nouns[Sync], platform: FakePlatform) -> None:
    platform.log.add(1)
    change_answers(platform, "/entries", lambda answer: {**answer, "items": platform.log.entries()})
    with pytest.raises(ProtocolError, match="another request"):
        client.audit.wait_for("req-9")


@pytest.mark.parametrize("damage", ["note", "public_key", "origin"])
def test_a_kept_checkpoint_that_was_edited_is_refused(
    client: Nouns[Sync], platform: FakePlatform, folder: Path, damage: str
) -> None:
    platform.log.add(5)
    client.audit.verify()
    record = json.loads(kept(folder).read_bytes())
    record[damage] = record[damage].replace("models", "models2") if damage != "public_key" else "AAAA"
    kept(folder).write_text(json.dumps(record))
    with pytest.raises(AuditError):
        client.audit.verify()


def test_a_kept_checkpoint_that_others_may_write_is_refused(
    client: Nouns[Sync], platform: FakePlatform, folder: Path
) -> None:
    platform.log.add(5)
    client.audit.verify()
    kept(folder).chmod(0o666)
    with pytest.raises(StateError):
        client.audit.verify()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 13])
def test_own_verification_agrees_with_the_servers_proofs(size: int) -> None:
    log = FakeLog()
    log.add(size)
    root = server_merkle.root_of(log.leaves)
    for index in range(size):
        hashes = server_merkle.inclusion_path(
            index, size, lambda level, at: server_merkle.root_of(log.leaves[at << level : (at + 1) << level])
        )
        merkle.verify_inclusion(log.leaves[index], index, size, root, hashes)
        for wrong in range(size):
            if wrong != index:
                with pytest.raises(ProofError):
                    merkle.verify_inclusion(log.leaves[index], wrong, size, root, hashes)
        with pytest.raises(ProofError):
            merkle.verify_inclusion(log.leaves[index], index, size, root, [*hashes, root])
