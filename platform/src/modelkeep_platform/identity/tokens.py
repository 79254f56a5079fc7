"""Verification of access tokens (RFC 9068 in spirit, Keycloak's and our own in shape). Pure.

Everything the signature library accepts too easily is refused before it sees the token: duplicate members,
NaN, deep nesting, long tokens, a missing `kid`, keys brought along in the header. Not checked here: whether the
tenant, the member and its roles exist, and whether the token was revoked; `authenticate` does.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from modelkeep_platform.core import strictjson
from modelkeep_platform.core.errors import MalformedError, UnauthenticatedError
from modelkeep_platform.core.limits import MAX_TOKEN_BYTES, MAX_TOKEN_DEPTH

ALGORITHMS: Final = ("ES256", "RS256", "PS256", "Ed25519")
LEEWAY_S: Final = 30
_SEGMENTS: Final = 3
_MAX_TIME: Final = 1 << 53
_FORBIDDEN_HEADERS: Final = ("jwk", "jku", "x5u", "x5c", "x5t", "x5t#S256", "crit", "b64", "zip")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a verified token says."""

    subject: str
    client_id: str
    token_id: str
    organization_slug: str | None
    organization_id: str | None
    issued_at: int
    expires_at: int


class InvalidTokenError(UnauthenticatedError):
    """The token does not verify; log in again."""

    code = "token_invalid"


class ExpiredTokenError(UnauthenticatedError):
    """The token was good and is over; refresh it."""

    code = "token_expired"


def verify(
    token: str, *, keys: Mapping[str, Any], issuer: str, audience: str, now: int, organization: bool = True
) -> Claims:
    """Verify a token and return its claims.

    Args:
        token: the compact serialisation.
        keys: a JWK set, ``{"keys": [...]}``, of the issuer's public keys.
        issuer: the only accepted issuer.
        audience: must be among the token's audiences.
        now: seconds since the epoch.
        organization: whether the token must name exactly one organization.

    Raises:
        InvalidTokenError: it does not verify.
        ExpiredTokenError: it is over.
    """
    header, claims = peek(token)
    kid = header["kid"]
    matching = [key for key in keys.get("keys", []) if key.get("kid") == kid]
    if len(matching) != 1:
        raise InvalidTokenError("the token's key is not one of the issuer's")
    try:
        jws.deserialize_compact(token, KeySet.import_key_set({"keys": matching}), algorithms=list(ALGORITHMS))
    except (JoseError, ValueError, TypeError) as exc:
        raise InvalidTokenError("the token's signature does not verify") from exc
    _check_addressing(claims, issuer, audience)
    issued_at, expires_at = _check_times(claims, now)
    slug, organization_id = _organization(claims) if organization else (None, None)
    return Claims(
        subject=_text(claims, "sub"),
        client_id=_text(claims, "azp"),
        token_id=_text(claims, "jti"),
        organization_slug=slug,
        organization_id=organization_id,
        issued_at=issued_at,
        expires_at=expires_at,
    )


def peek(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return header and claims, strictly parsed and not verified: only to choose what to verify with.

    Raises:
        InvalidTokenError: not a token of the accepted shape.
    """
    if len(token) > MAX_TOKEN_BYTES:
        raise InvalidTokenError("the token is too long")
    segments = token.split(".")
    if len(segments) != _SEGMENTS:
        raise InvalidTokenError("the token has not three parts")
    header, claims = _decoded(segments[0]), _decoded(segments[1])
    if header.get("alg") not in ALGORITHMS:
        raise InvalidTokenError("the token's algorithm is not accepted")
    if str(header.get("typ", "")).lower() not in {"jwt", "at+jwt"}:
        raise InvalidTokenError("the token's header type is not that of an access token")
    if any(name in header for name in _FORBIDDEN_HEADERS):
        raise InvalidTokenError("the token's header brings along what is not accepted")
    kid = header.get("kid")
    if not isinstance(kid, str) or not kid:
        raise InvalidTokenError("the token names no key")
    return header, claims


def _decoded(segment: str) -> dict[str, Any]:
    try:
        raw = base64.b64decode(segment + "=" * (-len(segment) % 4), altchars=b"-_", validate=True)
        value = strictjson.loads(raw, max_bytes=MAX_TOKEN_BYTES, max_depth=MAX_TOKEN_DEPTH)
    except (binascii.Error, ValueError, MalformedError) as exc:
        raise InvalidTokenError("the token is not strict JSON in base64url") from exc
    if not isinstance(value, dict):
        raise InvalidTokenError("the token's parts are JSON objects")
    return value


def _check_addressing(claims: dict[str, Any], issuer: str, audience: str) -> None:
    if claims.get("iss") != issuer:
        raise InvalidTokenError("the token is of another issuer")
    audiences = claims.get("aud")
    listed = [audiences] if isinstance(audiences, str) else audiences
    if not isinstance(listed, list) or audience not in listed:
        raise InvalidTokenError("the token is for another audience")
    if claims.get("typ") != "Bearer":
        raise InvalidTokenError("the token is not an access token")


def _check_times(claims: dict[str, Any], now: int) -> tuple[int, int]:
    issued_at, expires_at = _seconds(claims, "iat"), _seconds(claims, "exp")
    not_before = _seconds(claims, "nbf") if "nbf" in claims else issued_at
    if expires_at <= issued_at:
        raise InvalidTokenError("the token ends before it begins")
    if expires_at <= now:
        raise ExpiredTokenError("the token has expired; log in again")
    if issued_at > now + LEEWAY_S or not_before > now + LEEWAY_S:
        raise InvalidTokenError("the token is of the future; check both clocks")
    return issued_at, expires_at


def _seconds(claims: dict[str, Any], name: str) -> int:
    value = claims.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _MAX_TIME:
        raise InvalidTokenError(f"the token's `{name}` is not a time")
    return value


def _organization(claims: dict[str, Any]) -> tuple[str, str]:
    # Keycloak's other legal shape, an array of aliases, has no id and is refused.
    value = claims.get("organization")
    if not isinstance(value, dict) or len(value) != 1:
        raise InvalidTokenError("the token names not exactly one organization with its id; log in for one tenant")
    ((slug, inner),) = value.items()
    organization_id = inner.get("id") if isinstance(inner, dict) else None
    if not isinstance(organization_id, str) or not organization_id:
        raise InvalidTokenError("the token's organization has no id")
    return slug, organization_id


def _text(claims: dict[str, Any], name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= 255:  # noqa: PLR2004 -- OpenID Connect's limit of `sub`
        raise InvalidTokenError(f"the token's `{name}` is missing")
    return value
