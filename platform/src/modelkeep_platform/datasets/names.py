"""Names to references: ``dataset`` in the caller's tenant, ``owner~dataset`` in another's."""

from modelkeep_platform.core.callers import TenantCaller
from modelkeep_platform.core.ids import ObjectId, TenantId
from modelkeep_platform.core.refs import Kind, ResourceRef, missing
from modelkeep_platform.datasets.ports import TenantDirectory
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.tables.datasets import datasets
from modelkeep_platform.storage.transactions import System


def resolve(database: Database, tenants: TenantDirectory, caller: TenantCaller, name: str) -> ResourceRef:
    """Return the reference of a ready dataset; that of a missing one when there is none."""
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
        row = tx.first(tx.select(datasets, datasets.c.id).where(datasets.c.name == own_name))
    if row is None:
        return missing(owner, Kind.DATASET)
    return ResourceRef(owner=owner, kind=Kind.DATASET, object_id=ObjectId(row["id"]))
