"""The embedded OpenID issuer: client credentials, device authorization (RFC 8628), refresh with rotation.

Tokens have the shape Keycloak gives, so one verifier serves both. Signing keys are ES256, kept sealed; a rotated key
still verifies until its last token is over. A refresh token works once: its second use revokes the whole family.
"""

import json
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import sqlalchemy as sa
from joserfc import jws
from joserfc.jwk import ECKey

from modelkeep_platform.core.callers import PrincipalKind
from modelkeep_platform.core.errors import CallerError
from modelkeep_platform.core.ids import PLATFORM, TenantId, new_object_id
from modelkeep_platform.core.ports import Clock, Entropy
from modelkeep_platform.core.secrets import SecretBytes
from modelkeep_platform.identity.authenticate import AUDIENCE, OPERATOR_AUDIENCE, SDK_CLIENT
from modelkeep_platform.identity.memberships import Membership, Memberships
from modelkeep_platform.identity.registry import ACTIVE, TenantRegistry
from modelkeep_platform.identity.secrets import GuessLimit, new_secret, password_matches, token_hash
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.tables.identity import (
    denied_tokens,
    device_codes,
    issuer_clients,
    issuer_users,
    refresh_tokens,
)
from modelkeep_platform.storage.transactions import PlatformTransaction, Row, System

ACCESS_S: Final = 300
REFRESH_S: Final = 30 * 24 * 3600
DEVICE_S: Final = 600
INTERVAL_S: Final = 1
_KEYS: Final = "issuer-keys"
_USER_CODE: Final = "BCDFGHJKLMNPQRSTVWXZ"  # no vowels: no words; RFC 8628, 6.1
_SYSTEM: Final = System(reason="issue a token")


class SecretStore(Protocol):
    """Keeps the signing keys sealed."""

    def get(self, name: str) -> SecretBytes | None:
        """Return the secret, or None."""

    def put(self, name: str, secret: SecretBytes) -> None:
        """Keep it, replacing an older one."""


class OAuthError(CallerError):
    """A refusal in the words of RFC 6749, section 5.2, and RFC 8628, section 3.5; the code is the OAuth error."""

    code = "invalid_request"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceAuthorization:
    """What a device shows its user."""

    device_code: str
    user_code: str
    expires_in: int
    interval: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenAnswer:
    """An access token, and a refresh token for people."""

    access_token: str
    token_type: str
    expires_in: int
    refresh_token: str | None = None


class EmbeddedIssuer:
    """Issues tokens for members and service accounts of the tenants here.

    Args:
        database: where credentials are.
        secret_store: keeps the signing keys.
        issuer: the issuer's identifier.
        registry: the tenants there are.
        memberships: who belongs to them.
        guesses: slows guessing.
        clock: stamps tokens.
        entropy: names tokens.
    """

    def __init__(
        self,
        *,
        database: Database,
        secret_store: SecretStore,
        issuer: str,
        registry: TenantRegistry,
        memberships: Memberships,
        guesses: GuessLimit,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._database = database
        self._secret_store = secret_store
        self.issuer = issuer
        self._registry = registry
        self._memberships = memberships
        self._guesses = guesses
        self._clock = clock
        self._entropy = entropy
        self._lock = threading.Lock()
        self._keys: list[dict[str, Any]] = []

    # --- keys -------------------------------------------------------------------------------------

    def jwks(self) -> Mapping[str, Any]:
        """Return the public keys, newest first."""
        return {"keys": [ECKey.import_key(key["jwk"]).as_dict(private=False) for key in self._loaded()]}

    def rotate_key(self) -> None:
        """Sign with a new key; older ones verify until their last token is over."""
        now = self._clock.now_s()
        kept = [key for key in self._loaded() if key["made_at"] > now - 2 * ACCESS_S or key is self._keys[0]]
        self._store([_new_key(now), *kept[:4]])

    def _loaded(self) -> list[dict[str, Any]]:
        with self._lock:
            if self._keys:
                return self._keys
        stored = self._secret_store.get(_KEYS)
        if stored is None:
            self._store([_new_key(self._clock.now_s())])
        else:
            with self._lock:
                self._keys = json.loads(stored.reveal())
        return self._keys

    def _store(self, keys: list[dict[str, Any]]) -> None:
        self._secret_store.put(_KEYS, SecretBytes(json.dumps(keys).encode()))
        with self._lock:
            self._keys = keys

    # --- client credentials -----------------------------------------------------------------------

    def client_credentials(self, client_id: str, client_secret: str, *, source: str) -> TokenAnswer:
        """Return an access token for a service account or an operator.

        Raises:
            OAuthError: unknown client or wrong secret; which of them is not said.
            RateLimitedError: too many failures.
        """
        self._guesses.check(f"client:{client_id[:80]}:{source}")
        with self._database.platform(read_only=True) as tx:
            row = tx.first(sa.select(issuer_clients).where(issuer_clients.c.client_id == client_id))
        expected = row["secret_hash"] if row is not None else token_hash("no such client")
        if not secrets.compare_digest(expected, token_hash(client_secret)) or row is None:
            self._guesses.failed(f"client:{client_id[:80]}:{source}")
            raise OAuthError("the client id or secret is wrong", code="invalid_client")
        return TokenAnswer(
            access_token=self._access_token(TenantId(row["tenant"]), row["subject"], client_id),
            token_type="Bearer",  # noqa: S106 -- RFC 6750's token type
            expires_in=ACCESS_S,
        )

    # --- device authorization ---------------------------------------------------------------------

    def authorize_device(self, client_id: str, scope: str) -> DeviceAuthorization:
        """Begin a device login; the scope names the tenant, ``organization:<slug>``.

        Raises:
            OAuthError: another client than the SDK's, or no tenant in the scope.
        """
        if client_id != SDK_CLIENT:
            raise OAuthError("this client may not log people in", code="unauthorized_client")
        slugs = [word.removeprefix("organization:") for word in scope.split() if word.startswith("organization:")]
        if len(slugs) != 1:
            raise OAuthError("ask for the scope `organization:<slug>` of one tenant", code="invalid_scope")
        tenant = self._registry.by_slug(slugs[0])
        device_code, user_code = new_secret("dev"), "".join(secrets.choice(_USER_CODE) for _ in range(8))
        now = self._clock.now_s()
        with self._database.platform() as tx:
            tx.execute(sa.delete(device_codes).where(device_codes.c.expires_at < now - DEVICE_S))
            tx.execute(
                sa.insert(device_codes).values(
                    code_hash=token_hash(device_code),
                    user_code=user_code,
                    # An unknown tenant gets a code nobody can approve: slugs cannot be probed here.
                    tenant="" if tenant is None else tenant.id,
                    client_id=client_id,
                    state="pending",
                    expires_at=now + DEVICE_S,
                    polled_at=0,
                )
            )
        shown = f"{user_code[:4]}-{user_code[4:]}"
        return DeviceAuthorization(device_code=device_code, user_code=shown, expires_in=DEVICE_S, interval=INTERVAL_S)

    def approve_device(self, user_code: str, username: str, password: str, *, source: str) -> None:
        """Approve a device, on the sign-in page, with a member's password.

        Raises:
            OAuthError: code, name or password is wrong; which of them is not said.
            RateLimitedError: too many failures.
        """
        code = user_code.upper().replace("-", "").replace(" ", "")[:16]
        with self._database.platform(read_only=True) as tx:
            row = tx.first(sa.select(device_codes).where(device_codes.c.user_code == code))
        tenant = TenantId(row["tenant"] if row is not None else "")
        subjects = (f"user:{tenant}:{username[:64]}", f"source:{source}")
        self._guesses.check(*subjects)
        with self._database.tenant(tenant, by=_SYSTEM, read_only=True) as own:
            user = own.first(own.select(issuer_users).where(issuer_users.c.username == username))
        if not password_matches(password, None if user is None else user["password_hash"]) or user is None:
            self._guesses.failed(*subjects)
            raise OAuthError("the code, the name or the password is wrong", code="access_denied")
        with self._database.platform() as tx:
            changed = tx.execute(
                sa.update(device_codes)
                .where(
                    device_codes.c.user_code == code,
                    device_codes.c.state == "pending",
                    device_codes.c.expires_at > self._clock.now_s(),
                )
                .values(state="approved", subject=user["subject"])
            )
        if not changed.rowcount:
            raise OAuthError("the code, the name or the password is wrong", code="access_denied")

    def redeem_device(self, device_code: str, client_id: str) -> TokenAnswer:
        """Return tokens once the device was approved.

        Raises:
            OAuthError: ``authorization_pending``, ``slow_down``, ``expired_token`` or ``invalid_grant``.
        """
        now = self._clock.now_s()
        where = device_codes.c.code_hash == token_hash(device_code)
        with self._database.platform() as tx:
            row = tx.first(sa.select(device_codes).where(where))
            refusal = _device_refusal(row, client_id, now)
            if row is not None and refusal is not None and refusal.error_code == "authorization_pending":
                tx.execute(sa.update(device_codes).where(where).values(polled_at=now))
            if refusal is None and row is not None:
                used = tx.execute(
                    sa.update(device_codes).where(where, device_codes.c.state == "approved").values(state="used")
                )
                refusal = None if used.rowcount else OAuthError("the code was used", code="invalid_grant")
        if refusal is not None or row is None:
            raise refusal or OAuthError("the code is not known", code="invalid_grant")
        return self._person_tokens(TenantId(row["tenant"]), row["subject"], client_id, family=None)

    # --- refresh ----------------------------------------------------------------------------------

    def refresh(self, refresh_token: str, client_id: str) -> TokenAnswer:
        """Exchange a refresh token for new tokens; a second use revokes its family.

        Raises:
            OAuthError: it is unknown, over, used or revoked, or of another client.
        """
        now = self._clock.now_s()
        with self._database.platform() as tx:
            row = tx.first(sa.select(refresh_tokens).where(refresh_tokens.c.token_hash == token_hash(refresh_token)))
            fresh = row is not None and self._spend(tx, row, client_id, now)
        if row is None or not fresh:
            raise OAuthError("the refresh token is over; log in again", code="invalid_grant")
        return self._person_tokens(TenantId(row["tenant"]), row["subject"], client_id, family=row)

    def revoke(self, token: str) -> None:
        """Revoke a refresh token's family (RFC 7009); an unknown token is no error."""
        with self._database.platform() as tx:
            row = tx.first(sa.select(refresh_tokens).where(refresh_tokens.c.token_hash == token_hash(token)))
            if row is not None:
                tx.execute(sa.delete(refresh_tokens).where(refresh_tokens.c.family == row["family"]))

    def deny(self, tx: PlatformTransaction, token_id: str) -> None:
        """Put an access token on the list of denied ones until it would be over anyway."""
        now = self._clock.now_s()
        tx.execute(sa.delete(denied_tokens).where(denied_tokens.c.expires_at < now))
        tx.execute(sa.insert(denied_tokens).values(token_id=token_id, expires_at=now + ACCESS_S))
        tx.bump_epoch()

    def _spend(self, tx: PlatformTransaction, row: Row, client_id: str, now: int) -> bool:
        if row["client_id"] != client_id or row["expires_at"] <= now:
            return False
        used = tx.execute(
            sa.update(refresh_tokens)
            .where(refresh_tokens.c.token_hash == row["token_hash"], refresh_tokens.c.used_at.is_(None))
            .values(used_at=now)
        )
        if not used.rowcount:
            tx.execute(sa.delete(refresh_tokens).where(refresh_tokens.c.family == row["family"]))
            return False
        return True

    # --- tokens -----------------------------------------------------------------------------------

    def _person_tokens(self, tenant: TenantId, subject: str, client_id: str, *, family: Row | None) -> TokenAnswer:
        membership = self._membership(tenant, subject)
        now = self._clock.now_s()
        if family is not None and family["issued_at"] <= membership.not_before:
            raise OAuthError("the refresh token is over; log in again", code="invalid_grant")
        access = self._access_token(tenant, subject, client_id)
        refresh_token = new_secret("mkr")
        with self._database.platform() as tx:
            tx.execute(
                sa.insert(refresh_tokens).values(
                    token_hash=token_hash(refresh_token),
                    family=new_object_id(self._entropy, "fam") if family is None else family["family"],
                    tenant=tenant,
                    subject=subject,
                    client_id=client_id,
                    issued_at=now if family is None else family["issued_at"],
                    expires_at=now + REFRESH_S if family is None else family["expires_at"],
                )
            )
        return TokenAnswer(
            access_token=access,
            token_type="Bearer",  # noqa: S106 -- RFC 6750's token type
            expires_in=ACCESS_S,
            refresh_token=refresh_token,
        )

    def _access_token(self, tenant: TenantId, subject: str, client_id: str) -> str:
        membership = self._membership(tenant, subject)
        # A token made in the second of the last rotation must be newer than what was rotated away.
        issued_at = max(self._clock.now_s(), membership.not_before + 1)
        claims: dict[str, Any] = {
            "iss": self.issuer,
            "aud": OPERATOR_AUDIENCE if tenant == PLATFORM else AUDIENCE,
            "sub": subject,
            "azp": client_id,
            "typ": "Bearer",
            "jti": new_object_id(self._entropy, "tok"),
            "iat": issued_at,
            "nbf": issued_at,
            "exp": issued_at + ACCESS_S,
        }
        if tenant != PLATFORM:
            claims["organization"] = {self._registry.slug_of(tenant): {"id": tenant}}
        key = ECKey.import_key(self._loaded()[0]["jwk"])
        header = {"alg": "ES256", "typ": "JWT", "kid": key.kid}
        return jws.serialize_compact(header, json.dumps(claims).encode(), key, algorithms=["ES256"])

    def _membership(self, tenant: TenantId, subject: str) -> Membership:
        known = self._registry.by_id(tenant)
        if tenant != PLATFORM and (known is None or known.state != ACTIVE):
            raise OAuthError("the tenant is suspended; ask the platform's operator", code="invalid_grant")
        with self._database.tenant(tenant, by=_SYSTEM, read_only=True) as tx:
            membership = self._memberships.find(tx, subject)
        if membership is None or membership.state != ACTIVE:
            raise OAuthError("this account is no longer a member", code="invalid_grant")
        return membership


def new_operator(tx: PlatformTransaction, memberships: Memberships, *, client_id: str, secret: str, now: int) -> None:
    """Make the operator's client at `init`."""
    memberships.add(
        tx.as_tenant(PLATFORM),
        Membership(
            subject=client_id,  # type: ignore[arg-type]  # the operator's subject is its client id
            kind=PrincipalKind.OPERATOR,
            name=client_id,
            roles=frozenset(),
            state=ACTIVE,
            client_id=client_id,
            not_before=0,
            created_at=now,
        ),
    )
    tx.execute(
        sa.insert(issuer_clients).values(
            client_id=client_id, tenant=PLATFORM, subject=client_id, secret_hash=token_hash(secret)
        )
    )


def _device_refusal(row: Row | None, client_id: str, now: int) -> OAuthError | None:
    if row is None or row["client_id"] != client_id or row["state"] == "used":
        return OAuthError("the code is not known, or was used", code="invalid_grant")
    if row["expires_at"] <= now:
        return OAuthError("the code is over; begin again", code="expired_token")
    if row["state"] != "pending":
        return None
    if row["polled_at"] and now - row["polled_at"] < INTERVAL_S:
        return OAuthError(f"ask at most every {INTERVAL_S} s", code="slow_down")
    return OAuthError("the person has not approved yet", code="authorization_pending")


def _new_key(now: int) -> dict[str, Any]:
    key = ECKey.generate_key("P-256", {"use": "sig", "alg": "ES256"}, private=True, auto_kid=True)
    return {"made_at": now, "jwk": key.as_dict(private=True)}
