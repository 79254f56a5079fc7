"""Models, their immutable versions, and aliases."""

import sqlalchemy as sa

from modelkeep_platform.storage.schema import tenant_table

models = tenant_table(
    "models",
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("next_version", sa.Integer, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("tenant_id", "name"),
)

model_versions = tenant_table(
    "model_versions",
    sa.Column("model_id", sa.String(40), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("state", sa.String(12), nullable=False),
    sa.Column("graph_sealed", sa.LargeBinary, nullable=False),
    sa.Column("graph_sha256", sa.String(64), nullable=False),
    sa.Column("weights_sha256", sa.String(64), nullable=False),
    sa.Column("weights_bytes", sa.BigInteger, nullable=False),
    sa.Column("upload_id", sa.String(40), nullable=True),
    sa.Column("job_id", sa.String(40), nullable=True),
    sa.Column("provenance", sa.Text, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("created_by", sa.String(80), nullable=False),
    sa.UniqueConstraint("tenant_id", "job_id"),
)

model_aliases = tenant_table(
    "model_aliases",
    sa.Column("model_id", sa.String(40), primary_key=True),
    sa.Column("alias", sa.String(64), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
)
