"""Privacy budgets: a row for each dataset, its reservations, and the segments charged from them; the ledger's epochs.

Costs are JSON lists of whole numbers (units of 1e-12, one for each order of the dataset's frozen grid): they
outgrow 64 bits and are never summed by SQL. `version` moves with each change of a budget or reservation. `epoch` of a
budget is the ledger epoch it has come to; that of a reservation or charge, the one it was made in.
"""

import sqlalchemy as sa

from modelkeep_platform.storage.schema import platform_table, tenant_table

# Rows are only added. Two restores of one backup come to the same number, but never to the same id.
ledger_epochs = platform_table(
    "ledger_epochs",
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("id", sa.String(40), nullable=False),
    sa.Column("began_at", sa.BigInteger, nullable=False),
    sa.Column("reason", sa.String(16), nullable=False),
)

privacy_budgets = tenant_table(
    "privacy_budgets",
    sa.Column("dataset_id", sa.String(40), primary_key=True),
    sa.Column("grid", sa.Text, nullable=False),
    sa.Column("charged", sa.Text, nullable=False),
    sa.Column("reserved", sa.Text, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    # Why nothing may be reserved: empty, `restored` (until compared with a checkpoint) or `exhausted` (for good).
    sa.Column("frozen", sa.String(16), nullable=False, server_default=""),
    sa.Column("epoch", sa.BigInteger, nullable=False, server_default="1"),
)

privacy_reservations = tenant_table(
    "privacy_reservations",
    sa.Column("reservation_id", sa.String(40), primary_key=True),
    sa.Column("dataset_id", sa.String(40), nullable=False),
    sa.Column("job_id", sa.String(40), nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("step_cost", sa.Text, nullable=False),
    sa.Column("steps", sa.BigInteger, nullable=False),
    sa.Column("charged_steps", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False, server_default="1"),
    sa.Index("ix_privacy_reservations_dataset", "tenant_id", "dataset_id", "created_at"),
    sa.UniqueConstraint("tenant_id", "job_id", "attempt"),
)

privacy_charges = tenant_table(
    "privacy_charges",
    sa.Column("reservation_id", sa.String(40), primary_key=True),
    sa.Column("fence", sa.BigInteger, primary_key=True),
    sa.Column("segment", sa.BigInteger, primary_key=True),
    sa.Column("steps", sa.BigInteger, nullable=False),
    sa.Column("charged_at", sa.BigInteger, nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False, server_default="1"),
)
