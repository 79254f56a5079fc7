"""From a bearer token to a caller: verify, then look up tenant, membership and revocation.

Roles come from the membership table, never from the token. A verified caller is cached by the token's hash for one
epoch, so suspension, removal, rotation and denial hold for the next call.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import sqlalchemy as sa

from modelkeep_platform.core.callers import Caller, OperatorCaller, PrincipalKind, TenantCaller
from modelkeep_platform.core.epoch_cache import EpochCache
from modelkeep_platform.core.ids import PLATFORM, PrincipalId, RequestId, TenantId
from modelkeep_platform.core.ports import Clock, EpochSource
from modelkeep_platform.identity.memberships import Membership, Memberships
from modelkeep_platform.identity.registry import ACTIVE, TenantRegistry
from modelkeep_platform.identity.tokens import Claims, ExpiredTokenError, InvalidTokenError, peek, verify
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.tables.identity import denied_tokens, issuer_clients
from modelkeep_platform.storage.transactions import PlatformTransaction

AUDIENCE: Final = "modelkeep"
OPERATOR_AUDIENCE: Final = "modelkeep-operator"
SDK_CLIENT: Final = "modelkeep-sdk"
_CACHED: Final = 10_000
_DENIED: Final = sa.select(denied_tokens.c.token_id).where(denied_tokens.c.token_id == sa.bindparam("token_id"))
_CLIENT: Final = sa.select(issuer_clients).where(issuer_clients.c.client_id == sa.bindparam("client_id"))


class IssuerKeys(Protocol):
    """The issuer's public keys."""

    def jwks(self) -> Mapping[str, Any]:
        """Return the JWK set."""


@dataclass(frozen=True, slots=True)
class _Known:
    expires_at: int
    caller: Caller


class Authenticator:
    """Verifies tokens of one issuer.

    Args:
        database: where memberships and denials are.
        keys: the issuer's public keys.
        issuer: its identifier.
        registry: the tenants there are.
        memberships: who belongs to them.
        epoch: what cached callers live by.
        clock: ends tokens.
    """

    def __init__(
        self,
        *,
        database: Database,
        keys: IssuerKeys,
        issuer: str,
        registry: TenantRegistry,
        memberships: Memberships,
        epoch: EpochSource,
        clock: Clock,
    ) -> None:
        self._database = database
        self._keys = keys
        self._issuer = issuer
        self._registry = registry
        self._memberships = memberships
        self._epoch = epoch
        self._clock = clock
        self._known: EpochCache[bytes, _Known] = EpochCache(_CACHED)

    def cached(self, token: str, request_id: RequestId) -> Caller | None:
        """Return the caller of a token verified before in this epoch, from memory alone.

        Raises:
            ExpiredTokenError: it was, and is over.
            UnavailableError: the epoch cannot be read.
        """
        return self._cached(_hash(token), request_id, self._epoch.current())

    def authenticate(self, token: str, request_id: RequestId) -> Caller:
        """Verify `token` and return its caller.

        Raises:
            UnauthenticatedError: it does not verify, or tenant, member or token are no longer accepted.
        """
        epoch, hashed = self._epoch.current(), _hash(token)
        known = self._cached(hashed, request_id, epoch)
        if known is not None:
            return known
        _, unverified = peek(token)
        operator = OPERATOR_AUDIENCE in _listed(unverified.get("aud"))
        claims = verify(
            token,
            keys=self._keys.jwks(),
            issuer=self._issuer,
            audience=OPERATOR_AUDIENCE if operator else AUDIENCE,
            now=self._clock.now_s(),
            organization=not operator,
        )
        with self._database.platform(read_only=True) as tx:
            if tx.first(_DENIED, token_id=claims.token_id) is not None:
                raise InvalidTokenError("the token was revoked; log in again")
            caller = self._operator(tx, claims, request_id) if operator else self._member(tx, claims, request_id)
        self._known.put(hashed, _Known(claims.expires_at, caller), epoch=epoch)
        return caller

    def _cached(self, hashed: bytes, request_id: RequestId, epoch: int) -> Caller | None:
        known = self._known.get(hashed, epoch=epoch)
        if known is None:
            return None
        if known.expires_at <= self._clock.now_s():
            raise ExpiredTokenError("the token has expired; log in again")
        return known.caller.asking(request_id)

    def _operator(self, tx: PlatformTransaction, claims: Claims, request_id: RequestId) -> OperatorCaller:
        row = tx.first(_CLIENT, client_id=claims.client_id)
        membership = self._memberships.find(tx.as_tenant(PLATFORM), claims.subject)
        if row is None or row["tenant"] != PLATFORM or row["subject"] != claims.subject or membership is None:
            raise InvalidTokenError("the token is not of an operator's client")
        _refuse_outdated(claims, membership)
        return OperatorCaller(
            principal=PrincipalId(claims.subject),
            name=membership.name,
            token_id=claims.token_id,
            request_id=request_id,
        )

    def _member(self, tx: PlatformTransaction, claims: Claims, request_id: RequestId) -> TenantCaller:
        tenant = self._registry.find(tx, TenantId(claims.organization_id or ""))
        if tenant is None or tenant.id == PLATFORM:
            raise InvalidTokenError("the token's organization is not a tenant here")
        if tenant.state != ACTIVE:
            raise InvalidTokenError("the tenant is suspended; ask the platform's operator")
        membership = self._memberships.find(tx.as_tenant(tenant.id), claims.subject)
        if membership is None or membership.state != ACTIVE:
            raise InvalidTokenError("the token's subject is not a member of the tenant")
        expected = SDK_CLIENT if membership.kind is PrincipalKind.USER else membership.client_id
        if claims.client_id != expected:
            raise InvalidTokenError("the token was issued to another client")
        _refuse_outdated(claims, membership)
        return TenantCaller(
            tenant=tenant.id,
            principal=membership.subject,
            principal_kind=membership.kind,
            name=membership.name,
            roles=membership.roles,
            token_id=claims.token_id,
            request_id=request_id,
        )


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _refuse_outdated(claims: Claims, membership: Membership) -> None:
    if claims.issued_at <= membership.not_before:
        raise InvalidTokenError("the token is older than the last change of its credential; log in again")


def _listed(audience: object) -> list[object]:
    return audience if isinstance(audience, list) else [audience]
