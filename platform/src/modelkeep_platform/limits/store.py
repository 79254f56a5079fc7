"""What each tenant may do and have: the settings' limits, and those that the operator set for one tenant.

What was set is a row each, and taking it back deletes the row: then the setting holds again, whatever it is by then.
Limits are read once a tenant and epoch. A change moves the epoch, so every server process has read the new ones, or
refuses everything, before the change returns.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from modelkeep_platform.core.ids import PrincipalId, TenantId
from modelkeep_platform.core.limits import LIMITS, TenantLimits
from modelkeep_platform.core.ports import EpochSource
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.tables.limits import tenant_limits
from modelkeep_platform.storage.transactions import System, TenantTransaction

_CACHED: Final = 8192
_LOOK: Final = System(reason="what a tenant may have")


@dataclass(frozen=True, slots=True)
class _Read:
    epoch: int
    limits: TenantLimits


class LimitStore:
    """Implements the `LimitSource` port.

    Args:
        database: where limits of one tenant are.
        defaults: what holds for a tenant for which nothing was set.
        epoch: what limits in memory live by.
    """

    def __init__(self, *, database: Database, defaults: TenantLimits, epoch: EpochSource) -> None:
        self.defaults = defaults
        self._database = database
        self._epoch = epoch
        self._read: OrderedDict[TenantId, _Read] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, tenant: TenantId) -> TenantLimits:
        """Return the tenant's limits, reading them if they were not read in this epoch.

        Raises:
            UnavailableError: the epoch could not be read for a second.
        """
        known = self.cached(tenant)
        if known is not None:
            return known
        epoch = self._epoch.current()
        with self._database.tenant(tenant, by=_LOOK, read_only=True) as tx:
            limits = replace(self.defaults, **self.own(tx))
        with self._lock:
            self._read[tenant] = _Read(epoch, limits)
            self._read.move_to_end(tenant)
            while len(self._read) > _CACHED:
                self._read.popitem(last=False)
        return limits

    def cached(self, tenant: TenantId) -> TenantLimits | None:
        """Return the limits from memory; None when they were not read in this epoch.

        Raises:
            UnavailableError: the epoch could not be read for a second.
        """
        found = self._read.get(tenant)
        return None if found is None or found.epoch != self._epoch.current() else found.limits

    def last_known(self, tenant: TenantId) -> TenantLimits:
        """Return the limits from memory, of whatever epoch; the settings' when they were never read."""
        found = self._read.get(tenant)
        return self.defaults if found is None else found.limits

    def own(self, tx: TenantTransaction) -> dict[str, int]:
        """Return what was set for the tenant of `tx` alone, by name."""
        # A name that this version does not know was set by another version, and waits for it.
        return {row["name"]: row["value"] for row in tx.all(tx.select(tenant_limits)) if row["name"] in LIMITS}

    def change(self, tx: TenantTransaction, changes: Mapping[str, int | None], *, by: PrincipalId, at: int) -> None:
        """Set limits of the tenant of `tx`, or take them back; the transaction must move the epoch.

        Args:
            tx: an open transaction of the tenant.
            changes: by name, a number that was checked, or None to take it back.
            by: the operator.
            at: now, in seconds.
        """
        for name, value in changes.items():
            tx.change(tx.delete(tenant_limits).where(tenant_limits.c.name == name))
            if value is not None:
                tx.insert(tenant_limits, name=name, value=value, set_by=by, set_at=at)
