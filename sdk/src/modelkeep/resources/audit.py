"""The audit log, and its verification against the checkpoint this machine keeps.

The log proves nothing to someone who keeps no checkpoint. So every verification compares the server's newest one with
the last one kept here, by a consistency proof, and keeps the newer. The log's key is pinned at the first look.
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from modelkeep._core import merkle, strictjson
from modelkeep._core.answers import text_of
from modelkeep._core.checkpoint import Checkpoint, unbase64, verify
from modelkeep._core.decode import fields_of
from modelkeep._core.flows import Flow, Mode, Operation, sleep
from modelkeep._core.session import Session, check_same
from modelkeep.errors import (
    AuditError,
    CheckpointError,
    ForkError,
    KeyChangedError,
    ProofError,
    ProtocolError,
    RollbackError,
    TimeoutError,  # noqa: A004 -- ours is the built-in one, too
)
from modelkeep.resources.base import Resource
from modelkeep.types import AuditEntry, VerifiedLog

_RECORD: Final = "checkpoint"
_LEAF_VERSION: Final = b"\x01"
_KEY_BYTES: Final = 32
_MAX_PROOF: Final = 128
_WAIT_S: Final = 0.1


class Audit(Resource[Mode]):
    """The own tenant's log: who did what, and the proof that nothing of it changed since."""

    @Operation
    def entries(self, *, request_id: str | None = None, limit: int | None = 100) -> Flow[list[AuditEntry]]:
        """Read entries, newest first, at most `limit`, optionally those of one request."""
        found = yield from self._session.list(
            AuditEntry, "v1", "audit", "entries", limit=limit, query={"request_id": request_id}
        )
        for entry in found:
            if request_id is not None:
                check_same(request_id, entry.request_id or "", "request")
        return found

    @Operation
    def verify(self, *, entries: int = 10) -> Flow[VerifiedLog]:
        """Verify the log: signature, consistency with the checkpoint kept here, inclusion of the newest own entries.

        The newest checkpoint is kept for the next time, also when an entry's proof fails afterwards.

        Args:
            entries: how many of the newest own entries are proven to be in the log.

        Raises:
            CheckpointError: the checkpoint is not signed by the log's key.
            KeyChangedError: the log's key is another than the one pinned.
            RollbackError: the log is shorter than it was.
            ForkError: the log does not contain what was kept.
            ProofError: an entry is not where the server says, or is not what it shows.
        """
        log = yield from _look(self._session)
        checked = 0
        if entries > 0:
            newest = yield from self._session.list(AuditEntry, "v1", "audit", "entries", limit=entries)
            for entry in newest:
                # Entries that are not in the tree yet are proven the next time; those past the checkpoint, too.
                if entry.index is not None and entry.index < log.now.size:
                    yield from _prove(self._session, entry, log.now)
                    checked += 1
        return VerifiedLog(
            origin=log.now.origin,
            size=log.now.size,
            root=log.now.root.hex(),
            extends=log.kept_size,
            entries_checked=checked,
        )

    @Operation
    def verify_entry(self, entry: AuditEntry) -> Flow[VerifiedLog]:
        """Verify one entry: that its bytes say what it shows, and that they are in a log that extends the one kept.

        Raises:
            AuditError: as `verify`; also when the entry is not in the tree yet.
        """
        if entry.index is None:
            raise ProofError("the entry is not in the tree yet; wait a moment and read it again")
        log = yield from _look(self._session)
        if entry.index >= log.now.size:
            raise ProofError("the newest checkpoint does not reach the entry yet; wait a moment")
        yield from _prove(self._session, entry, log.now)
        return VerifiedLog(
            origin=log.now.origin,
            size=log.now.size,
            root=log.now.root.hex(),
            extends=log.kept_size,
            entries_checked=1,
        )

    @Operation
    def wait_for(self, request_id: str, *, timeout_s: float = 30.0) -> Flow[AuditEntry]:
        """Wait until the entry of a request is in the tree, and return it (the newest of several).

        Raises:
            TimeoutError: there is none after `timeout_s`.
        """
        started = self._session.site.now_s()
        while True:
            found = yield from self._session.list(
                AuditEntry, "v1", "audit", "entries", limit=10, query={"request_id": request_id}
            )
            for entry in found:
                if entry.request_id != request_id:
                    raise ProtocolError("the server answered with entries of another request")
                if entry.index is not None:
                    return entry
            if self._session.site.now_s() - started > timeout_s:
                raise TimeoutError(f"no entry of the request is in the log after {timeout_s:g} s", sent=True)
            yield from sleep(_WAIT_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Log:
    now: Checkpoint
    kept_size: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """What this machine keeps of a server's log."""

    origin: str
    public_key: bytes
    checkpoint: Checkpoint
    note: str


def _look(session: Session) -> Flow[_Log]:
    """Read the newest checkpoint, compare it with the one kept, and keep it."""
    lock = yield from session.site.state.lock(_RECORD, session.site.base_url)
    try:
        kept = _kept(session)
        name, public_key = yield from _key(session, kept)
        response = yield from session.send("GET", "v1", "audit", "checkpoint", accept="text/plain")
        note = text_of(response)
        now = verify(note, origin=name, public_key=public_key)
        if kept is not None:
            yield from _check_growth(session, kept.checkpoint, now)
        record = {
            "server": session.site.base_url,
            "origin": name,
            "public_key": b64encode(public_key).decode("ascii"),
            "note": note,
        }
        session.site.state.write(_RECORD, session.site.base_url, value=record)
    finally:
        lock.release()
    return _Log(now=now, kept_size=None if kept is None else kept.checkpoint.size)


def _check_growth(session: Session, kept: Checkpoint, now: Checkpoint) -> Flow[None]:
    if now.size < kept.size:
        raise RollbackError(
            f"the log has {now.size} entries and had {kept.size}: entries were taken away or an old backup was "
            "restored; ask the operator, and keep the state file"
        )
    if now.size == kept.size:
        if not hmac.compare_digest(now.root, kept.root):
            _forked(kept.size)
        return
    answer = fields_of(
        (yield from session.json("GET", "v1", "audit", "consistency", query={"old": kept.size, "new": now.size})),
        "consistency proof",
    )
    try:
        if (answer.get("old"), answer.get("new")) != (kept.size, now.size):
            raise ProofError("the consistency proof is between other sizes")
        merkle.verify_consistency(kept.size, now.size, kept.root, now.root, _hashes(answer))
    except ProofError as exc:
        _forked(kept.size, exc)


def _forked(size: int, cause: Exception | None = None) -> NoReturn:
    raise ForkError(
        f"the log does not contain the {size} entries it had: history was rewritten, or you are shown another log "
        "than others; ask the operator, and keep the state file"
    ) from cause


def _key(session: Session, kept: _Kept | None) -> Flow[tuple[str, bytes]]:
    answer = fields_of((yield from session.json("GET", "v1", "audit", "key")), "log key")
    name, algorithm, encoded = answer.get("name"), answer.get("algorithm"), answer.get("public_key")
    if not isinstance(name, str) or algorithm != "Ed25519" or not isinstance(encoded, str):
        raise CheckpointError("the log's key is not one of Ed25519")
    public_key = unbase64(encoded)
    if not name or not name.isprintable() or len(public_key) != _KEY_BYTES:
        raise CheckpointError("the log's key is not one of Ed25519")
    if kept is not None and (kept.origin, kept.public_key) != (name, public_key):
        raise KeyChangedError(
            "the log has another name or key than the one pinned at the first look; ask the operator why, "
            "and keep the state file"
        )
    return name, public_key


def _kept(session: Session) -> _Kept | None:
    record = session.site.state.read(_RECORD, session.site.base_url)
    if record is None:
        return None
    origin, key, note = record.get("origin"), record.get("public_key"), record.get("note")
    if not (isinstance(origin, str) and isinstance(key, str) and isinstance(note, str)):
        raise AuditError("the checkpoint kept on this machine is broken; find out who changed it before you remove it")
    public_key = unbase64(key)
    # Verified again: whoever could write the file cannot sign for the log.
    checkpoint = verify(note, origin=origin, public_key=public_key)
    return _Kept(origin=origin, public_key=public_key, checkpoint=checkpoint, note=note)


def _prove(session: Session, entry: AuditEntry, now: Checkpoint) -> Flow[None]:
    """Check that the entry shows what its bytes say, and that their leaf is in the tree of `now`."""
    body = unbase64(entry.entry)
    _check_shown(entry, body)
    leaf = merkle.leaf_hash(_LEAF_VERSION + hashlib.sha256(unbase64(entry.salt) + body).digest())
    index = entry.index if entry.index is not None else -1
    answer = fields_of(
        (yield from session.json("GET", "v1", "audit", "entries", index, "proof", query={"size": now.size})),
        "inclusion proof",
    )
    if (answer.get("index"), answer.get("size")) != (index, now.size):
        raise ProofError("the inclusion proof is of another entry or size")
    merkle.verify_inclusion(leaf, index, now.size, now.root, _hashes(answer))


def _check_shown(entry: AuditEntry, body: bytes) -> None:
    """Check the fields shown against the bytes that are logged; names of people are sealed in them and not compared."""
    try:
        logged = fields_of(strictjson.loads(body), "log entry")
    except ProtocolError as exc:
        raise ProofError("the entry's bytes are not an entry") from exc
    actor, resource = _object(logged.get("actor")), _object(logged.get("resource"))
    facts = _object(logged.get("facts"))
    shown = (
        (entry.id, logged.get("id")),
        (entry.time, logged.get("time")),
        (entry.action, logged.get("action")),
        (entry.outcome, logged.get("outcome")),
        (entry.actor_tenant, actor.get("tenant")),
        (entry.actor_kind, actor.get("kind")),
        (entry.kind, resource.get("kind")),
        (entry.object_id, resource.get("id")),
        (entry.request_id, logged.get("request_id")),
        (entry.policies, logged.get("policies")),
        ({name: entry.facts.get(name) for name in facts}, facts),
    )
    if any(displayed != written for displayed, written in shown):
        raise ProofError("the entry shows something else than what is logged")


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _hashes(answer: Mapping[str, Any]) -> list[bytes]:
    hashes = answer.get("hashes")
    if not isinstance(hashes, list) or len(hashes) > _MAX_PROOF or any(not isinstance(one, str) for one in hashes):
        raise ProofError("the proof is not a list of hashes")
    try:
        return [unbase64(one) for one in hashes]
    except CheckpointError as exc:
        raise ProofError("a hash of the proof is broken") from exc
