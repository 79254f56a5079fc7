"""Wrapped keys and sealed platform secrets. Wrapped KEKs are kept apart, so that backups can leave them out."""

import sqlalchemy as sa

from modelkeep_platform.storage.schema import platform_table, tenant_table

wrapped_keks = tenant_table(
    "wrapped_keks",
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("root_id", sa.String(64), nullable=False),
    sa.Column("wrapped", sa.LargeBinary, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)

wrapped_deks = tenant_table(
    "wrapped_deks",
    sa.Column("object_id", sa.String(64), primary_key=True),
    sa.Column("kek_version", sa.Integer, nullable=False),
    sa.Column("wrapped", sa.LargeBinary, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)

platform_secrets = platform_table(
    "platform_secrets",
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("sealed", sa.LargeBinary, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)
