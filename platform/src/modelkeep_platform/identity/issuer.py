"""The embedded OpenID issuer: client credentials, device authorization (RFC 8628), refresh with rotation.

Tokens have the shape Keycloak gives, so one verifier serves both. Signing keys are ES256, kept sealed; a rotated key
still verifies until its last token is over, and no longer. A refresh token works once: its second use revokes the
whole family. Passwords are guessed ten times a quarter of an hour for each code, person and source, then refused.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa

from modelkeep_platform.core.callers import PrincipalKind
from modelkeep_platform.core.errors import CallerError, UnauthenticatedError, UnavailableError
from modelkeep_platform.core.ids import PLATFORM, TenantId, new_object_id
from modelkeep_platform.core.ports import Clock, Entropy, EpochSource
from modelkeep_platform.identity.authenticate import AUDIENCE, OPERATOR_AUDIENCE, SDK_CLIENT
from modelkeep_platform.identity.guesses import GuessLimit
from modelkeep_platform.identity.keyring import Keyring, SecretStore
from modelkeep_platform.identity.memberships import Membership, Memberships
from modelkeep_platform.identity.registry import ACTIVE, TenantRegistry
from modelkeep_platform.identity.secrets import new_secret, password_matches, token_hash
from modelkeep_platform.identity.tokens import LEEWAY_S, verify
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
_RETIRED_KEY_S: Final = ACCESS_S + 2 * LEEWAY_S
_DEVICES_BEGUN: Final = 300
_USER_CODE: Final = "BCDFGHJKLMNPQRSTVWXZ"  # no vowels: no words; RFC 8628, 6.1
_SYSTEM: Final = System(reason="issue a token")


class OAuthError(CallerError):
    """A refusal in the words of RFC 6749, section 5.2, and RFC 8628, section 3.5; the code is the OAuth error."""

    code = "invalid_request"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceAuthorization:
    """What a device shows its user."""

    device_code: str = field(repr=False)
    user_code: str
    expires_in: int
    interval: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenAnswer:
    """An access token, and a refresh token for people."""

    access_token: str = field(repr=False)
    token_type: str
    expires_in: int
    refresh_token: str | None = field(default=None, repr=False)


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
        epoch: moved when an access token is revoked; the signing keys are read anew with it.
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
        epoch: EpochSource,
    ) -> None:
        self._database = database
        self.issuer = issuer
        self._registry = registry
        self._memberships = memberships
        self._guesses = guesses
        self._clock = clock
        self._entropy = entropy
        self._epoch = epoch
        # Long enough for a token whose `iat` stands a little ahead of the clock.
        self._keyring = Keyring(
            secret_store=secret_store, clock=clock, retired_s=_RETIRED_KEY_S, epoch=epoch.last_known
        )

    def jwks(self) -> Mapping[str, Any]:
        """Return the public keys whose tokens may still be good, newest first."""
        return self._keyring.jwks()

    def rotate_key(self) -> None:
        """Sign with a new key; older ones verify until their last token is over."""
        self._keyring.rotate()

    # --- client credentials -----------------------------------------------------------------------

    def client_credentials(self, client_id: str, client_secret: str, *, source: str) -> TokenAnswer:
        """Return an access token for a service account or an operator.

        Raises:
            OAuthError: unknown client or wrong secret; which of them is not said.
            RateLimitedError: too many failures.
        """
        with self._database.platform(read_only=True) as tx:
            row = tx.first(sa.select(issuer_clients).where(issuer_clients.c.client_id == client_id))
        # Unknown clients of one source share one count, so that made-up names cannot fill the table.
        subject = f"client:{'' if row is None else client_id}:{source}"
        self._guesses.check(subject)
        expected = row["secret_hash"] if row is not None else token_hash("no such client")
        if not secrets.compare_digest(expected, token_hash(client_secret)) or row is None:
            self._guesses.failed(subject)
            raise OAuthError("the client id or secret is wrong", code="invalid_client")
        return _answer(self._access_token(TenantId(row["tenant"]), row["subject"], client_id))

    # --- device authorization ---------------------------------------------------------------------

    def authorize_device(self, client_id: str, scope: str, *, source: str) -> DeviceAuthorization:
        """Begin a device login; the scope names the tenant, ``organization:<slug>``.

        Raises:
            OAuthError: another client than the SDK's, or no tenant in the scope.
            RateLimitedError: too many were begun from `source`.
        """
        if client_id != SDK_CLIENT:
            raise OAuthError("this client may not log people in", code="unauthorized_client")
        slugs = [word.removeprefix("organization:") for word in scope.split() if word.startswith("organization:")]
        if len(slugs) != 1:
            raise OAuthError(
                "which tenant? Name one: `modelkeep login --organization SLUG`, or the scope `organization:<slug>`",
                code="invalid_scope",
            )
        self._guesses.attempt(f"device:{source}", most=_DEVICES_BEGUN)
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
            RateLimitedError: too many failures with this code, for this person, or from this source.
            UnavailableError: too many people log in at once.
        """
        code = user_code.upper().replace("-", "").replace(" ", "")[:16]
        with self._database.platform(read_only=True) as tx:
            row = tx.first(sa.select(device_codes).where(device_codes.c.user_code == code))
        tenant = TenantId(row["tenant"] if row is not None else "")
        subjects = (f"source:{source}", f"code:{code}", f"user:{tenant}:{username[:64]}")
        self._guesses.attempt(*subjects)
        with self._database.tenant(tenant, by=_SYSTEM, read_only=True) as own:
            user = own.first(own.select(issuer_users).where(issuer_users.c.username == username))
        try:
            right = password_matches(password, None if user is None else user["password_hash"])
        except UnavailableError:
            self._guesses.forgive(*subjects)
            raise
        if not right or user is None:
            raise OAuthError("the code, the name or the password is wrong", code="access_denied")
        self._guesses.forgive(*subjects)
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
        tenant, subject, refresh_token = TenantId(row["tenant"]), row["subject"], new_secret("mkr")
        access_token = self._access_token(tenant, subject, client_id)
        with self._database.platform() as tx:
            tx.execute(sa.delete(refresh_tokens).where(refresh_tokens.c.expires_at <= now))
            tx.execute(
                sa.insert(refresh_tokens).values(
                    token_hash=token_hash(refresh_token),
                    family=new_object_id(self._entropy, "fam"),
                    tenant=tenant,
                    subject=subject,
                    client_id=client_id,
                    issued_at=now,
                    expires_at=now + REFRESH_S,
                )
            )
        return _answer(access_token, refresh_token)

    # --- refresh ----------------------------------------------------------------------------------

    def refresh(self, refresh_token: str, client_id: str) -> TokenAnswer:
        """Exchange a refresh token for new tokens; a second use revokes its family.

        Raises:
            OAuthError: it is unknown, over, used or revoked, or of another client.
        """
        over = OAuthError("the refresh token is over; log in again", code="invalid_grant")
        with self._database.platform(read_only=True) as tx:
            row = tx.first(sa.select(refresh_tokens).where(refresh_tokens.c.token_hash == token_hash(refresh_token)))
        if row is None:
            raise over
        tenant, subject, issued_at = TenantId(row["tenant"]), row["subject"], row["issued_at"]
        # A refusal spends nothing: when a suspended tenant is resumed, its people are logged in as before.
        if row["used_at"] is None and issued_at <= self._membership(tenant, subject).not_before:
            raise over
        successor = new_secret("mkr")
        with self._database.platform() as tx:
            fresh = self._spend(tx, row, client_id, token_hash(successor))
        # Once more: what it rests on may have changed since.
        if not fresh or issued_at <= self._membership(tenant, subject).not_before:
            raise over
        return _answer(self._access_token(tenant, subject, client_id), successor)

    def revoke(self, token: str) -> None:
        """Revoke a refresh token's family, or one access token (RFC 7009); an unknown token is no error.

        A revoked access token is refused by every server process when this returns (docs/explanation/request-flow.md).
        """
        if "." in token:
            self._revoke_access(token)
            return
        with self._database.platform() as tx:
            row = tx.first(sa.select(refresh_tokens).where(refresh_tokens.c.token_hash == token_hash(token)))
            if row is not None:
                tx.execute(sa.delete(refresh_tokens).where(refresh_tokens.c.family == row["family"]))

    def _revoke_access(self, token: str) -> None:
        for audience in (AUDIENCE, OPERATOR_AUDIENCE):
            try:
                claims = verify(
                    token,
                    keys=self.jwks(),
                    issuer=self.issuer,
                    audience=audience,
                    now=self._clock.now_s(),
                    organization=False,
                )
            except UnauthenticatedError:
                continue
            self._deny(claims.token_id)

    def _deny(self, token_id: str) -> None:
        """Put an access token on the list of denied ones until it would be over anyway."""
        now = self._clock.now_s()
        with self._database.platform() as tx:
            if tx.first(sa.select(denied_tokens).where(denied_tokens.c.token_id == token_id)) is not None:
                # Once is enough: a token sent again and again must not empty everybody's caches each time.
                return
            tx.execute(sa.delete(denied_tokens).where(denied_tokens.c.expires_at < now))
            tx.execute(sa.insert(denied_tokens).values(token_id=token_id, expires_at=now + _RETIRED_KEY_S))
            tx.bump_epoch()
        self._epoch.refresh()

    def _spend(self, tx: PlatformTransaction, row: Row, client_id: str, successor_hash: str) -> bool:
        now = self._clock.now_s()
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
        # INVARIANT: the successor is there when its predecessor is spent: a replay that comes between finds it
        # and revokes it with the family. The family's end is not moved by use.
        kept = {name: row[name] for name in ("family", "tenant", "subject", "client_id", "issued_at", "expires_at")}
        tx.execute(sa.insert(refresh_tokens).values(token_hash=successor_hash, **kept))
        return True

    # --- tokens -----------------------------------------------------------------------------------

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
        return self._keyring.sign(claims)

    def _membership(self, tenant: TenantId, subject: str) -> Membership:
        if tenant != PLATFORM and not self._registry.is_active(tenant):
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


def _answer(access_token: str, refresh_token: str | None = None) -> TokenAnswer:
    return TokenAnswer(
        access_token=access_token,
        token_type="Bearer",  # noqa: S106 -- RFC 6750's token type
        expires_in=ACCESS_S,
        refresh_token=refresh_token,
    )
