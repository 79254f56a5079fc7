"""Policy versions of tenants, which one is active, and grants to other tenants."""

import sqlalchemy as sa

from modelkeep_platform.storage.schema import tenant_table

policy_versions = tenant_table(
    "policy_versions",
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("created_by", sa.String(80), nullable=False),
)

active_policies = tenant_table("active_policies", sa.Column("version", sa.Integer, nullable=False))

grants = tenant_table(
    "grants",
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("object_id", sa.String(40), nullable=False),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("grantee", sa.String(64), nullable=False),
    sa.Column("actions", sa.Text, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("created_by", sa.String(80), nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=True),
)
sa.Index("ix_grants_object", grants.c.tenant_id, grants.c.object_id)
