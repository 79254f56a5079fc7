"""The epoch: one row whose number every change of policy, grant, tenant, member, denial or key moves."""

import sqlalchemy as sa

from modelkeep_platform.storage.schema import platform_table

epoch = platform_table(
    "epoch",
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("number", sa.BigInteger, nullable=False),
)
