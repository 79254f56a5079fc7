"""Rows that say who belongs to a tenant, with which roles; keyed by tenant, issuer and subject."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from modelkeep_platform.core.callers import PrincipalKind, Role
from modelkeep_platform.core.errors import ConflictError, UnprocessableError
from modelkeep_platform.core.ids import PrincipalId
from modelkeep_platform.storage.prepared import PreparedSelect
from modelkeep_platform.storage.tables.identity import memberships
from modelkeep_platform.storage.transactions import Row, TenantTransaction

_FIND: Final = PreparedSelect(
    memberships,
    where=(memberships.c.issuer == sa.bindparam("issuer"), memberships.c.subject == sa.bindparam("subject")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """One member or service account of one tenant; tokens issued at or before `not_before` are void."""

    subject: PrincipalId
    kind: PrincipalKind
    name: str
    roles: frozenset[Role]
    state: str
    client_id: str | None
    not_before: int
    created_at: int


class Memberships:
    """Reads and writes memberships of one issuer, within open transactions.

    Args:
        issuer: whose subjects they are.
    """

    def __init__(self, *, issuer: str) -> None:
        self._issuer = issuer

    def find(self, tx: TenantTransaction, subject: str) -> Membership | None:
        """Return the membership of `subject`, or None."""
        return _membership(tx.first(_FIND, issuer=self._issuer, subject=subject))

    def by_name(self, tx: TenantTransaction, kind: PrincipalKind, name: str) -> Membership | None:
        """Return the membership with this name, or None."""
        return _membership(tx.first(self._select(tx).where(memberships.c.kind == kind, memberships.c.name == name)))

    def list(self, tx: TenantTransaction, kind: PrincipalKind, *, after: str, limit: int) -> Sequence[Membership]:
        """Return up to `limit` memberships of a kind in order of name."""
        query = self._select(tx).where(memberships.c.kind == kind, memberships.c.name > after)
        rows = tx.all(query.order_by(memberships.c.name).limit(limit))
        return [found for row in rows if (found := _membership(row)) is not None]

    def add(self, tx: TenantTransaction, membership: Membership) -> None:
        """Insert a membership.

        Raises:
            ConflictError: the name is taken.
        """
        if self.by_name(tx, membership.kind, membership.name) is not None:
            raise ConflictError(f"the name `{membership.name}` is taken; choose another", code="name_taken")
        tx.insert(
            memberships,
            issuer=self._issuer,
            subject=membership.subject,
            kind=membership.kind,
            name=membership.name,
            roles=_roles_text(membership.roles),
            state=membership.state,
            client_id=membership.client_id,
            not_before=membership.not_before,
            created_at=membership.created_at,
        )

    def count(self, tx: TenantTransaction, kind: PrincipalKind) -> int:
        """Return how many of a kind the tenant has."""
        return tx.count(memberships, memberships.c.issuer == self._issuer, memberships.c.kind == kind)

    def refuse_more(self, tx: TenantTransaction, kind: PrincipalKind, most: int) -> None:
        """Raise when the tenant has as many of a kind as it may; in the transaction that would add one.

        Raises:
            ConflictError: it has.
        """
        if self.count(tx, kind) >= most:
            ask = "or ask the platform's operator for more"
            if kind is PrincipalKind.USER:
                raise ConflictError(f"this tenant may have {most} members; remove some, {ask}", code="too_many_members")
            raise ConflictError(
                f"this tenant may have {most} accounts; delete some, {ask}", code="too_many_service_accounts"
            )

    def set(self, tx: TenantTransaction, subject: str, **values: object) -> None:
        """Change columns of one membership; `roles` is a set of roles."""
        if "roles" in values:
            values["roles"] = _roles_text(values["roles"])  # type: ignore[arg-type]  # callers pass sets of roles
        tx.change(
            tx.update(memberships)
            .where(memberships.c.issuer == self._issuer, memberships.c.subject == subject)
            .values(**values)
        )

    def remove(self, tx: TenantTransaction, subject: str) -> None:
        """Delete one membership."""
        tx.change(tx.delete(memberships).where(memberships.c.issuer == self._issuer, memberships.c.subject == subject))

    def void_tokens(self, tx: TenantTransaction, subject: str, now: int) -> None:
        """Make every token that the subject has void; the next one issued is good, even in the same second."""
        # INVARIANT: `not_before` only grows. A token issued after a change carries at least `not_before + 1`, which
        # may be a second ahead of the clock; a second change in that second must end it too.
        later = sa.case((memberships.c.not_before >= now, memberships.c.not_before + 1), else_=now)
        self.set(tx, subject, not_before=later)

    def administrators(self, tx: TenantTransaction) -> frozenset[str]:
        """Return the subjects of the tenant's active administrators."""
        rows = tx.all(self._select(tx).where(memberships.c.state == "active", memberships.c.kind == PrincipalKind.USER))
        return frozenset(row["subject"] for row in rows if Role.TENANT_ADMIN in json.loads(row["roles"]))

    def refuse_last_admin(self, tx: TenantTransaction, subject: str) -> None:
        """Raise when `subject` is the tenant's only active administrator.

        Bump the epoch in `tx` first: its row is the lock that lets one change of administrators happen at a time.

        Raises:
            ConflictError: it is.
        """
        if self.administrators(tx) == {subject}:
            raise ConflictError(
                "this is the tenant's last administrator; make another one first", code="last_administrator"
            )

    def _select(self, tx: TenantTransaction) -> sa.Select[tuple[object, ...]]:
        return tx.select(memberships).where(memberships.c.issuer == self._issuer)


def check_roles(roles: Iterable[Role], *, allow_admin: bool = True) -> frozenset[Role]:
    """Return roles that may be given.

    Raises:
        UnprocessableError: none, or `tenant-admin` where it may not be.
    """
    wanted = frozenset(roles)
    if not wanted:
        raise UnprocessableError("give at least one role", code="invalid_role")
    if not allow_admin and Role.TENANT_ADMIN in wanted:
        raise UnprocessableError("`tenant-admin` is for people, not for service accounts", code="invalid_role")
    return wanted


def _roles_text(roles: Iterable[Role]) -> str:
    return json.dumps(sorted(roles))


def _membership(row: Row | None) -> Membership | None:
    if row is None:
        return None
    return Membership(
        subject=PrincipalId(row["subject"]),
        kind=PrincipalKind(row["kind"]),
        name=row["name"],
        roles=frozenset(Role(role) for role in json.loads(row["roles"])),
        state=row["state"],
        client_id=row["client_id"],
        not_before=row["not_before"],
        created_at=row["created_at"],
    )
