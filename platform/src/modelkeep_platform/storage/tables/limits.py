"""What the operator set for one tenant, and how many requests may come, shared by server processes."""

import sqlalchemy as sa

from modelkeep_platform.storage.schema import platform_table, tenant_table

tenant_limits = tenant_table(
    "tenant_limits",
    sa.Column("name", sa.String(40), primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
    sa.Column("set_by", sa.String(80), nullable=False),
    sa.Column("set_at", sa.BigInteger, nullable=False),
)

# Tokens are parts of a request, and moments parts of a second.
request_buckets = platform_table(
    "request_buckets",
    sa.Column("key", sa.String(160), primary_key=True),
    sa.Column("tokens", sa.Double, nullable=False),
    sa.Column("filled_at", sa.Double, nullable=False),
)

# How many requests each process may have under way at once.
request_places = platform_table(
    "request_places",
    sa.Column("key", sa.String(160), primary_key=True),
    sa.Column("process", sa.String(64), primary_key=True),
    sa.Column("places", sa.BigInteger, nullable=False),
)
