"""One-time links: enrolment of a tenant's first administrator, invitation of a member."""

from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from modelkeep_platform.core.errors import UnprocessableError
from modelkeep_platform.core.ids import TenantId
from modelkeep_platform.core.ports import Clock
from modelkeep_platform.identity.secrets import new_secret, token_hash
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.tables.identity import links
from modelkeep_platform.storage.transactions import PlatformTransaction, Row

KEEP_S: Final = 72 * 3600


class UsedLinkError(UnprocessableError):
    """The link is unknown, was used, or is over; which of them is not said."""

    code = "link_invalid"


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A link, shown once; only its hash is kept."""

    token: str
    url: str
    expires_at: int


class Links:
    """Makes and uses links.

    Args:
        database: where hashes are.
        clock: ends links.
        base_url: the platform's address.
    """

    def __init__(self, *, database: Database, clock: Clock, base_url: str) -> None:
        self._database = database
        self._clock = clock
        self._base_url = base_url

    def make(self, tenant: TenantId, *, subject: str | None, username: str | None) -> Link:
        """Make a link for `subject`, or for a tenant's new administrator when None."""
        with self._database.platform() as tx:
            return self.make_in(tx, tenant, subject=subject, username=username)

    def make_in(self, tx: PlatformTransaction, tenant: TenantId, *, subject: str | None, username: str | None) -> Link:
        """Make a link within an open transaction."""
        token = new_secret("enr")
        expires_at = self._clock.now_s() + KEEP_S
        tx.execute(
            sa.insert(links).values(
                token_hash=token_hash(token), tenant=tenant, subject=subject, username=username, expires_at=expires_at
            )
        )
        return Link(token=token, url=f"{self._base_url}/issuer/enrol?token={token}", expires_at=expires_at)

    def use(self, tx: PlatformTransaction, token: str) -> Row:
        """Mark the link used, by one conditional UPDATE, and return its row.

        Raises:
            UsedLinkError: it cannot be used.
        """
        now = self._clock.now_s()
        changed = tx.execute(
            sa.update(links)
            .where(links.c.token_hash == token_hash(token), links.c.used_at.is_(None), links.c.expires_at > now)
            .values(used_at=now)
        )
        row = tx.first(sa.select(links).where(links.c.token_hash == token_hash(token)))
        if not changed.rowcount or row is None:
            raise UsedLinkError("this link was used, is over, or never was; ask for a new one")
        return row
