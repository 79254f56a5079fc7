"""What a training job is about: its dataset, its reservation and where its model goes."""

import sqlalchemy as sa

from modelkeep_platform.storage.schema import tenant_table

training_jobs = tenant_table(
    "training_jobs",
    sa.Column("job_id", sa.String(40), primary_key=True),
    sa.Column("dataset", sa.String(128), nullable=False),
    sa.Column("dataset_owner", sa.String(64), nullable=False),
    sa.Column("dataset_id", sa.String(40), nullable=False),
    sa.Column("target_model", sa.String(64), nullable=False),
    sa.Column("reservation_id", sa.String(40), nullable=True),
)
