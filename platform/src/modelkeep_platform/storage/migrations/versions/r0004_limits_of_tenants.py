"""Limits that the operator sets for one tenant; requests come in at a rate, and not by the minute of the clock."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the schema to this revision."""
    op.create_table(
        "tenant_limits",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=40), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.Column("set_by", sa.String(length=80), nullable=False),
        sa.Column("set_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "name", name=op.f("pk_tenant_limits")),
    )
    # Counts of the last minute: nobody misses them.
    op.drop_table("request_windows")
    op.create_table(
        "request_buckets",
        sa.Column("key", sa.String(length=160), nullable=False),
        sa.Column("tokens", sa.Double(), nullable=False),
        sa.Column("filled_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_request_buckets")),
    )


def downgrade() -> None:
    """Take this revision back."""
    op.drop_table("request_buckets")
    op.create_table(
        "request_windows",
        sa.Column("key", sa.String(length=160), nullable=False),
        sa.Column("began_at", sa.BigInteger(), nullable=False),
        sa.Column("used", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key", "began_at", name=op.f("pk_request_windows")),
    )
    op.drop_table("tenant_limits")
