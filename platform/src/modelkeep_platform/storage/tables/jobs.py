"""Jobs, their leases with fencing numbers, and their logs."""

import sqlalchemy as sa

from modelkeep_platform.storage.schema import tenant_table

jobs = tenant_table(
    "jobs",
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("principal", sa.String(80), nullable=False),
    sa.Column("state", sa.String(12), nullable=False),
    sa.Column("cancel", sa.Boolean, nullable=False),
    sa.Column("fence", sa.Integer, nullable=False),
    sa.Column("holder", sa.String(64), nullable=True),
    sa.Column("lease_until", sa.BigInteger, nullable=True),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("steps", sa.Integer, nullable=False),
    sa.Column("epsilon_charged", sa.Float, nullable=True),
    sa.Column("error_code", sa.String(40), nullable=True),
    sa.Column("error_message", sa.Text, nullable=True),
    sa.Column("result_version", sa.Integer, nullable=True),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("started_at", sa.BigInteger, nullable=True),
    sa.Column("finished_at", sa.BigInteger, nullable=True),
    # What its checkpoint and its result take of the tenant's storage; 0 once the result is a version of its own.
    sa.Column("stored_bytes", sa.BigInteger, nullable=False, server_default="0"),
)
sa.Index("ix_jobs_state", jobs.c.state, jobs.c.created_at)

job_lines = tenant_table(
    "job_lines",
    sa.Column("job_id", sa.String(40), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("text", sa.String(400), nullable=False),
)
