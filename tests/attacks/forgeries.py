"""The forged tokens of the family *Tokens*: one table, for `verify` alone and for a whole platform.

Every forgery is signed by the issuer's own key unless it says otherwise, so that nothing but what is wrong with it can
be why it is refused.
"""

import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc.jwk import ECKey

from fakes.identity import Forger, b64, unb64
from services.house import House

ALGORITHM = "the token's algorithm is not accepted"
BROUGHT = "the token's header brings along what is not accepted"
TYPE = "the token's header type is not that of an access token"
UNKNOWN_KEY = "the token's key is not one of the issuer's"
NO_KEY = "the token names no key"
SIGNATURE = "the token's signature does not verify"
ISSUER = "the token is of another issuer"
AUDIENCE = "the token is for another audience"
NO_ACCESS = "the token is not an access token"
EXPIRED = "the token has expired; log in again"
BACKWARDS = "the token ends before it begins"
FUTURE = "the token is of the future; check both clocks"
ORGANIZATIONS = "the token names not exactly one organization with its id; log in for one tenant"
NO_ID = "the token's organization has no id"
LONG = "the token is too long"
PARTS = "the token has not three parts"
NOT_JSON = "the token is not strict JSON in base64url"
NOT_OBJECT = "the token's parts are JSON objects"
NO_BEARER = "the Authorization header is not a bearer token; log in first"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mint:
    """What forgeries are made from: the issuer's key, the claims of a token that is good, and the time in seconds."""

    forger: Forger
    claims: Mapping[str, Any]
    now: int

    @property
    def head(self) -> bytes:
        """Return the header of a good token."""
        return json.dumps({"alg": "ES256", "typ": "JWT", "kid": self.forger.kid}).encode()

    @property
    def body(self) -> bytes:
        """Return the claims of a good token."""
        return json.dumps(self.claims).encode()

    def good(self) -> str:
        """Return a token that is accepted."""
        return self.forger.token(claims=self.claims)


Make = Callable[[Mint], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgery:
    """One attempt.

    Args:
        id: its name among the tests.
        make: makes the token.
        message: why it is refused.
        code: the stable code of that.
        carried: whether the header of a request can hold it.
        bearer: whether such a header is that of a bearer token at all.
    """

    id: str
    make: Make
    message: str
    code: str = "token_invalid"
    carried: bool = True
    bearer: bool = True


def issuer_key(house: House) -> Forger:
    """Return a forger with the newest key of a house's issuer."""
    kept = house.server.platform.ground.secrets.get_or_create("issuer-keys", bytes)
    jwk = json.loads(kept.reveal())[0]["jwk"]
    key = ECKey.import_key(jwk).private_key
    assert key is not None
    return Forger(kid=jwk["kid"], key=key)


def claims_of(token: str) -> dict[str, Any]:
    """Return what a token says."""
    claims: dict[str, Any] = json.loads(unb64(token.split(".")[1]))
    return claims


def mint_of(house: House, token: str) -> Mint:
    """Return what forgeries of a house's token `token` are made from."""
    return Mint(forger=issuer_key(house), claims=claims_of(token), now=int(time.time()))


def forged(house: House, token: str, **claims: Any) -> str:
    """Sign a house's token again with its issuer's key, with other claims; None takes one away."""
    return issuer_key(house).token(claims=claims_of(token) | claims)


def headed(**header: Any) -> Make:
    """Return what makes a token with other members of the header; None takes one away."""
    return lambda mint: mint.forger.token(header=header, claims=mint.claims)


def claiming(**claims: Any) -> Make:
    """Return what makes a token with other claims; None takes one away."""
    return lambda mint: mint.forger.token(claims={**mint.claims, **claims})


def written(change: Callable[[bytes, bytes], tuple[bytes, bytes]]) -> Make:
    """Return what makes a token whose header and claims are exactly these bytes."""
    return lambda mint: mint.forger.raw(*change(mint.head, mint.body))


def more(payload: bytes, member: str) -> bytes:
    """Write one more member into an object."""
    return payload[:-1] + b", " + member.encode() + b"}"


# --- the signature and the header ---------------------------------------------------------------------


def _unsigned(signature: str) -> Make:
    return lambda mint: f"{b64(mint.head.replace(b'ES256', b'none'))}.{b64(mint.body)}.{signature}"


def hs256(mint: Mint) -> str:
    """Sign with HS256 and the issuer's public key as the secret."""
    pem = mint.forger.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signed = f"{b64(mint.head.replace(b'ES256', b'HS256'))}.{b64(mint.body)}"
    return f"{signed}.{b64(hmac.digest(pem, signed.encode(), hashlib.sha256))}"


def _spliced(mint: Mint) -> str:
    header, _, signature = mint.good().split(".")
    payload = b64(more(mint.body, '"x": 1'))
    return f"{header}.{payload}.{signature}"


def _own_key_brought(mint: Mint) -> str:
    own = Forger(kid=mint.forger.kid)
    return own.token(header={"jwk": own.public()}, claims=mint.claims)


def _kid(change: Callable[[str], str]) -> Make:
    return lambda mint: mint.forger.token(header={"kid": change(mint.forger.kid)}, claims=mint.claims)


def _signatures() -> Iterator[Forgery]:
    for alg in ("none", "None", "nOnE", "", "HS256", "HS512", "ES384", "RS512", "RSA-OAEP", "dir"):
        yield Forgery(id=f"alg-{alg}", make=headed(alg=alg), message=ALGORITHM)
    for odd in (False, 1, ["ES256"], {"ES256": 1}, True):
        yield Forgery(id=f"alg-{odd}", make=headed(alg=odd), message=ALGORITHM)
    for signature in ("", "AAAA"):
        yield Forgery(id=f"unsigned-{signature}", make=_unsigned(signature), message=ALGORITHM)
    yield Forgery(id="hs256-public-key", make=hs256, message=ALGORITHM)
    yield Forgery(
        id="another-key", make=lambda mint: Forger(kid=mint.forger.kid).token(claims=mint.claims), message=SIGNATURE
    )
    yield Forgery(id="half-a-signature", make=lambda mint: mint.good()[:-43], message=SIGNATURE)
    yield Forgery(id="no-signature", make=lambda mint: mint.good().rpartition(".")[0] + ".", message=SIGNATURE)
    yield Forgery(id="zero-signature", make=lambda mint: mint.good()[:-86] + "A" * 86, message=SIGNATURE)
    yield Forgery(id="spliced-payload", make=_spliced, message=SIGNATURE)


def _headers() -> Iterator[Forgery]:
    extensions: tuple[dict[str, Any], ...] = (
        {"jwk": Forger().public()},
        {"jku": "https://evil.test/jwks"},
        {"x5u": "https://evil.test/cert"},
        {"x5c": ["MIIB"]},
        {"x5t": "AAAA"},
        {"x5t#S256": "AAAA"},
        {"crit": ["exp"]},
        {"crit": []},
        {"b64": False, "crit": ["b64"]},
        {"zip": "DEF"},
    )
    for number, brought in enumerate(extensions):
        yield Forgery(id=f"header-{number}-{'+'.join(brought)}", make=headed(**brought), message=BROUGHT)
    yield Forgery(id="jwk-that-signed", make=_own_key_brought, message=BROUGHT)
    kids = {
        "path": lambda _: "../../etc/passwd",
        "query": lambda _: "' OR 1=1 --",
        "address": lambda _: "https://evil.test/k",
        "nul": lambda kid: kid + "\x00",
        "other-case": str.swapcase,
        "space": lambda kid: " " + kid,
        "unknown": lambda _: "key-2",
        "long": lambda _: "a" * 4000,
    }
    for name, change in kids.items():
        yield Forgery(id=f"kid-{name}", make=_kid(change), message=UNKNOWN_KEY)
    for kid in (None, "", 1, ["key-1"], {"key-1": 1}, True):
        yield Forgery(id=f"kid-{kid}", make=headed(kid=kid), message=NO_KEY)
    for typ in (None, "", "JWE", "dpop+jwt", "logout+jwt", 7, ["JWT"]):
        yield Forgery(id=f"header-typ-{typ}", make=headed(typ=typ), message=TYPE)


# --- the claims ---------------------------------------------------------------------------------------


def _issuer(change: Callable[[str], object]) -> Make:
    return lambda mint: mint.forger.token(claims={**mint.claims, "iss": change(mint.claims["iss"])})


def _addressing() -> Iterator[Forgery]:
    issuers: dict[str, Callable[[str], object]] = {
        "none": lambda _: None,
        "other": lambda _: "https://evil.test/issuer",
        "slash": lambda own: own + "/",
        "capitals": str.upper,
        "list": lambda own: [own],
    }
    for name, change in issuers.items():
        yield Forgery(id=f"iss-{name}", make=_issuer(change), message=ISSUER)
    for audience in (None, "account", "", ["account"], [], {"modelkeep": 1}, 1, [["modelkeep"]]):
        yield Forgery(id=f"aud-{audience}", make=claiming(aud=audience), message=AUDIENCE)
    for typ in (None, "ID", "Refresh", "Offline", "bearer", "", 1, ["Bearer"]):
        yield Forgery(id=f"typ-{typ}", make=claiming(typ=typ), message=NO_ACCESS)
    values = {"absent": None, "empty": "", "number": 7, "list": ["x"], "long": "x" * 256}
    for name in ("sub", "azp", "jti"):
        for kind, value in values.items():
            message = f"the token's `{name}` is missing"
            yield Forgery(id=f"{name}-{kind}", make=claiming(**{name: value}), message=message)
    organizations: tuple[tuple[object, str], ...] = (
        (None, ORGANIZATIONS),
        ({}, ORGANIZATIONS),
        ([], ORGANIZATIONS),
        ("acme", ORGANIZATIONS),
        (["acme"], ORGANIZATIONS),
        ({"acme": {"id": "a"}, "globex": {"id": "b"}}, ORGANIZATIONS),
        ([{"acme": {"id": "a"}}], ORGANIZATIONS),
        ({"acme": {}}, NO_ID),
        ({"acme": None}, NO_ID),
        ({"acme": "aaaaaaaa-0000-4000-8000-000000000001"}, NO_ID),
        ({"acme": {"id": ""}}, NO_ID),
        ({"acme": {"id": 7}}, NO_ID),
        ({"acme": {"id": ["a"]}}, NO_ID),
        ({"acme": [{"id": "a"}]}, NO_ID),
    )
    for organization, message in organizations:
        yield Forgery(id=f"organization-{organization}", make=claiming(organization=organization), message=message)


def _at(**shifts: int) -> Make:
    """Return what makes a token whose times stand so many seconds from now."""
    return lambda mint: claiming(**{name: mint.now + shift for name, shift in shifts.items()})(mint)


def _times() -> Iterator[Forgery]:
    yield Forgery(id="exp-now", make=_at(iat=-10, nbf=-10, exp=0), message=EXPIRED, code="token_expired")
    yield Forgery(id="exp-before", make=_at(iat=-300, nbf=-300, exp=-1), message=EXPIRED, code="token_expired")
    yield Forgery(id="iat-ahead", make=_at(iat=60), message=FUTURE)
    yield Forgery(id="nbf-ahead", make=_at(nbf=60), message=FUTURE)
    yield Forgery(id="iat-far-ahead", make=_at(iat=10**9, exp=10**9 + 300), message=FUTURE)
    yield Forgery(id="exp-at-iat", make=_at(iat=-10, exp=-10), message=BACKWARDS)
    senseless: tuple[dict[str, object], ...] = (
        {"exp": None},
        {"iat": None},
        {"exp": "1800000290"},
        {"exp": 1800000290.0},
        {"exp": True},
        {"exp": 2**53},
        {"exp": 10**300},
        {"iat": -1},
        {"nbf": "0"},
        {"nbf": [0]},
    )
    for claims in senseless:
        ((name, value),) = claims.items()
        message = f"the token's `{name}` is not a time"
        yield Forgery(id=f"{name}-{value}"[:20], make=claiming(**claims), message=message)


# --- the bytes ----------------------------------------------------------------------------------------


def _texts() -> Iterator[Forgery]:
    payloads: dict[str, str] = {
        "duplicate-claim": '"sub": "usr_2"',
        "duplicate-by-escape": '"s\\u0075b": "usr_2"',
        "duplicate-inside": '"x": {"a": {"id": "1"}, "a": {"id": "2"}}',
        "nan": '"x": NaN',
        "infinity": '"x": Infinity',
        "overflow": '"x": 1e999',
        "half-a-surrogate": '"x": "\\ud800"',
        "nested-10": '"x": ' + "[" * 9 + "]" * 9,
        "nested-2000": '"x": ' + "[" * 2000 + "]" * 2000,
        "objects-nested-900": '"x": ' + '{"a":' * 900 + "1" + "}" * 900,
    }
    for name, member in payloads.items():
        yield Forgery(id=name, make=_with_claim(member), message=NOT_JSON)
    for name, member in {
        "duplicate-alg": '"alg": "none"',
        "duplicate-kid": '"kid": "key-2"',
        "header-nested": '"x": ' + "[" * 100 + "]" * 100,
    }.items():
        yield Forgery(id=name, make=_with_header(member), message=NOT_JSON)
    whole: dict[str, tuple[Callable[[bytes, bytes], tuple[bytes, bytes]], str]] = {
        "trailing-bytes": (lambda head, body: (head, body + b"{}"), NOT_JSON),
        "byte-order-mark": (lambda head, body: (head, b"\xef\xbb\xbf" + body), NOT_JSON),
        "not-utf-8": (lambda head, body: (head, body.replace(b'"Bearer"', b'"Bearer\xff"')), NOT_JSON),
        "array": (lambda head, body: (head, b"[" + body + b"]"), NOT_OBJECT),
        "text": (lambda head, _: (head, b'"text"'), NOT_OBJECT),
        "empty-payload": (lambda head, _: (head, b""), NOT_JSON),
        "empty-header": (lambda _, body: (b"", body), NOT_JSON),
        "null-header": (lambda _, body: (b"null", body), NOT_OBJECT),
    }
    for name, (change, message) in whole.items():
        yield Forgery(id=name, make=written(change), message=message)


def _with_claim(member: str) -> Make:
    return written(lambda head, body: (head, more(body, member)))


def _with_header(member: str) -> Make:
    return written(lambda head, body: (more(head, member), body))


def _shapes() -> Iterator[Forgery]:
    yield Forgery(id="oversized", make=claiming(x="y" * 8000), message=LONG)
    yield Forgery(id="dots-only", make=lambda _: "." * 9000, message=LONG)
    shapes: dict[str, tuple[Callable[[str], str], str]] = {
        "empty-part": (lambda token: token.replace(".", "..", 1), PARTS),
        "four-parts": (lambda token: token + ".AAAA", PARTS),
        "five-parts": (lambda token: token + "..", PARTS),
        "two-parts": (lambda token: token.rpartition(".")[0], PARTS),
        "three-dots": (lambda _: "...", PARTS),
        "space": (lambda token: " " + token, NOT_JSON),
        "mark": (lambda token: token.replace(".", ".!", 1), NOT_JSON),
        "padding": (lambda token: token.replace(".", "=.", 1), SIGNATURE),
    }
    for name, (change, message) in shapes.items():
        yield Forgery(id=name, make=_reshaped(change), message=message)
    yield Forgery(id="nothing", make=lambda _: "", message=PARTS, bearer=False)
    yield Forgery(id="accent", make=lambda mint: "é" + mint.good(), message=NOT_JSON, bearer=False)
    yield Forgery(id="newline", make=lambda mint: mint.good() + "\n", message=SIGNATURE, carried=False)
    yield Forgery(
        id="nul", make=lambda mint: mint.good()[:20] + "\x00" + mint.good()[20:], message=NOT_JSON, carried=False
    )


def _reshaped(change: Callable[[str], str]) -> Make:
    return lambda mint: change(mint.good())


GROUPS: dict[str, tuple[Forgery, ...]] = {
    "signature": tuple(_signatures()),
    "header": tuple(_headers()),
    "addressing": tuple(_addressing()),
    "times": tuple(_times()),
    "texts": tuple(_texts()),
    "shapes": tuple(_shapes()),
}
FORGERIES = tuple(forgery for group in GROUPS.values() for forgery in group)
