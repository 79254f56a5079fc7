"""The ledger's epochs, and to which each budget, reservation and charge belongs."""

import secrets
import time

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_TABLES = ("privacy_budgets", "privacy_reservations", "privacy_charges")


def upgrade() -> None:
    """Bring the schema to this revision."""
    epochs = op.create_table(
        "ledger_epochs",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("began_at", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.String(length=16), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_ledger_epochs")),
    )
    first = {"number": 1, "id": f"led_{secrets.token_hex(16)}", "began_at": int(time.time()), "reason": "installed"}
    op.bulk_insert(epochs, [first])
    for name in _TABLES:
        with op.batch_alter_table(name) as table:
            table.add_column(sa.Column("epoch", sa.BigInteger(), nullable=False, server_default="1"))


def downgrade() -> None:
    """Take this revision back."""
    for name in _TABLES:
        with op.batch_alter_table(name) as table:
            table.drop_column("epoch")
    op.drop_table("ledger_epochs")
