"""Ways to log in: an application's client credentials, a person's device code, a token from elsewhere.

Secrets and tokens do not appear in `repr`. A token is only ever sent to the server it was got for.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from modelkeep._core import oauth
from modelkeep._core.flows import Flow, sleep
from modelkeep._core.site import Auth, Site
from modelkeep.errors import AuthenticationError, ConfigurationError, ConnectionFailedError, printable

__all__ = ["Auth", "ClientCredentials", "DeviceCode", "DevicePrompt", "StaticToken"]

_LOCK_WAIT_S: Final = 0.01
_TOKEN: Final = "token"  # noqa: S105 -- the name of a record
_PENDING: Final = "authorization_pending"
_SLOWER_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePrompt:
    """What a person needs to approve a device login.

    Attributes:
        user_code: to be typed on the page, unless the complete address is opened.
        verification_uri: the sign-in page.
        verification_uri_complete: the same with the code filled in, where the issuer offers it.
        expires_in_s: how long the code works.
    """

    user_code: str
    verification_uri: str
    verification_uri_complete: str | None
    expires_in_s: float


class StaticToken:
    """A token that something else gets and renews.

    Args:
        token: the access token, or a function that returns one and is called for every request.
    """

    def __init__(self, token: str | Callable[[], str]) -> None:
        self._token = token

    def __repr__(self) -> str:
        return "StaticToken(...)"

    def token(self, site: Site, *, rejected: str | None) -> Flow[str]:  # noqa: ARG002 -- the port's arguments
        """Return the token."""
        yield from ()
        token = self._token if isinstance(self._token, str) else self._token()
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise ConfigurationError("the token is empty or holds characters that tokens do not have")
        return token


class ClientCredentials:
    """An application's login, by its service account's id and secret. Its tokens are kept in memory only.

    Args:
        client_id: of the service account.
        client_secret: shown once, when the account was made.
        issuer: the issuer to trust; by default the one on the server's own origin, pinned at the first login.
    """

    def __init__(self, client_id: str, client_secret: str, *, issuer: str | None = None) -> None:
        if not client_id or not client_secret:
            raise ConfigurationError("a client id and a client secret are needed")
        self.client_id = client_id
        self._client_secret = client_secret
        self._issuer = issuer
        self._issuers: dict[str, oauth.Issuer] = {}
        self._tokens: dict[str, oauth.Tokens] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"ClientCredentials({self.client_id!r}, ...)"

    def token(self, site: Site, *, rejected: str | None) -> Flow[str]:
        """Return a token that lasts, logging in where needed; one login at a time."""
        found = self._usable(site, rejected)
        if found is not None:
            return found
        while not self._lock.acquire(blocking=False):
            yield from sleep(_LOCK_WAIT_S)
        try:
            found = self._usable(site, rejected)
            if found is not None:
                return found
            tokens = yield from self.login(site)
        finally:
            self._lock.release()
        return tokens.access_token

    def login(self, site: Site) -> Flow[oauth.Tokens]:
        """Get a new token from the issuer."""
        issuer = self._issuers.get(site.base_url)
        if issuer is None:
            issuer = yield from oauth.discover(site, issuer=self._issuer)
            self._issuers[site.base_url] = issuer
        tokens = yield from oauth.client_credentials(site, issuer, self.client_id, self._client_secret)
        self._tokens[site.base_url] = tokens
        return tokens

    def _usable(self, site: Site, rejected: str | None) -> str | None:
        tokens = self._tokens.get(site.base_url)
        if tokens is None or tokens.access_token == rejected or not tokens.fresh(site.now_s()):
            return None
        return tokens.access_token


class DeviceCode:
    """A person's login: the person opens a page, types a code, and this process gets the tokens.

    Tokens are kept in a file that only the user can read, shared by the user's processes, renewed before they are
    over, and forgotten when the issuer refuses them.

    Args:
        prompt: called with what the person needs; by default it is printed to stderr. Pass
            `DeviceCode.no_prompt` to be refused instead of asked.
        organization: the tenant's slug.
        issuer: the issuer to trust; by default the one on the server's own origin, pinned at the first login.
        profile: tells logins of several people on one account of this machine apart.
    """

    def __init__(
        self,
        *,
        prompt: Callable[[DevicePrompt], object] | None = None,
        organization: str | None = None,
        issuer: str | None = None,
        profile: str = "default",
    ) -> None:
        self._prompt = prompt or _print_prompt
        self.organization = organization
        self._issuer = issuer
        self._profile = profile
        self._tokens: dict[str, oauth.Tokens] = {}

    def __repr__(self) -> str:
        return f"DeviceCode(organization={self.organization!r}, profile={self._profile!r})"

    @staticmethod
    def no_prompt(_prompt: DevicePrompt) -> None:
        """Refuse to ask a person.

        Raises:
            AuthenticationError: always, with the code `login_required`.
        """
        raise AuthenticationError("you are not logged in; run `modelkeep login`", code="login_required", status=401)

    def token(self, site: Site, *, rejected: str | None) -> Flow[str]:
        """Return a token that lasts: the kept one, a renewed one, or one from a new login."""
        found = self._usable(self._tokens.get(site.base_url), site, rejected)
        if found is not None:
            return found
        about = self._about(site)
        lock = yield from site.state.lock(_TOKEN, *about)
        try:
            kept = self._kept(site)
            found = self._usable(kept, site, rejected)
            if found is None:
                tokens = yield from self._renew(site, kept)
                found = tokens.access_token
        finally:
            lock.release()
        return found

    def login(self, site: Site) -> Flow[oauth.Tokens]:
        """Ask the person, whether or not a token is kept."""
        lock = yield from site.state.lock(_TOKEN, *self._about(site))
        try:
            issuer = yield from oauth.discover(site, issuer=self._issuer)
            tokens = yield from self._ask(site, issuer)
            self._keep(site, issuer, tokens)
        finally:
            lock.release()
        return tokens

    def logout(self, site: Site) -> Flow[bool]:
        """Forget the tokens, here and at the issuer; return whether there were any."""
        lock = yield from site.state.lock(_TOKEN, *self._about(site))
        try:
            kept = self._kept(site)
            self._forget(site)
            if kept is not None and kept.refresh_token is not None:
                issuer = yield from oauth.discover(site, issuer=self._issuer)
                yield from oauth.revoke(site, issuer, kept.refresh_token)
        finally:
            lock.release()
        return kept is not None

    def _renew(self, site: Site, kept: oauth.Tokens | None) -> Flow[oauth.Tokens]:
        if kept is None and self._prompt is DeviceCode.no_prompt:
            DeviceCode.no_prompt(_NOBODY)
        issuer = yield from oauth.discover(site, issuer=self._issuer)
        if kept is not None and kept.refresh_token is not None:
            try:
                tokens = yield from oauth.refresh(site, issuer, kept.refresh_token)
            except AuthenticationError:
                self._forget(site)
            else:
                self._keep(site, issuer, tokens)
                return tokens
        if self._prompt is DeviceCode.no_prompt:
            DeviceCode.no_prompt(_NOBODY)
        tokens = yield from self._ask(site, issuer)
        self._keep(site, issuer, tokens)
        return tokens

    def _ask(self, site: Site, issuer: oauth.Issuer) -> Flow[oauth.Tokens]:
        begun = yield from oauth.authorize_device(site, issuer, organization=self.organization)
        deadline = site.now_s() + begun.expires_in_s
        self._prompt(
            DevicePrompt(
                user_code=begun.user_code,
                verification_uri=begun.verification_uri,
                verification_uri_complete=begun.verification_uri_complete,
                expires_in_s=begun.expires_in_s,
            )
        )
        interval_s = begun.interval_s
        while site.now_s() < deadline:
            try:
                return (yield from oauth.redeem(site, issuer, begun.device_code))
            except AuthenticationError as exc:
                if exc.code == "slow_down":
                    interval_s += _SLOWER_S
                elif exc.code != _PENDING:
                    raise
            except ConnectionFailedError:
                interval_s += _SLOWER_S  # RFC 8628, section 3.5: back off when the issuer cannot be reached
            yield from sleep(interval_s)
        raise AuthenticationError("nobody approved the login in time; try again", code="expired_token", status=401)

    def _about(self, site: Site) -> tuple[str, ...]:
        return site.base_url, self.organization or "", self._profile

    def _usable(self, tokens: oauth.Tokens | None, site: Site, rejected: str | None) -> str | None:
        if tokens is None or tokens.access_token == rejected or not tokens.fresh(site.now_s()):
            return None
        return tokens.access_token

    def _kept(self, site: Site) -> oauth.Tokens | None:
        record = site.state.read(_TOKEN, *self._about(site))
        trusted = self._issuer or oauth.pinned(site)
        # INVARIANT: a kept token goes only to the server it came from, and its refresh token to its own issuer.
        if record is None or record.get("server") != site.base_url or record.get("issuer") != trusted:
            return None
        tokens = _tokens_of(record)
        if tokens is not None:
            self._tokens[site.base_url] = tokens
        return tokens

    def _keep(self, site: Site, issuer: oauth.Issuer, tokens: oauth.Tokens) -> None:
        self._tokens[site.base_url] = tokens
        record = {
            "server": site.base_url,
            "issuer": issuer.issuer,
            "access_token": tokens.access_token,
            "refresh_token": tokens.refresh_token,
            "expires_at": tokens.expires_at,
            "lifetime_s": tokens.lifetime_s,
        }
        site.state.write(_TOKEN, *self._about(site), value=record)

    def _forget(self, site: Site) -> None:
        self._tokens.pop(site.base_url, None)
        site.state.remove(_TOKEN, *self._about(site))


_NOBODY: Final = DevicePrompt(user_code="", verification_uri="", verification_uri_complete=None, expires_in_s=0)


def _tokens_of(record: Mapping[str, Any]) -> oauth.Tokens | None:
    access, renewal = record.get("access_token"), record.get("refresh_token")
    expires_at, lifetime_s = record.get("expires_at"), record.get("lifetime_s")
    if not isinstance(access, str) or not (renewal is None or isinstance(renewal, str)):
        return None
    if not isinstance(expires_at, int | float) or not isinstance(lifetime_s, int | float):
        return None
    return oauth.Tokens(
        access_token=access, refresh_token=renewal, expires_at=float(expires_at), lifetime_s=float(lifetime_s)
    )


def _print_prompt(prompt: DevicePrompt) -> None:
    address = printable(prompt.verification_uri_complete or prompt.verification_uri)
    print(f"To log in, open {address} and enter the code {printable(prompt.user_code)}", file=sys.stderr)  # noqa: T201
