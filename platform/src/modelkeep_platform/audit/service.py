"""What callers read of the log: their own tenant's entries, checkpoints and proofs."""

import base64
import json
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from modelkeep_platform.audit.checkpoint import key_hash
from modelkeep_platform.audit.entries import AUDIT_KEY, leaf_data
from modelkeep_platform.audit.merkle import leaf_hash
from modelkeep_platform.audit.tree import Nodes, consistency_proof, inclusion_proof
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import Caller
from modelkeep_platform.core.errors import IntegrityError, UnprocessableError
from modelkeep_platform.core.ids import ObjectId, TenantId
from modelkeep_platform.core.ports import Authorizer, Sealer, Signer
from modelkeep_platform.core.refs import Kind, collection, missing
from modelkeep_platform.core.sealing import Purpose, Suite
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.pages import Page, PageRequest, not_ours, page_of
from modelkeep_platform.storage.tables.audit import audit_checkpoints, audit_entries
from modelkeep_platform.storage.transactions import PlatformTransaction, Row

_SEQUENCE_DIGITS: Final = 18


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryView:
    """One entry, readable, with the bytes and salt that let the reader check its leaf."""

    id: str
    index: int | None
    time: int
    action: str
    outcome: str
    actor_tenant: str | None
    actor_kind: str | None
    principal: str | None
    name: str | None
    kind: str | None
    object_id: str | None
    request_id: str | None
    policies: list[str]
    facts: dict[str, Any]
    salt: str
    entry: str
    leaf_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InclusionProof:
    """That one leaf is in the tree of a checkpoint; hashes are base64."""

    index: int
    size: int
    leaf_hash: str
    hashes: list[str]
    checkpoint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsistencyProof:
    """That a newer tree extends an older one; hashes are base64."""

    old: int
    new: int
    hashes: list[str]
    checkpoint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LogKey:
    """The public key under which checkpoints verify."""

    name: str
    algorithm: str
    public_key: str
    key_hash: str


class AuditService:
    """Reads the log for those who may.

    Args:
        database: where the log is.
        authorizer: decides `audit:read`.
        sealer: opens personal fields for the tenant they belong to.
        signer: the log's key.
        origin: the log's name.
    """

    def __init__(
        self, *, database: Database, authorizer: Authorizer, sealer: Sealer, signer: Signer, origin: str
    ) -> None:
        self._database = database
        self._authorizer = authorizer
        self._sealer = sealer
        self._signer = signer
        self._origin = origin

    def entries(self, caller: Caller, page: PageRequest, *, request_id: str | None = None) -> Page[EntryView]:
        """Return the caller's tenant's entries, newest first, optionally of one request."""
        self._require(caller)
        query = sa.select(audit_entries).where(audit_entries.c.tenant == caller.tenant)
        if request_id is not None:
            query = query.where(audit_entries.c.request_id == request_id)
        after = page.after()
        if after:
            query = query.where(audit_entries.c.seq < _sequence(after))
        with self._database.platform(read_only=True) as tx:
            rows = tx.all(query.order_by(audit_entries.c.seq.desc()).limit(page.limit + 1))
        cut = page_of(rows, page, [str(row["seq"]) for row in rows])
        return Page(items=[self._view(row) for row in cut.items], next_cursor=cut.next_cursor)

    def checkpoint(self, caller: Caller) -> str:
        """Return the newest signed checkpoint."""
        self._require(caller)
        with self._database.platform(read_only=True) as tx:
            return _note(tx, Nodes(tx).size())

    def key(self, caller: Caller) -> LogKey:
        """Return the key that checkpoints verify under."""
        self._require(caller)
        public = self._signer.public_key()
        return LogKey(
            name=self._origin,
            algorithm="Ed25519",
            public_key=_b64(public),
            key_hash=key_hash(self._origin, public).hex(),
        )

    def inclusion(self, caller: Caller, index: int, size: int | None = None) -> InclusionProof:
        """Prove that the caller's entry at `index` is in the tree of `size` leaves (default: the newest).

        Raises:
            NotFoundError: there is no such entry, or it is another tenant's.
            UnprocessableError: there is no checkpoint of that size, or the entry came after it.
        """
        self._require(caller)
        with self._database.platform(read_only=True) as tx:
            row = tx.first(
                sa.select(audit_entries).where(
                    audit_entries.c.log_index == index, audit_entries.c.tenant == caller.tenant
                )
            )
            if row is not None:
                at = Nodes(tx).size() if size is None else size
                if index >= at:
                    raise UnprocessableError(
                        "the log had fewer entries at that size; ask for a larger `size`", code="invalid_log_size"
                    )
                note = _note(tx, at)  # first: a size that was never published has no nodes to look for
                return InclusionProof(
                    index=index,
                    size=at,
                    leaf_hash=_b64(leaf_hash(leaf_data(row["salt"], row["body"]))),
                    hashes=[_b64(value) for value in inclusion_proof(Nodes(tx), index, at)],
                    checkpoint=note,
                )
        self._authorizer.require(caller, Action.AUDIT_READ, missing(caller.tenant, Kind.AUDIT_LOG))
        raise AssertionError("a missing entry is always refused")

    def consistency(self, caller: Caller, old: int, new: int | None = None) -> ConsistencyProof:
        """Prove that the log of `new` entries (default: the newest) extends that of `old`.

        Raises:
            UnprocessableError: the sizes are not those of a growing log.
        """
        self._require(caller)
        with self._database.platform(read_only=True) as tx:
            size = Nodes(tx).size()
            target = size if new is None else new
            if not 0 <= old <= target <= size:
                raise UnprocessableError(
                    f"`old` and `new` are sizes of this log, which has {size} entries", code="invalid_log_size"
                )
            note = _note(tx, target)
            hashes = consistency_proof(Nodes(tx), old, target)
            return ConsistencyProof(old=old, new=target, hashes=[_b64(value) for value in hashes], checkpoint=note)

    def _require(self, caller: Caller) -> None:
        self._authorizer.require(caller, Action.AUDIT_READ, collection(caller.tenant, Kind.AUDIT_LOG))

    def _view(self, row: Row) -> EntryView:
        body = json.loads(row["body"])
        actor, resource = body["actor"] or {}, body["resource"] or {}
        personal = self._open_personal(row["tenant"], row["id"], base64.b64decode(body["personal"]))
        return EntryView(
            id=row["id"],
            index=row["log_index"],
            time=row["created_at"],
            action=body["action"],
            outcome=body["outcome"],
            actor_tenant=actor.get("tenant"),
            actor_kind=actor.get("kind"),
            principal=personal.pop("principal", None),
            name=personal.pop("name", None),
            kind=resource.get("kind"),
            object_id=resource.get("id"),
            request_id=body["request_id"],
            policies=body["policies"],
            facts=body["facts"] | personal,
            salt=_b64(row["salt"]),
            entry=_b64(row["body"]),
            leaf_hash=_b64(leaf_hash(leaf_data(row["salt"], row["body"]))),
        )

    def _open_personal(self, tenant: TenantId, entry_id: str, sealed: bytes) -> dict[str, Any]:
        if not sealed:
            return {}
        try:
            opened = self._sealer.open(
                tenant,
                ObjectId(AUDIT_KEY),
                sealed,
                purpose=Purpose.AUDIT,
                version=1,
                name=entry_id,
                suite=Suite.SMALL,
            )
        except IntegrityError:
            return {"personal": "unreadable"}  # the key was shredded, or the entry changed: its proof will tell
        fields: dict[str, Any] = json.loads(opened)
        return fields


def _note(tx: PlatformTransaction, size: int) -> str:
    row = tx.first(sa.select(audit_checkpoints.c.note).where(audit_checkpoints.c.size == size))
    if row is None:
        raise UnprocessableError(
            "there is no checkpoint of that size; ask for one that was published", code="invalid_log_size"
        )
    return str(row["note"])


def _sequence(after: str) -> int:
    if not (after.isascii() and after.isdigit() and len(after) <= _SEQUENCE_DIGITS):
        raise not_ours()
    return int(after)


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
