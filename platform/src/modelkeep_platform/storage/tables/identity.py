"""Tenants, memberships, and what the embedded issuer keeps: credentials, links, device codes, refresh tokens.

Secrets are kept as hashes: passwords by argon2id, 256-bit random tokens by SHA-256.
"""

import sqlalchemy as sa

from modelkeep_platform.storage.schema import platform_table, tenant_table

tenants = platform_table(
    "tenants",
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("slug", sa.String(40), nullable=False, unique=True),
    sa.Column("name", sa.String(120), nullable=False),
    sa.Column("state", sa.String(12), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)

memberships = tenant_table(
    "memberships",
    sa.Column("issuer", sa.String(255), primary_key=True),
    sa.Column("subject", sa.String(80), primary_key=True),
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("roles", sa.Text, nullable=False),
    sa.Column("state", sa.String(12), nullable=False),
    sa.Column("client_id", sa.String(80), nullable=True),
    sa.Column("not_before", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("tenant_id", "kind", "name"),
)

issuer_users = tenant_table(
    "issuer_users",
    sa.Column("username", sa.String(64), primary_key=True),
    sa.Column("subject", sa.String(80), nullable=False),
    sa.Column("password_hash", sa.Text, nullable=False),
)

issuer_clients = platform_table(
    "issuer_clients",
    sa.Column("client_id", sa.String(80), primary_key=True),
    sa.Column("tenant", sa.String(64), nullable=False),
    sa.Column("subject", sa.String(80), nullable=False),
    sa.Column("secret_hash", sa.String(64), nullable=False),
)

links = platform_table(
    "links",
    sa.Column("token_hash", sa.String(64), primary_key=True),
    sa.Column("tenant", sa.String(64), nullable=False),
    sa.Column("subject", sa.String(80), nullable=True),
    sa.Column("username", sa.String(64), nullable=True),
    sa.Column("expires_at", sa.BigInteger, nullable=False),
    sa.Column("used_at", sa.BigInteger, nullable=True),
)

device_codes = platform_table(
    "device_codes",
    sa.Column("code_hash", sa.String(64), primary_key=True),
    sa.Column("user_code", sa.String(16), nullable=False, unique=True),
    sa.Column("tenant", sa.String(64), nullable=False),
    sa.Column("client_id", sa.String(80), nullable=False),
    sa.Column("state", sa.String(12), nullable=False),
    sa.Column("subject", sa.String(80), nullable=True),
    sa.Column("expires_at", sa.BigInteger, nullable=False),
    sa.Column("polled_at", sa.BigInteger, nullable=False),
)

refresh_tokens = platform_table(
    "refresh_tokens",
    sa.Column("token_hash", sa.String(64), primary_key=True),
    sa.Column("family", sa.String(40), nullable=False, index=True),
    sa.Column("tenant", sa.String(64), nullable=False),
    sa.Column("subject", sa.String(80), nullable=False),
    sa.Column("client_id", sa.String(80), nullable=False),
    sa.Column("issued_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False),
    sa.Column("used_at", sa.BigInteger, nullable=True),
)

denied_tokens = platform_table(
    "denied_tokens",
    sa.Column("token_id", sa.String(80), primary_key=True),
    sa.Column("expires_at", sa.BigInteger, nullable=False),
)

guesses = platform_table(
    "guesses",
    sa.Column("what", sa.String(160), primary_key=True),
    sa.Column("count", sa.Integer, nullable=False),
    sa.Column("since", sa.BigInteger, nullable=False),
)
