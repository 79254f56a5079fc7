"""What jobs set aside of their tenant's storage; old Idempotency-Keys are found by an index."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the schema to this revision."""
    with op.batch_alter_table("jobs") as table:
        table.add_column(sa.Column("stored_bytes", sa.BigInteger(), nullable=False, server_default="0"))
    op.create_index("ix_idempotency_tenant_created", "idempotency", ["tenant_id", "created_at"])


def downgrade() -> None:
    """Take this revision back."""
    op.drop_index("ix_idempotency_tenant_created", "idempotency")
    with op.batch_alter_table("jobs") as table:
        table.drop_column("stored_bytes")
