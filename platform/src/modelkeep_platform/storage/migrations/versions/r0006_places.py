"""Places for requests that are under way at once, by server process."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the schema to this revision."""
    op.create_table(
        "request_places",
        sa.Column("key", sa.String(length=160), nullable=False),
        sa.Column("process", sa.String(length=64), nullable=False),
        sa.Column("places", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key", "process", name=op.f("pk_request_places")),
    )


def downgrade() -> None:
    """Take this revision back."""
    op.drop_table("request_places")
