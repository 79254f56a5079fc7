"""Datasets: their declaration; what was declared is public to whoever may read the dataset, the rows never are."""

import sqlalchemy as sa

from modelkeep_platform.storage.schema import tenant_table

datasets = tenant_table(
    "datasets",
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("state", sa.String(12), nullable=False),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("upload_id", sa.String(40), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("created_by", sa.String(80), nullable=False),
    sa.UniqueConstraint("tenant_id", "name"),
)
