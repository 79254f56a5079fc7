"""The audit log: entries in order of arrival, nodes of complete subtrees, checkpoints, the lease."""

import sqlalchemy as sa

from modelkeep_platform.storage.schema import append_only_log, platform_table

# `seq` is assigned by the database in order of insertion; `log_index` by the integrator, once.
audit_entries = append_only_log(
    "audit_entries",
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(40), nullable=False, unique=True),
    sa.Column("tenant", sa.String(64), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("request_id", sa.String(64), nullable=False),
    sa.Column("salt", sa.LargeBinary, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("log_index", sa.BigInteger, nullable=True, unique=True),
    sa.Index("ix_audit_entries_tenant_seq", "tenant", "seq"),
    sa.Index("ix_audit_entries_tenant_request", "tenant", "request_id"),
)

audit_nodes = platform_table(
    "audit_nodes",
    sa.Column("level", sa.Integer, primary_key=True),
    sa.Column("position", sa.BigInteger, primary_key=True),
    sa.Column("hash", sa.LargeBinary, nullable=False),
)

audit_checkpoints = platform_table(
    "audit_checkpoints",
    sa.Column("size", sa.BigInteger, primary_key=True),
    sa.Column("root", sa.LargeBinary, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)

audit_lease = platform_table(
    "audit_lease",
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("holder", sa.String(64), nullable=False),
    sa.Column("until", sa.BigInteger, nullable=False),
)
