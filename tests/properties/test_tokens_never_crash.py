"""Whatever bytes come as a token: a refusal that says so, never another error; and no change verifies."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.identity import CLAIMS, ISSUER, NOW, Forger, b64
from modelkeep_platform.core.errors import UnauthenticatedError
from modelkeep_platform.identity.tokens import Claims, verify

FORGER = Forger()
KEYS = FORGER.jwks
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def outcome(token: str) -> Claims | None:
    try:
        return verify(token, keys=KEYS, issuer=ISSUER, audience="modelkeep", now=NOW)
    except UnauthenticatedError:
        return None


@given(st.text(max_size=300))
def test_any_text_is_refused(token: str) -> None:
    assert outcome(token) is None


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_any_signed_bytes_are_refused(header: bytes, payload: bytes) -> None:
    assert outcome(FORGER.raw(header, payload)) is None


@given(st.sampled_from(["alg", "kid", "typ", "jwk", "crit", "x"]), JSON)
def test_any_value_in_the_header_is_refused_or_harmless(name: str, value: Any) -> None:
    header = {"alg": "ES256", "typ": "JWT", "kid": FORGER.kid, name: value}
    token = FORGER.raw(json.dumps(header).encode(), json.dumps(CLAIMS).encode())
    found = outcome(token)
    needed = {"alg": ("ES256",), "kid": (FORGER.kid,), "typ": ("JWT",), "jwk": (), "crit": ()}
    if name in needed and value not in needed[name]:
        assert found is None


@given(st.sampled_from([*CLAIMS, "x"]), JSON)
def test_any_value_of_a_claim_is_refused_or_well_typed(name: str, value: Any) -> None:
    found = outcome(
        FORGER.raw(b'{"alg":"ES256","typ":"JWT","kid":"key-1"}', json.dumps({**CLAIMS, name: value}).encode())
    )
    if name in {"iss", "typ"} and value != CLAIMS[name]:
        assert found is None
    if name == "aud" and value != "modelkeep" and not (isinstance(value, list) and "modelkeep" in value):
        assert found is None
    if found is not None:
        assert all((found.subject, found.client_id, found.token_id, found.organization_id))
        assert found.issued_at < found.expires_at
        assert found.expires_at > NOW


@given(st.binary(min_size=64, max_size=64))
def test_no_random_signature_verifies(signature: bytes) -> None:
    signed = FORGER.token().rpartition(".")[0]
    assert outcome(f"{signed}.{b64(signature)}") is None


@pytest.mark.parametrize("length", [0, 1, 63, 65, 96, 128])
def test_no_signature_of_another_length_verifies(length: int) -> None:
    signed = FORGER.token().rpartition(".")[0]
    assert outcome(f"{signed}.{b64(bytes(length))}") is None
