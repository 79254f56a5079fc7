"""Grants: what another tenant may do with one object, until when. Rows, not policy.

A grant names one object, one grantee and actions that are grantable for its kind. Revocation moves the epoch: the
next call is decided without it.
"""

import builtins
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from modelkeep_platform.core.actions import GRANTABLE, Action
from modelkeep_platform.core.callers import TenantCaller
from modelkeep_platform.core.errors import UnprocessableError
from modelkeep_platform.core.events import Event, Outcome
from modelkeep_platform.core.ids import ObjectId, TenantId, new_object_id
from modelkeep_platform.core.ports import Authorizer, Clock, Entropy, EpochSource, Recorder
from modelkeep_platform.core.refs import Kind, ResourceRef, collection, missing
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.names import TenantDirectory
from modelkeep_platform.storage.pages import Page, PageRequest, page_of
from modelkeep_platform.storage.tables.access import grants
from modelkeep_platform.storage.transactions import Row

MAX_GRANTS: Final = 10_000
"""Of one tenant, ended ones included."""

_LAST_S: Final = 253_402_300_799


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A grant, as its owner sees it."""

    id: str
    kind: str
    name: str
    object_id: str
    grantee: str
    actions: tuple[str, ...]
    created_at: int
    expires_at: int | None


class GrantService:
    """Gives and revokes grants.

    Args:
        database: where grants are.
        authorizer: decides who may.
        recorder: writes what was done.
        epoch: moved by each change.
        clock: stamps grants.
        entropy: names them.
        resolvers: how an object's name becomes its reference, for each kind that can be granted.
        tenants: slugs and ids.
    """

    def __init__(
        self,
        *,
        database: Database,
        authorizer: Authorizer,
        recorder: Recorder,
        epoch: EpochSource,
        clock: Clock,
        entropy: Entropy,
        resolvers: Mapping[Kind, Callable[[TenantCaller, str], ResourceRef]],
        tenants: TenantDirectory,
    ) -> None:
        self._database = database
        self._authorizer = authorizer
        self._recorder = recorder
        self._epoch = epoch
        self._clock = clock
        self._entropy = entropy
        self._resolvers = resolvers
        self._tenants = tenants

    def create(
        self,
        caller: TenantCaller,
        *,
        kind: str,
        name: str,
        grantee: str,
        actions: Sequence[str],
        expires_at: int | None,
    ) -> Grant:
        """Grant `actions` on the caller's own object to another tenant.

        Args:
            caller: of the owning tenant.
            kind: ``model`` or ``dataset``.
            name: the object's name in the caller's tenant.
            grantee: the other tenant's slug.
            actions: for example ``["model:predict"]``.
            expires_at: when it ends, seconds since the epoch; None for never.

        Raises:
            ForbiddenError: the caller may not grant.
            NotFoundError: there is no such object of its own.
            UnprocessableError: kind, grantee, actions or expiry cannot be.
        """
        decision = self._authorizer.require(
            caller, Action.GRANT_CREATE, collection(caller.tenant, Kind.GRANT), {"name": name}
        )
        wanted = self._check(kind, actions, expires_at)
        ref = self._resolvers[Kind(kind)](caller, name)
        if ref.is_missing or ref.owner != caller.tenant:
            self._authorizer.require(caller, Action.GRANT_CREATE, missing(caller.tenant, Kind(kind)))
            raise RuntimeError("a missing object was allowed")
        # After the object: whoever owns nothing to grant learns no other tenant's slug here.
        other = self._other(caller, grantee)
        row: dict[str, object] = {
            "id": new_object_id(self._entropy, "grt"),
            "kind": ref.kind,
            "object_id": ref.object_id,
            "name": name,
            "grantee": other,
            "actions": json.dumps(wanted),
            "created_at": self._clock.now_s(),
            "created_by": caller.principal,
            "expires_at": expires_at,
        }
        with self._database.tenant(caller.tenant, by=decision) as tx:
            if tx.count(grants) >= MAX_GRANTS:
                raise UnprocessableError(
                    f"a tenant has at most {MAX_GRANTS} grants; revoke those that have ended", code="grant_refused"
                )
            tx.insert(grants, **row)
            facts = {"grant": str(row["id"]), "grantee": str(row["grantee"]), "actions": " ".join(wanted)}
            self._recorder.record(tx, _event(caller, Action.GRANT_CREATE, ref, facts))
            tx.bump_epoch()
        self._epoch.refresh()
        return self._view(row)

    def list(self, caller: TenantCaller, page: PageRequest) -> Page[Grant]:
        """Return the grants the caller's tenant gave, ended ones included."""
        decision = self._authorizer.require(caller, Action.GRANT_LIST, collection(caller.tenant, Kind.GRANT))
        with self._database.tenant(caller.tenant, by=decision, read_only=True) as tx:
            rows = tx.all(
                tx.select(grants).where(grants.c.id > page.after()).order_by(grants.c.id).limit(page.limit + 1)
            )
        return page_of([self._view(row) for row in rows], page, [row["id"] for row in rows])

    def revoke(self, caller: TenantCaller, grant_id: str) -> None:
        """End a grant; the grantee's next call is refused.

        Raises:
            NotFoundError: the caller's tenant gave no such grant.
        """
        with self._database.tenant(caller.tenant, by=caller, read_only=True) as tx:
            row = tx.first(tx.select(grants).where(grants.c.id == grant_id))
        ref, facts, name = missing(caller.tenant, Kind.GRANT), {"grant": grant_id}, ""
        if row is not None:
            ref = ResourceRef(owner=caller.tenant, kind=Kind.GRANT, object_id=ObjectId(row["id"]))
            facts |= {"grantee": row["grantee"], "object": row["object_id"]}
            name = str(row["name"])
        decision = self._authorizer.require(caller, Action.GRANT_REVOKE, ref, {"name": name})
        with self._database.tenant(caller.tenant, by=decision) as tx:
            gone = tx.change(tx.delete(grants).where(grants.c.id == grant_id))
            if gone:
                self._recorder.record(tx, _event(caller, Action.GRANT_REVOKE, ref, facts))
                tx.bump_epoch()
        self._epoch.refresh()
        if not gone:  # somebody else was faster
            self._authorizer.require(caller, Action.GRANT_REVOKE, missing(caller.tenant, Kind.GRANT))

    def _check(self, kind: str, actions: Sequence[str], expires_at: int | None) -> builtins.list[str]:
        if kind not in {str(known) for known in self._resolvers}:
            known = ", ".join(f"`{known}`" for known in self._resolvers)
            raise UnprocessableError(f"grants are given on {known}", code="grant_refused")
        possible = sorted(str(action) for action in GRANTABLE if action.startswith(f"{kind}:"))
        wanted = sorted(set(actions))
        if not wanted or not set(wanted) <= set(possible):
            listed = ", ".join(f"`{action}`" for action in possible)
            raise UnprocessableError(f"what can be granted on a {kind} is {listed}", code="grant_refused")
        if expires_at is not None and not self._clock.now_s() < expires_at <= _LAST_S:
            raise UnprocessableError("`expires_at` is in the past, or past the year 9999", code="grant_refused")
        return wanted

    def _other(self, caller: TenantCaller, grantee: str) -> TenantId:
        other = self._tenants.id_of(grantee)
        if other is None or other == caller.tenant:
            raise UnprocessableError(
                f"`{grantee[:80]}` is not another tenant's slug; ask them for theirs", code="invalid_grantee"
            )
        return other

    def _view(self, row: Row | Mapping[str, object]) -> Grant:
        expires_at = row["expires_at"]
        return Grant(
            id=str(row["id"]),
            kind=str(row["kind"]),
            name=str(row["name"]),
            object_id=str(row["object_id"]),
            grantee=self._tenants.slug_of(TenantId(str(row["grantee"]))),
            actions=tuple(json.loads(str(row["actions"]))),
            created_at=int(str(row["created_at"])),
            expires_at=None if expires_at is None else int(str(expires_at)),
        )


def _event(caller: TenantCaller, action: Action, ref: ResourceRef, facts: Mapping[str, str]) -> Event:
    return Event(tenant=caller.tenant, action=action, outcome=Outcome.DONE, actor=caller, ref=ref, facts=dict(facts))
