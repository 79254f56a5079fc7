"""Answers kept for repeated requests; a tenant's keys are unknown to every other tenant."""

import sqlalchemy as sa

from modelkeep_platform.storage.schema import tenant_table

idempotency = tenant_table(
    "idempotency",
    sa.Column("principal", sa.String(80), primary_key=True),
    sa.Column("key_hash", sa.String(64), primary_key=True),
    sa.Column("request_hash", sa.String(64), nullable=False),
    sa.Column("status", sa.Integer, nullable=True),
    sa.Column("answer", sa.LargeBinary, nullable=True),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)
sa.Index("ix_idempotency_tenant_created", idempotency.c.tenant_id, idempotency.c.created_at)
