"""The tenants there are: ids and slugs, never reused, and whether they are active."""

from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from modelkeep_platform.core.ids import TenantId
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.tables.identity import tenants
from modelkeep_platform.storage.transactions import PlatformTransaction, Row

ACTIVE: Final = "active"
SUSPENDED: Final = "suspended"

_BY_ID: Final = sa.select(tenants).where(tenants.c.id == sa.bindparam("id"))
_BY_SLUG: Final = sa.select(tenants).where(tenants.c.slug == sa.bindparam("slug"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """An organisation."""

    id: TenantId
    slug: str
    name: str
    state: str
    created_at: int


class TenantRegistry:
    """Looks tenants up.

    Args:
        database: where they are.
    """

    def __init__(self, *, database: Database) -> None:
        self._database = database

    def by_id(self, tenant: TenantId) -> Tenant | None:
        """Return the tenant, or None."""
        with self._database.platform(read_only=True) as tx:
            return self.find(tx, tenant)

    def find(self, tx: PlatformTransaction, tenant: TenantId) -> Tenant | None:
        """Return the tenant, or None, within an open transaction."""
        return _tenant(tx.first(_BY_ID, id=tenant))

    def is_active(self, tenant: TenantId) -> bool:
        """Return whether there is such a tenant and it is not suspended."""
        found = self.by_id(tenant)
        return found is not None and found.state == ACTIVE

    def by_slug(self, slug: str) -> Tenant | None:
        """Return the tenant, or None."""
        with self._database.platform(read_only=True) as tx:
            return _tenant(tx.first(_BY_SLUG, slug=slug))

    def id_of(self, slug: str) -> TenantId | None:
        """Return the id of the active tenant with this slug, or None.

        A suspended tenant is not there for others: what it granted stops with it, and comes back with it.
        """
        found = self.by_slug(slug)
        return None if found is None or found.state != ACTIVE else found.id

    def slug_of(self, tenant: TenantId) -> str:
        """Return the tenant's slug; the id itself for a tenant that is not known."""
        found = self.by_id(tenant)
        return tenant if found is None else found.slug

    def list(self, tx: PlatformTransaction, *, after: str, limit: int) -> list[Tenant]:
        """Return up to `limit` tenants in order of slug."""
        rows = tx.all(sa.select(tenants).where(tenants.c.slug > after).order_by(tenants.c.slug).limit(limit))
        return [found for row in rows if (found := _tenant(row)) is not None]

    def add(self, tx: PlatformTransaction, tenant: Tenant) -> None:
        """Insert a tenant; the database refuses a slug that was ever used."""
        tx.execute(
            sa.insert(tenants).values(
                id=tenant.id, slug=tenant.slug, name=tenant.name, state=tenant.state, created_at=tenant.created_at
            )
        )

    def set_state(self, tx: PlatformTransaction, tenant: TenantId, state: str) -> None:
        """Suspend or resume."""
        tx.execute(sa.update(tenants).where(tenants.c.id == tenant).values(state=state))


def _tenant(row: Row | None) -> Tenant | None:
    if row is None:
        return None
    return Tenant(
        id=TenantId(row["id"]), slug=row["slug"], name=row["name"], state=row["state"], created_at=row["created_at"]
    )
