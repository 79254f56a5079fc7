"""Requests of the present minute, shared by server processes."""

import sqlalchemy as sa

from modelkeep_platform.storage.schema import platform_table

request_windows = platform_table(
    "request_windows",
    sa.Column("key", sa.String(160), primary_key=True),
    sa.Column("began_at", sa.BigInteger, primary_key=True),
    sa.Column("used", sa.BigInteger, nullable=False),
)
