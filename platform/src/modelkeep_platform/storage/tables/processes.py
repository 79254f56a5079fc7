"""The server processes that are alive on this database: their heartbeats and the epoch each has seen."""

import sqlalchemy as sa

from modelkeep_platform.storage.schema import platform_table

server_processes = platform_table(
    "server_processes",
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("started_at", sa.BigInteger, nullable=False),
    sa.Column("seen_at", sa.BigInteger, nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
)
