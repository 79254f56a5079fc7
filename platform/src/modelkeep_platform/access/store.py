"""What decisions are made from: each tenant's active policies, compiled once an epoch, and grants."""

import json
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

import cedarpy

from modelkeep_platform.core.ids import TenantId
from modelkeep_platform.core.refs import ResourceRef
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.tables.access import active_policies, grants, policy_versions
from modelkeep_platform.storage.transactions import System

_COMPILED: Final = 256
_SYSTEM: Final = System(reason="decide a call")


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveGrant:
    """A grant that has not ended."""

    id: str
    actions: frozenset[str]
    expires_at: int | None


class AccessStore:
    """Reads policies and grants; keeps compiled policies of the tenants asked for last.

    Args:
        database: where they are.
    """

    def __init__(self, *, database: Database) -> None:
        self._database = database
        self._compiled: OrderedDict[TenantId, tuple[int, int, cedarpy.PolicySet | None]] = OrderedDict()
        self._lock = threading.Lock()

    def active_policy(self, tenant: TenantId, *, epoch: int) -> tuple[int, cedarpy.PolicySet | None]:
        """Return the active version and its compiled policies; None when the text holds no policy."""
        with self._lock:
            known = self._compiled.get(tenant)
        if known is not None and known[0] == epoch:
            return known[1], known[2]
        with self._database.tenant(tenant, by=_SYSTEM, read_only=True) as tx:
            active = tx.first(tx.select(active_policies))
            version = 0 if active is None else active["version"]
            row = tx.first(tx.select(policy_versions).where(policy_versions.c.version == version))
        text = "" if row is None else row["text"]
        policies = cedarpy.PolicySet.from_str(text) if ";" in text else None
        with self._lock:
            self._compiled[tenant] = (epoch, version, policies)
            self._compiled.move_to_end(tenant)
            while len(self._compiled) > _COMPILED:
                self._compiled.popitem(last=False)
        return version, policies

    def grants_of(self, ref: ResourceRef, grantee: TenantId, *, now_s: int) -> list[ActiveGrant]:
        """Return the owner's grants of `ref` to `grantee` that have not ended."""
        with self._database.tenant(ref.owner, by=_SYSTEM, read_only=True) as tx:
            rows = tx.all(
                tx.select(grants).where(
                    grants.c.object_id == ref.object_id, grants.c.kind == ref.kind, grants.c.grantee == grantee
                )
            )
        return [
            ActiveGrant(id=row["id"], actions=frozenset(json.loads(row["actions"])), expires_at=row["expires_at"])
            for row in rows
            if row["expires_at"] is None or row["expires_at"] > now_s
        ]
