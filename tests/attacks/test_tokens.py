"""Abuse of tokens: every line of *Tokens* in the list of attacks, against `verify` and against `Authenticator`."""

import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fakes.core import FakeClock, FakeRecorder, operator_caller
from fakes.identity import CLAIMS, ISSUER, NOW, Forger, IdentityRoom, b64
from modelkeep_platform.core.callers import OperatorCaller, Role, TenantCaller
from modelkeep_platform.core.errors import UnauthenticatedError
from modelkeep_platform.identity import secrets
from modelkeep_platform.identity.tokens import ExpiredTokenError, InvalidTokenError, verify
from modelkeep_platform.storage.database import Database

KID = "key-1"


@pytest.fixture
def room(database: Database, clock: FakeClock, recorder: FakeRecorder, monkeypatch: pytest.MonkeyPatch) -> IdentityRoom:
    monkeypatch.setattr(secrets, "MEMORY_KIB", 64)
    return IdentityRoom(database, clock, recorder)


@pytest.fixture(scope="module")
def forger() -> Forger:
    return Forger()


def refused(token: str, forger: Forger, **changes: Any) -> UnauthenticatedError:
    given: dict[str, Any] = {"keys": forger.jwks, "issuer": ISSUER, "audience": "modelkeep", "now": NOW, **changes}
    with pytest.raises(UnauthenticatedError) as caught:
        verify(token, **given)
    return caught.value


def test_the_forger_makes_good_tokens_so_that_refusals_mean_something(forger: Forger) -> None:
    assert verify(forger.token(), keys=forger.jwks, issuer=ISSUER, audience="modelkeep", now=NOW).subject == "usr_1"


# --- the signature -----------------------------------------------------------------------------------


@pytest.mark.parametrize("alg", ["none", "None", "nOnE", "", "HS256", "HS512", "ES384", "RS512", "RSA-OAEP", "dir"])
def test_other_algorithms_are_refused(forger: Forger, alg: str) -> None:
    assert refused(forger.token(header={"alg": alg}), forger).error_code == "token_invalid"


@pytest.mark.parametrize("alg", [None, 1, ["ES256"], {"ES256": 1}, True], ids=str)
def test_an_algorithm_that_is_no_listed_text_is_refused(forger: Forger, alg: object) -> None:
    assert refused(forger.token(header={"alg": alg}), forger).error_code == "token_invalid"


def test_alg_none_without_a_signature_is_refused(forger: Forger) -> None:
    header = b64(json.dumps({"alg": "none", "typ": "JWT", "kid": KID}).encode())
    payload = b64(json.dumps(CLAIMS).encode())
    for signature in ("", "AAAA"):
        assert refused(f"{header}.{payload}.{signature}", forger).error_code == "token_invalid"


def test_hs256_with_the_public_key_as_its_secret_is_refused(forger: Forger) -> None:
    pem = forger.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signed = (
        f"{b64(json.dumps({'alg': 'HS256', 'typ': 'JWT', 'kid': KID}).encode())}.{b64(json.dumps(CLAIMS).encode())}"
    )
    token = f"{signed}.{b64(hmac.digest(pem, signed.encode(), hashlib.sha256))}"
    assert refused(token, forger).error_code == "token_invalid"
    shared = {"keys": [{"kty": "oct", "kid": KID, "k": b64(pem)}]}
    assert refused(token, forger, keys=shared).error_code == "token_invalid"


def test_a_signature_by_another_key_is_refused(forger: Forger) -> None:
    assert refused(Forger().token(), forger).message == "the token's signature does not verify"


@pytest.mark.parametrize("part", [0, 1, 2], ids=["header", "payload", "signature"])
def test_one_changed_character_anywhere_is_refused(forger: Forger, part: int) -> None:
    parts = forger.token().split(".")
    for place in range(0, len(parts[part]) - 1, 7):
        changed = parts.copy()
        letter = "A" if parts[part][place] != "A" else "B"
        changed[part] = parts[part][:place] + letter + parts[part][place + 1 :]
        assert refused(".".join(changed), forger).error_code == "token_invalid"


def test_a_payload_signed_for_another_token_is_refused(forger: Forger) -> None:
    header, _, signature = forger.token().split(".")
    _, payload, _ = forger.token(claims={**CLAIMS, "sub": "usr_2"}).split(".")
    assert refused(f"{header}.{payload}.{signature}", forger).error_code == "token_invalid"


def test_a_key_of_another_algorithm_does_not_verify(forger: Forger) -> None:
    keys = {"keys": [forger.public(alg="ES384")]}
    assert refused(forger.token(), forger, keys=keys).error_code == "token_invalid"


def test_an_encryption_key_does_not_verify(forger: Forger) -> None:
    keys = {"keys": [forger.public(use="enc")]}
    assert refused(forger.token(), forger, keys=keys).error_code == "token_invalid"


# --- the header --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "brought",
    [
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
    ],
    ids="+".join,
)
def test_keys_and_extensions_in_the_header_are_refused(forger: Forger, brought: dict[str, object]) -> None:
    error = refused(forger.token(header=brought), forger)
    assert error.message == "the token's header brings along what is not accepted"


def test_an_embedded_key_that_made_the_signature_is_refused(forger: Forger) -> None:
    own = Forger()
    error = refused(own.token(header={"jwk": own.public()}), forger)
    assert error.message == "the token's header brings along what is not accepted"


@pytest.mark.parametrize(
    "kid",
    ["../../etc/passwd", "' OR 1=1 --", "https://evil.test/k", "key-1\x00", "KEY-1", " key-1", "key-2", "a" * 4000],
)
def test_a_kid_that_is_not_exactly_a_known_one_is_refused(forger: Forger, kid: str) -> None:
    assert refused(forger.token(header={"kid": kid}), forger).message == "the token's key is not one of the issuer's"


@pytest.mark.parametrize("kid", [None, "", 1, ["key-1"], {"key-1": 1}, True], ids=str)
def test_a_token_without_a_kid_is_refused_even_with_one_key(forger: Forger, kid: object) -> None:
    assert refused(forger.token(header={"kid": kid}), forger).message == "the token names no key"


def test_a_kid_that_two_keys_share_is_refused(forger: Forger) -> None:
    keys = {"keys": [forger.public(), Forger().public()]}
    assert refused(forger.token(), forger, keys=keys).message == "the token's key is not one of the issuer's"


def test_no_keys_verify_nothing(forger: Forger) -> None:
    sets: tuple[dict[str, Any], ...] = ({"keys": []}, {})
    for keys in sets:
        assert refused(forger.token(), forger, keys=keys).error_code == "token_invalid"


@pytest.mark.parametrize("typ", [None, "", "JWE", "dpop+jwt", "logout+jwt", 7, ["JWT"]], ids=str)
def test_another_header_type_is_refused(forger: Forger, typ: object) -> None:
    error = refused(forger.token(header={"typ": typ}), forger)
    assert error.message == "the token's header type is not that of an access token"


# --- the claims --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": None},
        {"iss": "https://evil.test/issuer"},
        {"iss": f"{ISSUER}/"},
        {"iss": ISSUER.upper()},
        {"iss": [ISSUER]},
    ],
    ids=str,
)
def test_another_issuer_is_refused(forger: Forger, claims: dict[str, object]) -> None:
    assert refused(forger.token(claims=CLAIMS | claims), forger).message == "the token is of another issuer"


@pytest.mark.parametrize(
    "audience",
    [None, "account", "", "modelkeep-operator", ["account"], [], {"modelkeep": 1}, 1, [["modelkeep"]]],
    ids=str,
)
def test_another_audience_is_refused(forger: Forger, audience: object) -> None:
    error = refused(forger.token(claims={**CLAIMS, "aud": audience}), forger)
    assert error.message == "the token is for another audience"


@pytest.mark.parametrize("typ", [None, "ID", "Refresh", "Offline", "bearer", "", 1, ["Bearer"]], ids=str)
def test_id_and_refresh_tokens_are_refused(forger: Forger, typ: object) -> None:
    assert refused(forger.token(claims={**CLAIMS, "typ": typ}), forger).message == "the token is not an access token"


@pytest.mark.parametrize("name", ["sub", "azp", "jti"])
@pytest.mark.parametrize("value", [None, "", 7, ["x"], "x" * 256], ids=["absent", "empty", "number", "list", "long"])
def test_missing_names_are_refused(forger: Forger, name: str, value: object) -> None:
    error = refused(forger.token(claims={**CLAIMS, name: value}), forger)
    assert error.message == f"the token's `{name}` is missing"


@pytest.mark.parametrize(
    ("claims", "kind"),
    [
        ({"exp": NOW}, ExpiredTokenError),
        ({"exp": NOW - 1}, ExpiredTokenError),
        ({"iat": NOW + 31}, InvalidTokenError),
        ({"nbf": NOW + 31}, InvalidTokenError),
        ({"iat": NOW + 10**9, "exp": NOW + 10**9 + 300}, InvalidTokenError),
        ({"exp": NOW - 10, "iat": NOW - 10}, InvalidTokenError),
        ({"exp": None}, InvalidTokenError),
        ({"iat": None}, InvalidTokenError),
        ({"exp": str(NOW + 290)}, InvalidTokenError),
        ({"exp": float(NOW + 290)}, InvalidTokenError),
        ({"exp": True}, InvalidTokenError),
        ({"exp": 2**53}, InvalidTokenError),
        ({"exp": 10**300}, InvalidTokenError),
        ({"iat": -1}, InvalidTokenError),
        ({"nbf": "0"}, InvalidTokenError),
        ({"nbf": [0]}, InvalidTokenError),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else value.__name__,
)
def test_times_that_are_over_ahead_or_senseless_are_refused(
    forger: Forger, claims: dict[str, object], kind: type[UnauthenticatedError]
) -> None:
    assert type(refused(forger.token(claims=CLAIMS | claims), forger)) is kind


@pytest.mark.parametrize(
    "organization",
    [
        None,
        {},
        [],
        "acme",
        ["acme"],
        {"acme": {"id": "a"}, "globex": {"id": "b"}},
        {"acme": {}},
        {"acme": None},
        {"acme": "aaaaaaaa-0000-4000-8000-000000000001"},
        {"acme": {"id": ""}},
        {"acme": {"id": 7}},
        {"acme": {"id": ["a"]}},
        {"acme": [{"id": "a"}]},
    ],
    ids=str,
)
def test_no_organization_two_or_an_alias_only_are_refused(forger: Forger, organization: object) -> None:
    assert refused(forger.token(claims={**CLAIMS, "organization": organization}), forger).error_code == "token_invalid"


# --- the bytes ---------------------------------------------------------------------------------------

HEADER = json.dumps({"alg": "ES256", "typ": "JWT", "kid": KID}).encode()
PAYLOAD = json.dumps(CLAIMS).encode()


def _with(payload: bytes, more: str) -> bytes:
    return payload[:-1] + b", " + more.encode() + b"}"


@pytest.mark.parametrize(
    ("header", "payload"),
    [
        (HEADER, _with(PAYLOAD, '"sub": "usr_2"')),
        (HEADER, _with(PAYLOAD, '"s\\u0075b": "usr_2"')),
        (HEADER, _with(PAYLOAD, '"organization": {"a": {"id": "1"}, "a": {"id": "2"}}')),
        (_with(HEADER, '"alg": "none"'), PAYLOAD),
        (_with(HEADER, '"kid": "key-2"'), PAYLOAD),
        (HEADER, _with(PAYLOAD, '"x": NaN')),
        (HEADER, _with(PAYLOAD, '"x": Infinity')),
        (HEADER, _with(PAYLOAD, '"x": 1e999')),
        (HEADER, _with(PAYLOAD, '"x": "\\ud800"')),
        (HEADER, PAYLOAD + b"{}"),
        (HEADER, b"\xef\xbb\xbf" + PAYLOAD),
        (HEADER, PAYLOAD.replace(b"usr_1", b"usr\xff1")),
        (HEADER, b"[" + PAYLOAD + b"]"),
        (HEADER, b'"text"'),
        (HEADER, b""),
        (b"", PAYLOAD),
        (b"null", PAYLOAD),
        (HEADER, _with(PAYLOAD, '"x": ' + "[" * 9 + "]" * 9)),
        (HEADER, _with(PAYLOAD, '"x": ' + "[" * 2000 + "]" * 2000)),
        (HEADER, _with(PAYLOAD, '"x": ' + '{"a":' * 900 + "1" + "}" * 900)),
        (_with(HEADER, '"x": ' + "[" * 100 + "]" * 100), PAYLOAD),
    ],
    ids=[
        "duplicate claim",
        "duplicate by escape",
        "duplicate inside",
        "duplicate alg",
        "duplicate kid",
        "NaN",
        "infinity",
        "overflow",
        "half a surrogate",
        "trailing bytes",
        "byte-order mark",
        "not UTF-8",
        "array",
        "text",
        "empty payload",
        "empty header",
        "null header",
        "nested 10",
        "nested 2000",
        "objects nested 900",
        "header nested",
    ],
)
def test_what_is_not_strict_json_is_refused_though_signed(forger: Forger, header: bytes, payload: bytes) -> None:
    assert refused(forger.raw(header, payload), forger).error_code == "token_invalid"


def test_an_oversized_token_is_refused_before_it_is_decoded(forger: Forger) -> None:
    token = forger.token(claims={**CLAIMS, "x": "y" * 8000})
    assert len(token) > 8192
    assert refused(token, forger).message == "the token is too long"
    assert refused("." * 10_000_000, forger).message == "the token is too long"


@pytest.mark.parametrize(
    "change",
    [
        lambda token: token.replace(".", "..", 1),
        lambda token: token + ".AAAA",
        lambda token: token.rpartition(".")[0],
        lambda token: "",
        lambda token: "...",
        lambda token: " " + token,
        lambda token: token + "\n",
        lambda token: token.replace(".", ".!", 1),
        lambda token: token.replace(".", "=.", 1),
        lambda token: "é" + token,
        lambda token: token[:20] + "\x00" + token[20:],
    ],
    ids=["empty part", "four", "two", "nothing", "dots", "space", "newline", "mark", "padding", "accent", "nul"],
)
def test_what_is_not_three_parts_of_base64url_is_refused(forger: Forger, change: Callable[[str], str]) -> None:
    assert refused(change(forger.token()), forger).error_code == "token_invalid"


# --- who it speaks of --------------------------------------------------------------------------------


def invalid(room: IdentityRoom, token: str) -> str:
    """Return the message of the refusal, from a fresh authenticator too."""
    messages = set()
    for authenticator in (room.authenticator, room.new_authenticator()):
        with pytest.raises(InvalidTokenError) as caught:
            authenticator.authenticate(token, operator_caller().request_id)
        messages.add(caught.value.message)
    (message,) = messages
    return message


def test_an_organization_that_the_registry_does_not_know_is_refused(room: IdentityRoom) -> None:
    room.enrolled()
    token = room.log_in().access_token
    unknown = {"acme": {"id": "cccccccc-0000-4000-8000-000000000003"}}
    assert invalid(room, room.forge(token, organization=unknown)) == "the token's organization is not a tenant here"


@pytest.mark.parametrize("spelling", ["platform", "acme", "*", ""])
def test_the_platform_a_slug_and_a_wildcard_are_no_tenants(room: IdentityRoom, spelling: str) -> None:
    room.enrolled()
    token = room.log_in().access_token
    assert invalid(room, room.forge(token, organization={"acme": {"id": spelling}})) in {
        "the token's organization is not a tenant here",
        "the token's organization has no id",
    }


def test_a_role_held_in_another_organization_is_worth_nothing(room: IdentityRoom) -> None:
    room.enrolled("acme", "ada")
    _, globex = room.enrolled("globex", "gus")
    token = room.log_in("acme", "ada").access_token
    moved = room.forge(token, organization={"globex": {"id": globex.tenant.id}})
    assert invalid(room, moved) == "the token's subject is not a member of the tenant"


def test_roles_come_from_the_table_whatever_the_token_says(room: IdentityRoom) -> None:
    admin, enrolled = room.enrolled()
    invited = room.members.invite(admin, "ben", frozenset({Role.ANALYST}))
    room.tenants.enrol(invited.invitation.token, "ben", "another long password")
    token = room.log_in("acme", "ben", "another long password").access_token
    claimed = room.forge(token, roles=["tenant-admin"], realm_access={"roles": ["tenant-admin"]})
    assert room.tenant_caller(claimed).roles == frozenset({Role.ANALYST})
    assert enrolled.roles == ("tenant-admin",)


def test_a_slug_in_the_token_does_not_decide_the_tenant(room: IdentityRoom) -> None:
    admin, _ = room.enrolled("acme", "ada")
    room.enrolled("globex", "gus")
    token = room.log_in("acme", "ada").access_token
    relabelled = room.forge(token, organization={"globex": {"id": admin.tenant}})
    assert room.tenant_caller(relabelled).tenant == admin.tenant


@pytest.mark.parametrize("azp", ["evil-app", "operator", "MODELKEEP-SDK"])
def test_a_persons_token_of_another_client_is_refused(room: IdentityRoom, azp: str) -> None:
    room.enrolled()
    token = room.forge(room.log_in().access_token, azp=azp)
    assert invalid(room, token) == "the token was issued to another client"


def test_an_applications_token_of_another_client_is_refused(room: IdentityRoom) -> None:
    admin, _ = room.enrolled()
    one, other = room.account(admin, "one"), room.account(admin, "other")
    for azp in ("modelkeep-sdk", other.service_account.client_id):
        assert invalid(room, room.forge(room.app_token(one), azp=azp)) == "the token was issued to another client"


def test_a_tenants_token_is_no_operators(room: IdentityRoom) -> None:
    admin, _ = room.enrolled()
    made = room.account(admin)
    room.operator_token()
    for token in (room.log_in().access_token, room.app_token(made)):
        for forged in (
            room.forge(token, aud="modelkeep-operator"),
            room.forge(token, aud="modelkeep-operator", sub="operator"),
            room.forge(token, aud="modelkeep-operator", azp="operator"),
        ):
            assert invalid(room, forged) == "the token is not of an operator's client"


def test_an_operators_token_opens_no_tenant(room: IdentityRoom) -> None:
    admin, _ = room.enrolled()
    token = room.operator_token()
    assert room.operator(token).tenant == "platform"
    forged = room.forge(token, aud="modelkeep", organization={"acme": {"id": admin.tenant}})
    assert invalid(room, forged) == "the token's subject is not a member of the tenant"


def test_both_audiences_make_an_operator_not_a_member(room: IdentityRoom) -> None:
    room.enrolled()
    token = room.forge(room.log_in().access_token, aud=["modelkeep", "modelkeep-operator"])
    assert invalid(room, token) == "the token is not of an operator's client"


# --- from the next call on ---------------------------------------------------------------------------


def test_suspension_refuses_at_once_and_resumption_lets_in_again(room: IdentityRoom) -> None:
    room.enrolled()
    token = room.log_in().access_token
    assert isinstance(room.caller(token), TenantCaller)
    room.tenants.suspend(operator_caller(), "acme")
    assert invalid(room, token) == "the tenant is suspended; ask the platform's operator"
    room.tenants.resume(operator_caller(), "acme")
    assert isinstance(room.caller(token), TenantCaller)


def test_a_removed_member_is_refused_at_once(room: IdentityRoom) -> None:
    admin, _ = room.enrolled()
    invited = room.members.invite(admin, "ben", frozenset({Role.ANALYST}))
    room.tenants.enrol(invited.invitation.token, "ben", "another long password")
    token = room.log_in("acme", "ben", "another long password").access_token
    room.caller(token)
    room.members.remove(admin, invited.member.id)
    assert invalid(room, token) == "the token's subject is not a member of the tenant"


def test_a_member_who_has_not_enrolled_is_refused(room: IdentityRoom) -> None:
    admin, _ = room.enrolled()
    invited = room.members.invite(admin, "ben", frozenset({Role.ANALYST}))
    token = room.forge(room.log_in().access_token, sub=invited.member.id)
    assert invalid(room, token) == "the token's subject is not a member of the tenant"


def test_changed_roles_hold_for_the_next_call(room: IdentityRoom) -> None:
    admin, _ = room.enrolled()
    invited = room.members.invite(admin, "ben", frozenset({Role.DEVELOPER}))
    room.tenants.enrol(invited.invitation.token, "ben", "another long password")
    token = room.log_in("acme", "ben", "another long password").access_token
    assert room.tenant_caller(token).roles == frozenset({Role.DEVELOPER})
    room.members.update(admin, invited.member.id, frozenset({Role.AUDITOR}))
    assert room.tenant_caller(token).roles == frozenset({Role.AUDITOR})


def test_a_rotated_secret_ends_its_tokens_at_once(room: IdentityRoom) -> None:
    admin, _ = room.enrolled()
    made = room.account(admin)
    token = room.app_token(made)
    room.caller(token)
    room.accounts.rotate(admin, made.service_account.id)
    assert invalid(room, token) == "the token is older than the last change of its credential; log in again"


def test_two_rotations_in_one_second_end_the_token_between_them(room: IdentityRoom) -> None:
    admin, _ = room.enrolled()
    made = room.account(admin)
    between = room.accounts.rotate(admin, made.service_account.id)
    token = room.app_token(between)
    room.caller(token)
    last = room.accounts.rotate(admin, made.service_account.id)
    assert invalid(room, token) == "the token is older than the last change of its credential; log in again"
    room.caller(room.app_token(last))


def test_a_deleted_account_is_refused_at_once(room: IdentityRoom) -> None:
    admin, _ = room.enrolled()
    made = room.account(admin)
    token = room.app_token(made)
    room.caller(token)
    room.accounts.delete(admin, made.service_account.id)
    assert invalid(room, token) == "the token's subject is not a member of the tenant"


def test_a_revoked_access_token_is_refused(room: IdentityRoom) -> None:
    room.enrolled()
    token, other = room.log_in().access_token, room.log_in().access_token
    room.caller(token)
    room.issuer.revoke(token)
    room.issuer.revoke(token)
    assert invalid(room, token) == "the token was revoked; log in again"
    assert isinstance(room.caller(other), TenantCaller)


def test_an_operators_token_can_be_revoked(room: IdentityRoom) -> None:
    token = room.operator_token()
    assert isinstance(room.caller(token), OperatorCaller)
    room.issuer.revoke(token)
    assert invalid(room, token) == "the token was revoked; log in again"


def test_a_forged_token_revokes_nothing(room: IdentityRoom) -> None:
    room.enrolled()
    token = room.log_in().access_token
    header, payload, _ = token.split(".")
    epoch = room.database.epoch()
    room.issuer.revoke(f"{header}.{payload}.{b64(bytes(64))}")
    assert isinstance(room.caller(token), TenantCaller)
    assert room.database.epoch() == epoch


def test_an_expired_token_is_refused_from_memory_too(room: IdentityRoom) -> None:
    room.enrolled()
    token = room.log_in().access_token
    room.caller(token)
    room.clock.advance(300)
    for authenticator in (room.authenticator, room.new_authenticator()):
        with pytest.raises(ExpiredTokenError) as caught:
            authenticator.authenticate(token, operator_caller().request_id)
        assert caught.value.error_code == "token_expired"


def test_refused_tokens_are_kept_nowhere(room: IdentityRoom) -> None:
    room.enrolled()
    good = room.log_in().access_token
    epoch = room.database.epoch()
    header, payload, signature = good.split(".")
    for number in range(200):
        junk = f"{header}.{payload}.{b64(number.to_bytes(64, 'big'))}"
        with pytest.raises(InvalidTokenError):
            room.caller(junk)
    assert not room.authenticator._known
    assert room.database.epoch() == epoch
    assert base64.urlsafe_b64decode(signature + "==")


def test_keys_rotate_under_load_and_no_good_token_is_refused(room: IdentityRoom) -> None:
    admin, _ = room.enrolled()
    made = room.account(admin)
    stop, failures, checked = threading.Event(), list[BaseException](), list[int]()

    def use() -> None:
        count = 0
        while not stop.is_set():
            try:
                room.new_authenticator().authenticate(room.app_token(made), admin.request_id)
            except BaseException as exc:  # noqa: BLE001 -- any failure fails the test
                failures.append(exc)
                return
            count += 1
        checked.append(count)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    before = room.app_token(made)
    for _ in range(12):
        room.issuer.rotate_key()
        room.new_authenticator().authenticate(before, admin.request_id)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert all(checked)
