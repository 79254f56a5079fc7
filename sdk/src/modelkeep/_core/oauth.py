"""Logging in: discovery with a pinned issuer, and the OAuth requests for tokens.

1. The server's RFC 9728 document must name exactly the address it was asked at (section 3.3).
2. The issuer is given, or pinned at the first login; unless given, the first one must stand on the server's own
   origin. A server that later names another is refused before anything secret is sent.
3. The issuer's document must name exactly that issuer (RFC 8414, section 3.3), and every endpoint of it that gets a
   secret must stand on the issuer's own origin.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote_plus, urlencode

from modelkeep._core.answers import error_of, is_success, json_of
from modelkeep._core.decode import fields_of
from modelkeep._core.flows import Flow, Repeat, Request, Response
from modelkeep._core.site import Site
from modelkeep._core.urls import origin, server_url
from modelkeep.errors import (
    AuthenticationError,
    ConfigurationError,
    ProtocolError,
    RateLimitedError,
    ServerError,
    UntrustedServerError,
    printable,
)

DEVICE_CLIENT: Final = "modelkeep-sdk"
DEVICE_GRANT: Final = "urn:ietf:params:oauth:grant-type:device_code"
_MAX_DOCUMENT_BYTES: Final = 64 * 1024
_MAX_LIFETIME_S: Final = 24 * 3600
_TOKEN: Final = re.compile(r"[\x21-\x7e]{1,16384}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """A trusted issuer and the endpoints that may get secrets."""

    issuer: str
    token_endpoint: str
    device_endpoint: str | None
    revocation_endpoint: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Tokens, and when the access token is over, in seconds since the epoch."""

    access_token: str = field(repr=False)
    refresh_token: str | None = field(repr=False)
    expires_at: float
    lifetime_s: float

    def fresh(self, now_s: float) -> bool:
        """Return whether the access token still lasts a good while: 30 s, or a tenth of a short life."""
        return self.expires_at - now_s > min(30.0, self.lifetime_s / 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceAuthorization:
    """A device login under way (RFC 8628, section 3.2)."""

    device_code: str = field(repr=False)
    user_code: str
    verification_uri: str
    verification_uri_complete: str | None
    expires_in_s: float
    interval_s: float


def discover(site: Site, *, issuer: str | None) -> Flow[Issuer]:
    """Return the issuer of `site`, given or pinned.

    Args:
        site: the server.
        issuer: the issuer the caller named, if any.

    Raises:
        UntrustedServerError: the documents name another resource or issuer, or an endpoint elsewhere.
    """
    resource = yield from _document(site, f"{site.base_url}/.well-known/oauth-protected-resource")
    if resource.get("resource") != site.base_url:
        raise UntrustedServerError(
            f"the server at `{site.base_url}` says it is `{_shown(resource.get('resource'))}`; use the address it has"
        )
    named = resource.get("authorization_servers")
    servers = [one for one in named if isinstance(one, str)] if isinstance(named, list) else []
    trusted = _trusted(site, issuer, servers)
    document = yield from _document(site, f"{trusted.rstrip('/')}/.well-known/openid-configuration")
    if document.get("issuer") != trusted:
        raise UntrustedServerError(f"the issuer `{trusted}` says it is `{_shown(document.get('issuer'))}`")
    endpoint = _endpoint(document, "token_endpoint", trusted)
    if endpoint is None:
        raise ProtocolError("the issuer names no token endpoint")
    if issuer is None:
        pin(site, trusted)
    return Issuer(
        issuer=trusted,
        token_endpoint=endpoint,
        device_endpoint=_endpoint(document, "device_authorization_endpoint", trusted),
        revocation_endpoint=_endpoint(document, "revocation_endpoint", trusted),
    )


def pin(site: Site, issuer: str) -> None:
    """Keep `issuer` as the one of `site`."""
    if pinned(site) != issuer:
        site.state.write("issuer", site.base_url, value={"server": site.base_url, "issuer": issuer})


def pinned(site: Site) -> str | None:
    """Return the issuer kept for `site`, or None."""
    kept = site.state.read("issuer", site.base_url)
    issuer = kept.get("issuer") if kept is not None and kept.get("server") == site.base_url else None
    return issuer if isinstance(issuer, str) else None


def client_credentials(site: Site, issuer: Issuer, client_id: str, client_secret: str) -> Flow[Tokens]:
    """Log an application in (RFC 6749, section 4.4)."""
    basic = b64encode(f"{quote_plus(client_id)}:{quote_plus(client_secret)}".encode()).decode("ascii")
    form = {"grant_type": "client_credentials", "scope": "modelkeep organization"}
    return (yield from _token_request(site, issuer, form, headers={"authorization": f"Basic {basic}"}))


def refresh(site: Site, issuer: Issuer, refresh_token: str) -> Flow[Tokens]:
    """Exchange a refresh token for new tokens; it works once, so the request is not repeated when in doubt."""
    form = {"grant_type": "refresh_token", "refresh_token": refresh_token, "client_id": DEVICE_CLIENT}
    return (yield from _token_request(site, issuer, form, repeat=Repeat.UNSENT))


def redeem(site: Site, issuer: Issuer, device_code: str) -> Flow[Tokens]:
    """Ask once whether the person has approved (RFC 8628, section 3.4)."""
    form = {"grant_type": DEVICE_GRANT, "device_code": device_code, "client_id": DEVICE_CLIENT}
    return (yield from _token_request(site, issuer, form, repeat=Repeat.UNSENT))


def authorize_device(site: Site, issuer: Issuer, *, organization: str | None) -> Flow[DeviceAuthorization]:
    """Begin a device login (RFC 8628, section 3.1).

    Raises:
        UntrustedServerError: the sign-in page stands elsewhere than the issuer.
    """
    if issuer.device_endpoint is None:
        raise ConfigurationError("this issuer has no device login; use client credentials")
    scope = "modelkeep organization" if organization is None else f"modelkeep organization:{organization}"
    response = yield from site.retrying.send(
        _form(issuer.device_endpoint, {"client_id": DEVICE_CLIENT, "scope": scope}, repeat=Repeat.SAFE)
    )
    answer = _answer(response)
    page, complete = answer.get("verification_uri"), answer.get("verification_uri_complete")
    for address in (page, complete):
        if address is not None and not _same_origin(address, issuer.issuer):
            raise UntrustedServerError(f"the sign-in page `{_shown(address)}` stands elsewhere than the issuer")
    code, user_code = answer.get("device_code"), answer.get("user_code")
    if not (isinstance(code, str) and isinstance(user_code, str) and isinstance(page, str)):
        raise ProtocolError("the issuer's answer to a device login lacks a code or the sign-in page")
    return DeviceAuthorization(
        device_code=code,
        user_code=printable(user_code, limit=40),
        verification_uri=page,
        verification_uri_complete=complete if isinstance(complete, str) else None,
        expires_in_s=_seconds(answer.get("expires_in"), least=1, most=3600, default=600),
        interval_s=_seconds(answer.get("interval"), least=1, most=60, default=5),
    )


def revoke(site: Site, issuer: Issuer, refresh_token: str) -> Flow[None]:
    """Revoke a refresh token and all that came from it (RFC 7009)."""
    if issuer.revocation_endpoint is None:
        return
    form = {"token": refresh_token, "token_type_hint": "refresh_token", "client_id": DEVICE_CLIENT}
    response = yield from site.retrying.send(_form(issuer.revocation_endpoint, form, repeat=Repeat.SAFE))
    if not is_success(response):
        raise _refusal(response)


def _trusted(site: Site, given: str | None, servers: list[str]) -> str:
    wanted = given or pinned(site)
    if wanted is not None:
        if wanted not in servers:
            raise UntrustedServerError(
                f"the server names the issuer `{_shown(servers[0] if servers else None)}` instead of `{wanted}`; "
                "nothing was sent there. If the operator confirms the change, log in again with the new issuer given"
            )
        server_url(wanted, unsafe_allow_http=site.unsafe_allow_http)
        return wanted
    if len(servers) != 1:
        raise UntrustedServerError("the server names no issuer, or several; pass the one you trust as `issuer`")
    if not _same_origin(servers[0], site.base_url):
        raise UntrustedServerError(
            f"the server names the issuer `{_shown(servers[0])}`, which stands elsewhere; "
            "if the operator confirms it, pass it as `issuer`"
        )
    server_url(servers[0], unsafe_allow_http=site.unsafe_allow_http)
    return servers[0]


def _endpoint(document: Mapping[str, Any], name: str, issuer: str) -> str | None:
    address = document.get(name)
    if address is None:
        return None
    if not _same_origin(address, issuer):
        raise UntrustedServerError(f"the issuer's `{name}` is `{_shown(address)}`, which stands elsewhere")
    return str(address)


def _same_origin(address: object, other: str) -> bool:
    try:
        return isinstance(address, str) and origin(address) == origin(other)
    except ConfigurationError:
        return False


def _document(site: Site, url: str) -> Flow[dict[str, Any]]:
    request = Request(method="GET", url=url, headers={"accept": "application/json"}, max_bytes=_MAX_DOCUMENT_BYTES)
    response = yield from site.retrying.send(request)
    if not is_success(response):
        raise error_of(response)
    return fields_of(json_of(response), "discovery document")


def _token_request(
    site: Site,
    issuer: Issuer,
    form: Mapping[str, str],
    *,
    headers: Mapping[str, str] | None = None,
    repeat: Repeat = Repeat.SAFE,
) -> Flow[Tokens]:
    asked_at = site.now_s()
    response = yield from site.retrying.send(_form(issuer.token_endpoint, form, headers=headers, repeat=repeat))
    answer = _answer(response)
    access, refresh_token = answer.get("access_token"), answer.get("refresh_token")
    token_type = answer.get("token_type")
    if not isinstance(token_type, str) or token_type.lower() != "bearer":
        raise ProtocolError("the issuer's token is not a bearer token")
    if not isinstance(access, str) or not _TOKEN.match(access):
        raise ProtocolError("the issuer's answer holds no usable access token")
    if refresh_token is not None and not (isinstance(refresh_token, str) and _TOKEN.match(refresh_token)):
        raise ProtocolError("the issuer's answer holds no usable refresh token")
    lifetime_s = _seconds(answer.get("expires_in"), least=1, most=_MAX_LIFETIME_S, default=60)
    return Tokens(
        access_token=access,
        refresh_token=refresh_token,
        expires_at=asked_at + lifetime_s,
        lifetime_s=lifetime_s,
    )


def _form(url: str, form: Mapping[str, str], *, headers: Mapping[str, str] | None = None, repeat: Repeat) -> Request:
    return Request(
        method="POST",
        url=url,
        headers={
            "accept": "application/json",
            "content-type": "application/x-www-form-urlencoded",
            **(headers or {}),
        },
        content=urlencode(form).encode("ascii"),
        max_bytes=_MAX_DOCUMENT_BYTES,
        repeat=repeat,
    )


def _answer(response: Response) -> dict[str, Any]:
    if not is_success(response):
        raise _refusal(response)
    return fields_of(json_of(response), "token")


def _refusal(response: Response) -> Exception:
    """Return the error of RFC 6749, section 5.2, as one of ours."""
    generic = error_of(response)
    if isinstance(generic, ServerError | RateLimitedError):
        return generic
    try:
        body = json_of(response)
    except ProtocolError:
        body = None
    found = body if isinstance(body, dict) else {}
    code, text = found.get("error"), found.get("error_description")
    return AuthenticationError(
        text if isinstance(text, str) and text else "the issuer refused the login",
        code=code if isinstance(code, str) and code else "login_refused",
        status=response.status,
        request_id=response.headers.get("x-request-id", ""),
    )


def _seconds(value: object, *, least: float, most: float, default: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return default
    return min(max(float(value), least), most)


def _shown(value: object) -> str:
    return printable(str(value), limit=200)
