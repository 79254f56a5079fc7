"""Names to references: ``name`` in the caller's tenant, ``owner~name`` in another's; for every kind with names."""

from functools import cache
from typing import Protocol

import sqlalchemy as sa

from modelkeep_platform.core.callers import TenantCaller
from modelkeep_platform.core.ids import ObjectId, TenantId
from modelkeep_platform.core.refs import Kind, ResourceRef, missing
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.prepared import PreparedSelect
from modelkeep_platform.storage.transactions import System


class TenantDirectory(Protocol):
    """Translates between slugs and ids."""

    def id_of(self, slug: str) -> TenantId | None:
        """Return the id of the tenant with this slug, or None."""

    def slug_of(self, tenant: TenantId) -> str:
        """Return the tenant's slug."""


def resolve(
    database: Database, tenants: TenantDirectory, caller: TenantCaller, name: str, *, table: sa.Table, kind: Kind
) -> ResourceRef:
    """Return the reference that `name` stands for; that of a missing object when it stands for none.

    Args:
        database: where `table` is.
        tenants: knows slugs.
        caller: in whose tenant a plain name is looked up.
        name: ``name`` or ``owner~name``.
        table: has columns `id` and `name`.
        kind: what is looked for.
    """
    slug, separator, own_name = name.partition("~")
    owner: TenantId | None = caller.tenant
    if separator:
        owner = tenants.id_of(slug)
    else:
        own_name = slug
    if owner is None:
        # A name of no tenant takes the same path as a name that is not there: one lookup, nothing found.
        owner = TenantId("nobody")
    with database.tenant(owner, by=System(reason="resolve a name"), read_only=True) as tx:
        row = tx.first(_by_name(table), name=own_name)
    if row is None:
        return missing(owner, kind)
    return ResourceRef(owner=owner, kind=kind, object_id=ObjectId(row["id"]))


@cache
def _by_name(table: sa.Table) -> PreparedSelect:
    return PreparedSelect(table, table.c.id, where=(table.c.name == sa.bindparam("name"),))
