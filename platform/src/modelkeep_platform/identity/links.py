"""One-time links: enrolment of a tenant's first administrator, invitation of a member.

A tenant has at most one enrolment link that works. Only the hash of a link's token is kept.
"""

from dataclasses import dataclass, field
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

    token: str = field(repr=False)
    url: str = field(repr=False)
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

    def make_in(self, tx: PlatformTransaction, tenant: TenantId, *, subject: str | None, username: str | None) -> Link:
        """Make a link for `subject`, or for a tenant's new administrator when None; older such links end."""
        token = new_secret("enr")
        now = self._clock.now_s()
        expires_at = now + KEEP_S
        # What is over is refused like what never was, so nothing needs to be kept of it.
        tx.execute(sa.delete(links).where(links.c.expires_at <= now))
        same = links.c.subject.is_(None) if subject is None else links.c.subject == subject
        tx.execute(
            sa.update(links).where(links.c.tenant == tenant, same, links.c.used_at.is_(None)).values(used_at=now)
        )
        tx.execute(
            sa.insert(links).values(
                token_hash=token_hash(token), tenant=tenant, subject=subject, username=username, expires_at=expires_at
            )
        )
        return Link(token=token, url=f"{self._base_url}/issuer/enrol?token={token}", expires_at=expires_at)

    def refuse_unusable(self, token: str) -> None:
        """Raise early, before work is done for a link that cannot be used; `use` decides.

        Raises:
            UsedLinkError: it cannot be used.
        """
        with self._database.platform(read_only=True) as tx:
            row = tx.first(sa.select(links).where(links.c.token_hash == token_hash(token)))
        if row is None or row["used_at"] is not None or row["expires_at"] <= self._clock.now_s():
            raise unusable()

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
            raise unusable()
        return row


def unusable() -> UsedLinkError:
    """Return the one refusal of links, whatever the reason."""
    return UsedLinkError("this link was used, is over, or never was; ask for a new one")
