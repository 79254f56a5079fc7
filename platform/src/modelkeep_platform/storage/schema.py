"""How tables are declared: each belongs to tenants or to the platform, and says so.

A tenant table has a `tenant_id` column, first in its primary key. `TenantTransaction` reaches tenant
tables only, and only its owner's rows; `PlatformTransaction` reaches everything.
"""

from typing import Final

import sqlalchemy as sa

metadata: Final = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

SCOPE: Final = "scope"
TENANT: Final = "tenant"
PLATFORM: Final = "platform"


def tenant_table(name: str, *items: sa.schema.SchemaItem) -> sa.Table:
    """Declare a table whose every row belongs to one tenant; `tenant_id` is added as the first key column."""
    column = sa.Column("tenant_id", sa.String(64), primary_key=True, nullable=False)
    return sa.Table(name, metadata, column, *items, info={SCOPE: TENANT})


def platform_table(name: str, *items: sa.schema.SchemaItem) -> sa.Table:
    """Declare a table that belongs to the platform and that no tenant transaction can reach."""
    return sa.Table(name, metadata, *items, info={SCOPE: PLATFORM})


def append_only_log(name: str, *items: sa.schema.SchemaItem) -> sa.Table:
    """Declare a platform table into which tenant transactions may insert (through `append`), never read or change."""
    return sa.Table(name, metadata, *items, info={SCOPE: PLATFORM, "append": True})
