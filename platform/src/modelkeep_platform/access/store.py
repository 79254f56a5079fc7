"""What decisions are made from: each tenant's active policies and grants.

Both are read once an epoch and kept for the tenants and objects asked for last; a text is compiled once, and what it
said is kept with it, whatever the epoch. A tenant whose active version is
gone or is not what was published is not a tenant without policies: every decision about it is no. A grant that cannot
be read gives nothing. That there is no grant is never kept: to ask for a foreign object then costs the same whether it
is there or not.
"""

import hashlib
import json
import threading
from dataclasses import dataclass
from typing import Final

import cedarpy
import sqlalchemy as sa

from modelkeep_platform.access.engine import SILENCE, Opinion, Question, failed
from modelkeep_platform.access.opinions import Opinions
from modelkeep_platform.core.actions import GRANTABLE
from modelkeep_platform.core.epoch_cache import EpochCache
from modelkeep_platform.core.ids import TenantId
from modelkeep_platform.core.refs import ResourceRef
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.prepared import PreparedSelect
from modelkeep_platform.storage.tables.access import active_policies, grants, policy_versions
from modelkeep_platform.storage.transactions import System

_COMPILED: Final = 256
_OPINIONS: Final = 256  # of each tenant
_GRANTS: Final = 4096
_SYSTEM: Final = System(reason="decide a call")
_ACTIVE: Final = PreparedSelect(active_policies, where=())
_VERSION: Final = PreparedSelect(policy_versions, where=(policy_versions.c.version == sa.bindparam("version"),))
_OF_OBJECT: Final = PreparedSelect(
    grants,
    where=(
        grants.c.object_id == sa.bindparam("object_id"),
        grants.c.kind == sa.bindparam("kind"),
        grants.c.grantee == sa.bindparam("grantee"),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveGrant:
    """A grant, as it was read; `actions` holds only what can be granted."""

    id: str
    actions: frozenset[str]
    expires_at: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivePolicy:
    """A tenant's active version, compiled; `broken` says why it cannot be asked."""

    version: int
    opinions: Opinions | None = None
    broken: str | None = None

    def opinion(self, asked: Question) -> Opinion:
        """Return what the tenant's own policies say."""
        if self.broken is not None:
            return failed(self.broken)
        return SILENCE if self.opinions is None else self.opinions.about(asked)


class AccessStore:
    """Reads policies and grants.

    Args:
        database: where they are.
    """

    def __init__(self, *, database: Database) -> None:
        self._database = database
        self._texts = _Texts()
        self._policies: EpochCache[TenantId, ActivePolicy] = EpochCache(_COMPILED)
        self._grants: EpochCache[tuple[ResourceRef, TenantId], tuple[ActiveGrant, ...]] = EpochCache(_GRANTS)

    def active_policy(self, tenant: TenantId, *, epoch: int) -> ActivePolicy:
        """Return the tenant's active policies."""
        known = self._policies.get(tenant, epoch=epoch)
        if known is None:
            known = self._read_policy(tenant)
            self._policies.put(tenant, known, epoch=epoch)
        return known

    def grants_of(self, ref: ResourceRef, grantee: TenantId, *, now_s: int, epoch: int) -> list[ActiveGrant]:
        """Return the owner's grants of `ref` to `grantee` that have not ended."""
        key = (ref, grantee)
        known = self._grants.get(key, epoch=epoch)
        if known is None:
            known = self._read_grants(ref, grantee)
            if known:
                self._grants.put(key, known, epoch=epoch)
        return [grant for grant in known if grant.expires_at is None or grant.expires_at > now_s]

    def _read_policy(self, tenant: TenantId) -> ActivePolicy:
        with self._database.tenant(tenant, by=_SYSTEM, read_only=True) as tx:
            active = tx.first(_ACTIVE)
            version = 0 if active is None else int(active["version"])
            row = tx.first(_VERSION, version=version)
        if row is None:
            return ActivePolicy(version=version, broken="the tenant's active policy version is missing")
        text = str(row["text"])
        if hashlib.sha256(text.encode()).hexdigest() != row["sha256"]:
            return ActivePolicy(version=version, broken="the stored policy text is not what was published")
        try:
            return ActivePolicy(version=version, opinions=self._texts.opinions(tenant, text))
        except ValueError:
            return ActivePolicy(version=version, broken="the stored policy text does not parse")

    def _read_grants(self, ref: ResourceRef, grantee: TenantId) -> tuple[ActiveGrant, ...]:
        with self._database.tenant(ref.owner, by=_SYSTEM, read_only=True) as tx:
            rows = tx.all(_OF_OBJECT, object_id=ref.object_id, kind=ref.kind, grantee=grantee)
        found = (
            ActiveGrant(id=row["id"], actions=_actions(row["actions"]), expires_at=row["expires_at"]) for row in rows
        )
        return tuple(grant for grant in found if grant.actions)


class _Texts:
    """The compiled text of each tenant: its newest alone, so that nobody takes another's place by publishing."""

    def __init__(self) -> None:
        self._known: dict[TenantId, tuple[str, Opinions | None]] = {}
        self._compiling = threading.Lock()

    def opinions(self, tenant: TenantId, text: str) -> Opinions | None:
        """Return whom to ask, or None when the text holds no policy; raises ValueError when it does not parse."""
        known = self._known.get(tenant)
        if known is not None and known[0] == text:
            return known[1]
        # One at a time: after a change, every call that is under way arrives here at once.
        with self._compiling:
            known = self._known.pop(tenant, None)
            if known is None or known[0] != text:
                policies = cedarpy.PolicySet.from_str(text, release_gil=True)
                known = text, Opinions(policies, kept=_OPINIONS) if len(policies) else None
            self._known[tenant] = known
            while len(self._known) > _COMPILED:
                self._known.pop(next(iter(self._known)))
            return known[1]


def _actions(stored: str) -> frozenset[str]:
    # INVARIANT: no row, whoever wrote it, gives what cannot be granted.
    try:
        found = json.loads(stored)
    except ValueError:
        return frozenset()
    return frozenset(action for action in GRANTABLE if action in found) if isinstance(found, list) else frozenset()
