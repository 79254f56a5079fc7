"""Abuse of tokens: every line of *Tokens* in the list of attacks, against `verify`, `Authenticator` and a platform.

What can be forged is one table (`forgeries.py`). `verify` alone refuses each for its reason. Sent to both planes of a
running platform, each is answered 401 with its code, changes nothing and is counted as a stranger's. What no request
carries, or only a key set shows, is tried on `verify`; processes that remember and that do not, on `Authenticator`.
"""

import base64
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import modelkeep
from attacks.forgeries import (
    AUDIENCE,
    FORGERIES,
    GROUPS,
    LONG,
    NO_BEARER,
    UNKNOWN_KEY,
    Forgery,
    Mint,
    forged,
    hs256,
    mint_of,
)
from attacks.sign_in import DEVICE_GRANT
from fakes.core import FakeClock, FakeRecorder, operator_caller
from fakes.identity import CLAIMS, ISSUER, NOW, Forger, IdentityRoom, b64
from isolation.routes import code_of
from modelkeep.auth import DevicePrompt
from modelkeep.types import Member
from modelkeep_platform.core.callers import OperatorCaller, Role, TenantCaller
from modelkeep_platform.core.errors import UnauthenticatedError
from modelkeep_platform.identity import secrets
from modelkeep_platform.identity.tokens import ExpiredTokenError, InvalidTokenError, verify
from modelkeep_platform.storage.database import Database
from services.evidence import Evidence
from services.house import PASSWORD, House, approve, token_of, wait_until

TABLE = pytest.mark.parametrize("forgery", FORGERIES, ids=lambda forgery: forgery.id)


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


# --- `verify` alone ----------------------------------------------------------------------------------


def test_the_forger_makes_good_tokens_so_that_refusals_mean_something(forger: Forger) -> None:
    assert verify(forger.token(), keys=forger.jwks, issuer=ISSUER, audience="modelkeep", now=NOW).subject == "usr_1"


def test_every_forgery_has_a_name_of_its_own() -> None:
    assert len({forgery.id for forgery in FORGERIES}) == len(FORGERIES)


@TABLE
def test_a_forged_token_is_refused_for_what_is_wrong_with_it(forger: Forger, forgery: Forgery) -> None:
    error = refused(forgery.make(Mint(forger=forger, claims=CLAIMS, now=NOW)), forger)
    assert (error.error_code, error.message) == (forgery.code, forgery.message)
    assert isinstance(error, ExpiredTokenError if forgery.code == "token_expired" else InvalidTokenError)


def test_the_clock_may_be_thirty_seconds_off_and_not_one_more(forger: Forger) -> None:
    for name in ("iat", "nbf"):
        token = forger.token(claims={**CLAIMS, name: NOW + 30})
        verify(token, keys=forger.jwks, issuer=ISSUER, audience="modelkeep", now=NOW)
        assert type(refused(forger.token(claims={**CLAIMS, name: NOW + 31}), forger)) is InvalidTokenError


def test_hs256_is_refused_even_when_the_key_set_holds_its_secret(forger: Forger) -> None:
    token = hs256(Mint(forger=forger, claims=CLAIMS, now=NOW))
    shared = {"keys": [{"kty": "oct", "kid": forger.kid, "k": b64(b"x" * 32)}]}
    assert refused(token, forger, keys=shared).error_code == "token_invalid"


@pytest.mark.parametrize("part", [0, 1, 2], ids=["header", "payload", "signature"])
def test_one_changed_character_anywhere_is_refused(forger: Forger, part: int) -> None:
    parts = forger.token().split(".")
    for place in range(0, len(parts[part]) - 1, 7):
        changed = parts.copy()
        letter = "A" if parts[part][place] != "A" else "B"
        changed[part] = parts[part][:place] + letter + parts[part][place + 1 :]
        assert refused(".".join(changed), forger).error_code == "token_invalid"


@pytest.mark.parametrize("more", [{"alg": "ES384"}, {"use": "enc"}], ids=["another algorithm", "for encryption"])
def test_a_key_for_something_else_does_not_verify(forger: Forger, more: dict[str, str]) -> None:
    assert refused(forger.token(), forger, keys={"keys": [forger.public(**more)]}).error_code == "token_invalid"


def test_a_kid_that_two_keys_share_is_refused(forger: Forger) -> None:
    keys = {"keys": [forger.public(), Forger().public()]}
    assert refused(forger.token(), forger, keys=keys).message == UNKNOWN_KEY


def test_no_keys_verify_nothing(forger: Forger) -> None:
    sets: tuple[dict[str, Any], ...] = ({"keys": []}, {})
    for keys in sets:
        assert refused(forger.token(), forger, keys=keys).message == UNKNOWN_KEY


def test_an_operators_audience_is_not_a_tenants(forger: Forger) -> None:
    assert refused(forger.token(claims={**CLAIMS, "aud": "modelkeep-operator"}), forger).message == AUDIENCE


def test_an_oversized_token_is_refused_before_it_is_decoded(forger: Forger) -> None:
    assert refused("." * 10_000_000, forger).message == LONG


# --- a platform ---------------------------------------------------------------------------------------

PLANES: tuple[tuple[str, str, Any], ...] = (
    ("POST", "/v1/policies", {"text": "// published by a forger"}),
    ("GET", "/v2/models/model", None),
    ("POST", "/v1/tenants", {"slug": "forged", "name": "Forged"}),
)
"""What would change or tell something if a token were taken: of the management API, the data plane, the operator's."""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(Path(tmp_path_factory.mktemp("tokens")))
    house.fill()
    yield house
    house.close()


@pytest.fixture(scope="module")
def evidence(house: House) -> Evidence:
    return Evidence(house)


@pytest.fixture(scope="module")
def stranger(house: House) -> Iterator[httpx.Client]:
    """Somebody whom nobody knows."""
    with house.http(None) as http:
        yield http


def answers(stranger: httpx.Client, token: str) -> list[httpx.Response]:
    """Return what every plane answers to the bearer of `token`."""
    headers = {b"authorization": f"Bearer {token}".rstrip().encode()}
    return [stranger.request(method, path, json=body, headers=headers) for method, path, body in PLANES]


def turned_away(
    stranger: httpx.Client, evidence: Evidence, token: str, message: str, code: str = "token_invalid"
) -> None:
    """Check that no plane lets the bearer in, that nothing changes, and that strangers are counted, not recorded."""
    with evidence.strangers_counted(len(PLANES)):
        found = answers(stranger, token)
    for answer in found:
        refused_as(answer, message, code)
        assert evidence.recorded(answer) == []
        assert len(token) < 8 or token not in answer.text


def refused_as(answer: httpx.Response, message: str, code: str, about: str = "") -> None:
    """Check status, code, words and the way to log in, of either plane."""
    error = answer.json()["error"]
    said = error if isinstance(error, str) else error["message"]
    assert (answer.status_code, code_of(answer), said) == (401, code, message), about
    assert answer.headers["www-authenticate"].startswith("Bearer resource_metadata="), about


def test_a_good_token_of_the_forgers_opens_what_forgeries_do_not(house: House, stranger: httpx.Client) -> None:
    token = mint_of(house, token_of(house.acme.admin)).good()
    assert [answer.status_code for answer in answers(stranger, token)] == [201, 200, 403]


@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
def test_a_forged_token_opens_nothing(
    house: House, stranger: httpx.Client, evidence: Evidence, group: tuple[Forgery, ...]
) -> None:
    carried = [forgery for forgery in group if forgery.carried]
    found: list[tuple[Forgery, httpx.Response]] = []
    with evidence.strangers_counted(len(PLANES) * len(carried)):
        for forgery in carried:
            token = forgery.make(mint_of(house, token_of(house.acme.admin)))
            found += [(forgery, answer) for answer in answers(stranger, token)]
    for forgery, answer in found:
        why = (forgery.message, forgery.code) if forgery.bearer else (NO_BEARER, "token_missing")
        refused_as(answer, *why, about=forgery.id)
        assert evidence.recorded(answer) == [], forgery.id


def test_strangers_are_one_count_in_the_platforms_log(stranger: httpx.Client, evidence: Evidence) -> None:
    evidence.summaries_of_strangers()
    before = len(evidence.summaries_of_strangers())
    for _ in range(5):
        answers(stranger, "forged")
    (counted,) = evidence.summaries_of_strangers()[before:]
    assert (counted.tenant, counted.outcome) == ("platform", "denied")
    assert counted.facts["count"] == counted.facts["status_401"] == 5 * len(PLANES)


@pytest.mark.parametrize("spelling", ["Bearer  {}", "bearer {}"], ids=["two spaces", "lower"])
def test_other_spellings_of_the_header_never_make_a_forgery_good(stranger: httpx.Client, spelling: str) -> None:
    token = Forger(kid="unknown").token(claims=CLAIMS)
    answer = stranger.get("/v1/whoami", headers={"authorization": spelling.format(token)})
    assert (answer.status_code, code_of(answer)) == (401, "token_invalid")


def test_two_tokens_are_none(house: House, stranger: httpx.Client, evidence: Evidence) -> None:
    token = token_of(house.acme.admin)
    for second in (token, "forged"):
        headers = [("authorization", f"Bearer {token}"), ("authorization", f"Bearer {second}")]
        with evidence.strangers_counted(1):
            answer = stranger.get("/v1/whoami", headers=headers)
        assert (answer.status_code, code_of(answer)) == (401, "token_missing")


# --- who it speaks of, on a platform -----------------------------------------------------------------

NO_TENANT = "the token's organization is not a tenant here"
NO_MEMBER = "the token's subject is not a member of the tenant"
OTHER_CLIENT = "the token was issued to another client"
NO_OPERATOR = "the token is not of an operator's client"


def _tenant_id(house: House, slug: str) -> str:
    (organization,) = mint_of(house, token_of(getattr(house, slug).admin)).claims["organization"].values()
    return str(organization["id"])


def _of(house: House, **claims: Any) -> str:
    return forged(house, token_of(house.acme.admin), **claims)


def _app(house: House, **claims: Any) -> str:
    return forged(house, token_of(house.acme.clients["developer"]), **claims)


def _invited(house: House) -> str:
    (found,) = [one for one in house.acme.admin.members.list() if one.state == "invited"] or [
        house.acme.admin.members.invite("invited", roles=["analyst"]).member
    ]
    return _of(house, sub=found.id)


SPEAKERS: dict[str, tuple[Callable[[House], str], str]] = {
    "unknown-organization": (
        lambda house: _of(house, organization={"acme": {"id": "cccccccc-0000-4000-8000-000000000003"}}),
        NO_TENANT,
    ),
    "the-platform": (lambda house: _of(house, organization={"platform": {"id": "platform"}}), NO_TENANT),
    "slug-for-an-id": (lambda house: _of(house, organization={"acme": {"id": "acme"}}), NO_TENANT),
    "wildcard": (lambda house: _of(house, organization={"acme": {"id": "*"}}), NO_TENANT),
    "role-in-another-organization": (
        lambda house: _of(house, organization={"globex": {"id": _tenant_id(house, "globex")}}),
        NO_MEMBER,
    ),
    "app-in-another-organization": (
        lambda house: _app(house, organization={"globex": {"id": _tenant_id(house, "globex")}}),
        NO_MEMBER,
    ),
    "invited-and-not-enrolled": (_invited, NO_MEMBER),
    "nobody": (lambda house: _of(house, sub="usr_nobody"), NO_MEMBER),
    "person-by-another-client": (lambda house: _of(house, azp="evil-app"), OTHER_CLIENT),
    "person-by-the-operators-client": (lambda house: _of(house, azp="operator"), OTHER_CLIENT),
    "person-by-the-client-in-capitals": (lambda house: _of(house, azp="MODELKEEP-SDK"), OTHER_CLIENT),
    "app-by-the-sdks-client": (lambda house: _app(house, azp="modelkeep-sdk"), OTHER_CLIENT),
    "app-by-another-apps-client": (
        lambda house: _app(house, azp=house.acme.secrets["analyst"][0]),
        OTHER_CLIENT,
    ),
    "person-as-operator": (lambda house: _of(house, aud="modelkeep-operator"), NO_OPERATOR),
    "person-as-operators-subject": (lambda house: _of(house, aud="modelkeep-operator", sub="operator"), NO_OPERATOR),
    "person-as-operators-client": (lambda house: _of(house, aud="modelkeep-operator", azp="operator"), NO_OPERATOR),
    "app-as-operator": (lambda house: _app(house, aud="modelkeep-operator"), NO_OPERATOR),
    "app-as-operators-client": (lambda house: _app(house, aud="modelkeep-operator", azp="operator"), NO_OPERATOR),
    "both-audiences": (lambda house: _of(house, aud=["modelkeep", "modelkeep-operator"]), NO_OPERATOR),
    "operator-as-member": (
        lambda house: forged(
            house,
            token_of(house.operator),
            aud="modelkeep",
            organization={"acme": {"id": _tenant_id(house, "acme")}},
        ),
        NO_MEMBER,
    ),
}


@pytest.mark.parametrize(("make", "message"), SPEAKERS.values(), ids=SPEAKERS)
def test_a_token_that_speaks_of_somebody_else_opens_nothing(
    house: House, stranger: httpx.Client, evidence: Evidence, make: Callable[[House], str], message: str
) -> None:
    turned_away(stranger, evidence, make(house), message)


def test_refresh_tokens_links_and_secrets_are_no_access_tokens(
    house: House, stranger: httpx.Client, evidence: Evidence
) -> None:
    link = house.acme.admin.members.invite("linked", roles=["analyst"]).invitation.token
    refresh = signed_in(house, stranger, joined(house, "refreshed"))["refresh_token"]
    known = (house.acme.secrets["developer"][1], house.made.operator_secret)
    for secret in (link, *known, refresh, "mkr_" + "A" * 43):
        turned_away(stranger, evidence, secret, "the token has not three parts")
    # Nor is it used up: it is good where it belongs.
    form = {"grant_type": "refresh_token", "refresh_token": refresh, "client_id": "modelkeep-sdk"}
    assert stranger.post("/issuer/token", data=form).status_code == 200


def test_a_removed_members_token_opens_nothing_from_the_next_call_on(
    house: House, stranger: httpx.Client, evidence: Evidence
) -> None:
    member = joined(house, "removed")
    tokens = signed_in(house, stranger, member)
    assert who(stranger, tokens["access_token"]).json()["principal"] == member.id
    house.acme.admin.members.remove(member.id)
    turned_away(stranger, evidence, tokens["access_token"], NO_MEMBER)
    # Nor does her refresh token get her another one.
    form = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"], "client_id": "modelkeep-sdk"}
    with evidence.strangers_counted(1, 400):
        answer = stranger.post("/issuer/token", data=form)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_grant")


def joined(house: House, username: str) -> Member:
    """Invite somebody who may do much to Acme, and have her accept."""
    made = house.acme.admin.members.invite(username, roles=["developer", "tenant-admin"])
    modelkeep.enrol(house.url, made.invitation.token, username=username, password=PASSWORD)
    return made.member


def signed_in(house: House, stranger: httpx.Client, member: Member) -> dict[str, str]:
    """Return the tokens of a member of Acme who logs a device in."""
    form = {"client_id": "modelkeep-sdk", "scope": "organization:acme"}
    begun = stranger.post("/issuer/device_authorization", data=form).json()
    prompt = DevicePrompt(
        user_code=begun["user_code"],
        verification_uri=begun["verification_uri"],
        verification_uri_complete=begun["verification_uri_complete"],
        expires_in_s=begun["expires_in"],
    )
    approve(prompt, member.name)
    redeem = {"grant_type": DEVICE_GRANT, "device_code": begun["device_code"], "client_id": "modelkeep-sdk"}
    answer = stranger.post("/issuer/token", data=redeem)
    assert answer.status_code == 200, answer.text
    return {name: str(value) for name, value in answer.json().items()}


def test_a_token_from_before_a_change_of_its_credential_opens_nothing(
    house: House, stranger: httpx.Client, evidence: Evidence
) -> None:
    """Rotated, deleted, revoked: known a moment ago, a stranger with the next call."""
    accounts, tokens = house.acme.admin.service_accounts, dict[str, str]()
    made = {name: accounts.create(name, roles=["developer"]) for name in ("rotated", "deleted", "revoked")}
    for name, account in made.items():
        login = (account.service_account.client_id, account.client_secret)
        tokens[name] = logged_in(stranger, login)
        assert who(stranger, tokens[name]).json()["name"] == name
    accounts.rotate(made["rotated"].service_account.id)
    accounts.delete(made["deleted"].service_account.id)
    assert stranger.post("/issuer/revoke", data={"token": tokens["revoked"]}).status_code == 200
    messages = {
        "rotated": "the token is older than the last change of its credential; log in again",
        "deleted": NO_MEMBER,
        "revoked": "the token was revoked; log in again",
    }
    # First what was revoked last: it holds when the call has returned.
    for name, message in reversed(messages.items()):
        turned_away(stranger, evidence, tokens[name], message)


def logged_in(stranger: httpx.Client, login: tuple[str, str]) -> str:
    answer = stranger.post("/issuer/token", data={"grant_type": "client_credentials"}, auth=login)
    return str(answer.json()["access_token"])


def who(stranger: httpx.Client, token: str) -> httpx.Response:
    return stranger.get("/v1/whoami", headers={"authorization": f"Bearer {token}"})


def test_a_suspended_tenants_tokens_open_nothing_until_it_is_resumed(
    house: House, stranger: httpx.Client, evidence: Evidence
) -> None:
    token = token_of(house.globex.admin)
    house.operator.tenants.suspend("globex")
    try:
        turned_away(stranger, evidence, token, "the tenant is suspended; ask the platform's operator")
    finally:
        house.operator.tenants.resume("globex")
    assert who(stranger, token).status_code == 200


def test_keys_rotate_while_tokens_are_used_and_no_good_one_is_refused(house: House, stranger: httpx.Client) -> None:
    admin, before = token_of(house.acme.admin), mint_of(house, token_of(house.acme.admin))
    failures, good, stop = list[str](), list[str](), threading.Event()

    def use() -> None:
        with house.http(None) as http:
            while not stop.is_set():
                answer = who(http, logged_in(http, house.acme.secrets["developer"]))
                (good if answer.status_code == 200 else failures).append(answer.text)

    threads = [threading.Thread(target=use) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(4):
        house.operator.issuer.rotate_key()
        assert who(stranger, admin).status_code == 200, "what was signed before is good until it is over"
        enough = len(good) + 2
        wait_until(lambda: failures or len(good) >= enough, "tokens of the new key to be used")  # noqa: B023 -- at once
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert mint_of(house, admin).forger.kid != before.forger.kid


# --- who it speaks of, in every process ---------------------------------------------------------------


def invalid(room: IdentityRoom, token: str) -> str:
    """Return the message of the refusal, from a fresh authenticator too."""
    messages = set()
    for authenticator in (room.authenticator, room.new_authenticator()):
        with pytest.raises(InvalidTokenError) as caught:
            authenticator.authenticate(token, operator_caller().request_id)
        messages.add(caught.value.message)
    (message,) = messages
    return message


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


def test_an_operators_token_opens_no_tenant(room: IdentityRoom) -> None:
    admin, _ = room.enrolled()
    token = room.operator_token()
    assert room.operator(token).tenant == "platform"
    forged = room.forge(token, aud="modelkeep", organization={"acme": {"id": admin.tenant}})
    assert invalid(room, forged) == "the token's subject is not a member of the tenant"


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
