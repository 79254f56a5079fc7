"""What `verify` accepts; what it refuses is in tests/attacks/test_tokens.py."""

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fakes.identity import CLAIMS, ISSUER, NOW, Forger, PrivateKey
from modelkeep_platform.identity.tokens import LEEWAY_S, Claims, ExpiredTokenError, InvalidTokenError, verify

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def verified(forger: Forger, token: str, *, now: int = NOW, organization: bool = True) -> Claims:
    return verify(token, keys=forger.jwks, issuer=ISSUER, audience="modelkeep", now=now, organization=organization)


def test_the_claims_are_those_of_the_token() -> None:
    forger = Forger()
    assert verified(forger, forger.token()) == Claims(
        subject="usr_1",
        client_id="modelkeep-sdk",
        token_id="tok_1",
        organization_slug="acme",
        organization_id="aaaaaaaa-0000-4000-8000-000000000001",
        issued_at=NOW - 10,
        expires_at=NOW + 290,
    )


@pytest.mark.parametrize(
    ("alg", "key"),
    [("RS256", RSA), ("PS256", RSA), ("Ed25519", Ed25519PrivateKey.generate())],
    ids=["RS256", "PS256", "Ed25519"],
)
def test_every_listed_algorithm_verifies(alg: str, key: PrivateKey) -> None:
    forger = Forger(alg=alg, key=key)
    assert verified(forger, forger.token()).token_id == "tok_1"


def test_the_audience_may_be_one_of_a_list() -> None:
    forger = Forger()
    token = forger.token(claims={**CLAIMS, "aud": ["account", "modelkeep"]})
    assert verified(forger, token).subject == "usr_1"


def test_unknown_claims_and_roles_in_the_token_are_not_taken_over() -> None:
    forger = Forger()
    claims = {**CLAIMS, "realm_access": {"roles": ["tenant-admin"]}, "scope": "x"}
    assert verified(forger, forger.token(claims=claims)) == verified(forger, forger.token())


def test_keycloaks_slower_type_names_are_accepted() -> None:
    forger = Forger()
    assert verified(forger, forger.token(header={"typ": "at+jwt"})).subject == "usr_1"


def test_an_operators_token_needs_no_organization() -> None:
    forger = Forger()
    claims = verified(forger, forger.token(claims={**CLAIMS, "organization": None}), organization=False)
    assert claims.organization_id is None


def test_another_key_of_the_set_is_no_obstacle() -> None:
    forger, other = Forger(), Forger(kid="key-2")
    keys = {"keys": [other.public(), forger.public(use="sig", alg="ES256")]}
    assert verify(forger.token(), keys=keys, issuer=ISSUER, audience="modelkeep", now=NOW).subject == "usr_1"


@pytest.mark.parametrize(
    ("now", "good"), [(NOW + 289, True), (NOW + 290, False)], ids=["last second", "first second after"]
)
def test_a_token_ends_at_its_second(now: int, good: bool) -> None:
    forger = Forger()
    if good:
        verified(forger, forger.token(), now=now)
        return
    with pytest.raises(ExpiredTokenError) as refused:
        verified(forger, forger.token(), now=now)
    assert refused.value.error_code == "token_expired"


@pytest.mark.parametrize("claim", ["iat", "nbf"])
@pytest.mark.parametrize(("ahead", "good"), [(LEEWAY_S, True), (LEEWAY_S + 1, False)], ids=["leeway", "beyond"])
def test_clocks_may_differ_by_the_leeway(claim: str, ahead: int, good: bool) -> None:
    forger = Forger()
    token = forger.token(claims={**CLAIMS, claim: NOW + ahead})
    if good:
        verified(forger, token)
        return
    with pytest.raises(InvalidTokenError):
        verified(forger, token)


def test_nbf_may_be_absent() -> None:
    forger = Forger()
    assert verified(forger, forger.token(claims={**CLAIMS, "nbf": None})).issued_at == NOW - 10
