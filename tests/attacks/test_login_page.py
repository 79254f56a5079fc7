"""Abuse of the sign-in pages and of the issuer's endpoints, over HTTP: every line of *Login page and issuer*.

Each refusal is asserted with its status and its code, or what the page says; it changes no row but the counts of
guesses, and the platform's log gets it in the count of strangers.
"""

import base64
import hashlib
import html
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

import pytest
import sqlalchemy as sa

from attacks.sign_in import DEVICE_GRANT, SDK, Site, alert, site_of
from fakes.core import FakeClock, FakeRecorder
from fakes.identity import BASE, ISSUER, PASSWORD, IdentityRoom
from modelkeep_platform.core.callers import Role
from modelkeep_platform.identity import issuer, secrets
from modelkeep_platform.identity.issuer import DEVICE_S
from modelkeep_platform.identity.links import Link
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.tables.identity import device_codes, guesses, issuer_users, refresh_tokens
from services.evidence import MOVING, rows_of

FORM = "application/x-www-form-urlencoded"
WRONG = "the code, the name or the password is wrong"
TOO_OFTEN = "too many failed attempts; wait and try again"
NO_LINK = "this link was used, is over, or never was; ask for a new one"
NOT_OURS = "This form was not sent from its own page. Open it again."


@pytest.fixture
def site(database: Database, clock: FakeClock, recorder: FakeRecorder, monkeypatch: pytest.MonkeyPatch) -> Site:
    # Cheap hashing, of nobody's password, too.
    monkeypatch.setattr(secrets, "MEMORY_KIB", 64)
    monkeypatch.setattr(secrets, "_NOBODY", secrets._NOBODY.replace("m=65536", "m=64"))
    return site_of(IdentityRoom(database, clock, recorder), BASE)


# --- what must work ----------------------------------------------------------------------------------


def test_a_person_signs_a_device_in_on_the_page(site: Site) -> None:
    admin, _ = site.room.enrolled()
    begun = site.begin()
    assert begun["verification_uri"] == f"{BASE}/issuer/device"
    assert begun["verification_uri_complete"] == f"{BASE}/issuer/device?user_code={begun['user_code']}"
    assert site.redeem(begun["device_code"]).json()["error"] == "authorization_pending"
    answer = site.sign_in(begun["user_code"])
    assert (answer.status_code, "signed in" in answer.text) == (200, True)
    tokens = site.redeem(begun["device_code"])
    assert (tokens.status_code, tokens.headers["cache-control"]) == (200, "no-store")
    assert set(tokens.json()) == {"access_token", "token_type", "expires_in", "refresh_token"}
    assert site.room.tenant_caller(tokens.json()["access_token"]).tenant == admin.tenant


def test_a_person_enrols_on_the_page(site: Site) -> None:
    _, token = site.room.tenant()
    path = f"/issuer/enrol?token={token}"
    answer = site.send(path, {"username": "ada", "password": PASSWORD})
    assert (answer.status_code, "ada of acme" in answer.text) == (200, True)
    site.room.log_in()


def test_an_application_logs_in_by_either_way_of_rfc_6749(site: Site) -> None:
    admin, _ = site.room.enrolled()
    made = site.room.account(admin)
    client, secret = made.service_account.client_id, made.client_secret
    basic = base64.b64encode(f"{client}:{secret}".encode()).decode()
    by_header = site.http.post(
        "/issuer/token", data={"grant_type": "client_credentials"}, headers={"authorization": f"Basic {basic}"}
    )
    by_form = site.token(grant_type="client_credentials", client_id=client, client_secret=secret)
    for answer in (by_header, by_form):
        assert answer.status_code == 200
        assert set(answer.json()) == {"access_token", "token_type", "expires_in"}


def test_discovery_names_addresses_of_the_issuer_only(site: Site) -> None:
    document = site.page("/issuer/.well-known/openid-configuration").json()
    assert document["issuer"] == ISSUER
    for name in ("jwks_uri", "token_endpoint", "device_authorization_endpoint", "revocation_endpoint"):
        assert document[name].startswith(f"{ISSUER}/")
        path = urlsplit(document[name]).path
        assert site.http.request("OPTIONS", path).status_code == 405
    (key,) = site.page("/issuer/jwks").json()["keys"]
    assert "d" not in key


# --- guessing ----------------------------------------------------------------------------------------


def test_a_wrong_code_name_or_password_reads_the_same(site: Site) -> None:
    site.room.enrolled("acme", "ada")
    site.room.enrolled("globex", "gus")
    code = site.begin()["user_code"]
    attempts = [
        ("BBBB-BBBB", "ada", PASSWORD),
        (code, "nobody", PASSWORD),
        (code, "gus", PASSWORD),
        (code, "ada", "wrong password"),
        (code, "ada", PASSWORD[:-1]),
        (code, "ADA", PASSWORD),
        ("", "", ""),
    ]
    with site.refuses(*[400] * len(attempts)):
        answers = [site.sign_in(*attempt) for attempt in attempts]
    assert {(answer.status_code, alert(answer)) for answer in answers} == {(400, WRONG)}
    assert site.sign_in(code).status_code == 200


def test_guessing_of_codes_from_one_source_is_stopped(site: Site) -> None:
    site.room.enrolled()
    code = site.begin()["user_code"]
    with site.refuses(*[400] * 10, 429):
        for number in range(10):
            assert alert(site.sign_in(f"CCCC-CCC{'BCDFGHJKLM'[number]}")) == WRONG
        answer = site.sign_in(code)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "900")
    assert alert(answer) == TOO_OFTEN
    site.room.clock.advance(900)
    assert site.sign_in(site.begin()["user_code"]).status_code == 200


NEIGHBOURS = [
    pytest.param("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True, id="of-one-64"),
    pytest.param("2001:db8:1:2::1", "2001:db8:1:3::1", False, id="of-two-64s"),
    pytest.param("::ffff:192.0.2.1", "192.0.2.1", True, id="mapped"),
    pytest.param("::ffff:192.0.2.1", "::ffff:192.0.2.2", False, id="two-mapped"),
]


@pytest.mark.parametrize(("first", "second", "together"), NEIGHBOURS)
def test_a_subscriber_has_one_count_of_guesses_with_all_its_addresses(
    site: Site, first: str, second: str, together: bool
) -> None:
    site.room.enrolled()
    code = site.begin()["user_code"]
    site.http.address = first
    for number in range(10):
        assert site.sign_in(f"CCCC-CCC{'BCDFGHJKLM'[number]}").status_code == 400
    site.http.address = second
    assert site.sign_in(code).status_code == (429 if together else 200)


@pytest.mark.parametrize(("first", "second", "together"), NEIGHBOURS)
def test_a_subscriber_has_one_count_of_secrets_and_device_logins(
    site: Site, monkeypatch: pytest.MonkeyPatch, first: str, second: str, together: bool
) -> None:
    site.room.enrolled()
    monkeypatch.setattr(issuer, "_DEVICES_BEGUN", 3)
    made_up = {"grant_type": "client_credentials", "client_id": "made-up", "client_secret": "guess"}
    site.http.address = first
    for _ in range(10):
        assert site.token(**made_up).status_code == 401
    for _ in range(3):
        site.begin()
    site.http.address = second
    begun = site.http.post("/issuer/device_authorization", data={"client_id": SDK, "scope": "organization:acme"})
    assert (site.token(**made_up).status_code, begun.status_code) == ((429, 429) if together else (401, 200))


def test_passwords_of_one_person_are_guessed_ten_times_from_everywhere_together(site: Site) -> None:
    room = site.room
    room.enrolled()
    for number in range(10):
        code = room.issuer.authorize_device(SDK, "organization:acme", source=f"s{number}").user_code
        with pytest.raises(Exception, match="wrong"):
            room.issuer.approve_device(code, "ada", "wrong password", source=f"s{number}")
    code = site.begin()["user_code"]
    with site.refuses(429):
        assert alert(site.sign_in(code)) == TOO_OFTEN


def test_spraying_one_password_over_many_people_is_stopped_by_code_and_by_source(site: Site) -> None:
    room = site.room
    room.enrolled()
    code = site.begin()["user_code"]
    for number in range(10):
        with pytest.raises(Exception, match="wrong"):
            room.issuer.approve_device(code, f"user-{number}", "Spring2026!!", source=f"s{number}")
    with site.refuses(429):
        assert alert(site.sign_in(code)) == TOO_OFTEN
    assert site.sign_in(site.begin()["user_code"]).status_code == 200
    for number in range(10):
        fresh = site.begin()["user_code"]
        with site.refuses(400):
            assert alert(site.sign_in(fresh, f"user-{number + 20}", "Spring2026!!")) == WRONG
    last = site.begin()["user_code"]
    with site.refuses(429):
        assert alert(site.sign_in(last)) == TOO_OFTEN


def test_spellings_of_a_code_share_its_count(site: Site) -> None:
    site.room.enrolled()
    code = site.begin()["user_code"]
    with site.refuses(*[400] * 4):
        for spelling in (code, code.lower(), code.replace("-", ""), f" {code} "):
            assert alert(site.sign_in(spelling, "ada", "wrong password")) == WRONG
    with site.room.database.platform(read_only=True) as tx:
        counted = tx.all(sa.select(guesses).where(guesses.c.what.startswith("code:")))
    assert [(row["what"], row["count"]) for row in counted] == [(f"code:{code.replace('-', '')}", 4)]


def test_client_secrets_are_guessed_ten_times(site: Site) -> None:
    admin, _ = site.room.enrolled()
    client = site.room.account(admin).service_account.client_id
    with site.refuses(*[401] * 10, 429):
        for _ in range(10):
            answer = site.token(grant_type="client_credentials", client_id=client, client_secret="guess")
            assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")
            assert answer.headers["www-authenticate"] == 'Basic realm="modelkeep"'
        answer = site.token(grant_type="client_credentials", client_id=client, client_secret="guess")
    assert (answer.status_code, answer.json()["error"], answer.headers["retry-after"]) == (429, "slow_down", "900")


def test_an_unknown_tenant_cannot_be_told_from_a_known_one(site: Site) -> None:
    site.room.enrolled()
    known, unknown = site.begin("acme"), site.begin("nobody")
    assert known.keys() == unknown.keys()
    answers = [site.redeem(begun["device_code"]) for begun in (known, unknown)]
    assert {(answer.status_code, answer.json()["error"]) for answer in answers} == {(400, "authorization_pending")}
    assert answers[0].json() == answers[1].json()


# --- cross-site requests and framing -----------------------------------------------------------------


def approved(site: Site) -> list[str]:
    with site.room.database.platform(read_only=True) as tx:
        return [row["state"] for row in tx.all(sa.select(device_codes.c.state))]


def people(site: Site) -> set[str]:
    with site.room.database.platform(read_only=True) as tx:
        return {row["username"] for row in tx.all(sa.select(issuer_users.c.username))}


@dataclass(frozen=True, slots=True)
class Form:
    """A page's form as its own person fills it in, and what is there before and after it is sent."""

    path: str
    fields: dict[str, str]
    made: Callable[[Site], object]
    before: object
    after: object


def device(site: Site) -> Form:
    """Ada signs in a device."""
    site.room.enrolled()
    fields = {"user_code": site.begin()["user_code"], "username": "ada", "password": PASSWORD}
    return Form("/issuer/device", fields, approved, ["pending"], ["approved"])


def link(site: Site) -> Form:
    """Ada becomes the administrator of a new tenant."""
    fields = {"token": site.room.tenant()[1], "username": "ada", "password": PASSWORD}
    return Form("/issuer/enrol", fields, people, set(), {"ada"})


def invitation(site: Site) -> Form:
    """Ben accepts Ada's invitation."""
    token = invited(site).token
    return Form("/issuer/enrol", {"token": token, "username": "ben", "password": PASSWORD}, people, {"ada"}, ASKED)


def invited(site: Site) -> Link:
    admin, _ = site.room.enrolled()
    return site.room.members.invite(admin, "ben", frozenset({Role.ANALYST})).invitation


ASKED = {"ada", "ben"}
FORMS = pytest.mark.parametrize("fill", [device, link, invitation])


@contextmanager
def not_taken(site: Site, form: Form, *statuses: int) -> Iterator[None]:
    """Assert that what is sent is refused and does nothing, and that the same form does it when it is sent rightly."""
    with site.refuses(*statuses):
        yield
    assert form.made(site) == form.before
    assert site.send(form.path, form.fields).status_code == 200
    assert form.made(site) == form.after


@FORMS
@pytest.mark.parametrize(
    "origin",
    [None, "null", "https://evil.test", "http://keep.test", f"{BASE}:8443", f"{BASE}.evil.test", f"{BASE}/", ""],
)
def test_a_form_from_another_origin_is_refused(site: Site, fill: Callable[[Site], Form], origin: str | None) -> None:
    form = fill(site)
    with not_taken(site, form, 403):
        answer = site.send(form.path, form.fields, origin=origin)
    assert (answer.status_code, NOT_OURS in answer.text) == (403, True)


@pytest.mark.parametrize(
    ("base_url", "origin"),
    [
        ("https://Keep.Test", "https://keep.test"),
        ("https://keep.test:443", "https://keep.test"),
        ("http://127.0.0.1:80", "http://127.0.0.1"),
        ("http://127.0.0.1:8765", "http://127.0.0.1:8765"),
        ("http://[::1]:8765", "http://[::1]:8765"),
    ],
)
def test_the_own_origin_is_recognised_as_browsers_write_it(site: Site, base_url: str, origin: str) -> None:
    own = site_of(site.room, base_url)
    fields = {"user_code": "B", "username": "ada", "password": PASSWORD}
    with own.refuses(400, 403):
        assert own.send("/issuer/device", fields, origin=origin).status_code == 400
        assert own.send("/issuer/device", fields, origin="https://evil.test").status_code == 403


@FORMS
@pytest.mark.parametrize("csrf", ["", "0" * 48, "é"])
def test_a_form_without_the_pages_token_is_refused(site: Site, fill: Callable[[Site], Form], csrf: str) -> None:
    form = fill(site)
    with not_taken(site, form, 403):
        answer = site.send(form.path, form.fields, csrf=csrf)
    assert (answer.status_code, NOT_OURS in answer.text) == (403, True)


@FORMS
def test_a_form_without_the_cookie_is_refused_even_with_a_matching_empty_token(
    site: Site, fill: Callable[[Site], Form]
) -> None:
    form = fill(site)
    with not_taken(site, form, 403, 403):
        for csrf in ("", "x"):
            answer = site.http.post(form.path, data={**form.fields, "csrf": csrf}, headers={"origin": BASE})
            assert (answer.status_code, NOT_OURS in answer.text) == (403, True)


@pytest.mark.parametrize("path", ["/issuer/device", "/issuer/enrol?token=enr_x"])
def test_pages_cannot_be_framed_cached_scripted_or_leak_their_address(site: Site, path: str) -> None:
    for answer in (site.page(path), site.send(path, {"username": "ada", "password": "x", "user_code": "B"})):
        policy = answer.headers["content-security-policy"]
        (style,) = re.findall(r"<style>(.*?)</style>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        assert policy == (
            f"default-src 'none'; style-src 'sha256-{digest}'; form-action 'self'; frame-ancestors 'none'; "
            "base-uri 'none'"
        )
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cache-control"] == "no-store"
        # `no-referrer` would make browsers send `Origin: null` with the form, which is refused.
        assert answer.headers["referrer-policy"] == "same-origin"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "<script" not in answer.text
        assert answer.headers["content-type"] == "text/html; charset=utf-8"


def test_the_cookie_is_strict_hidden_from_scripts_and_secure(site: Site) -> None:
    cookie = site.page("/issuer/device").headers["set-cookie"]
    parts = {part.strip().lower() for part in cookie.split(";")[1:]}
    assert parts == {"httponly", "samesite=strict", "secure", "path=/issuer", "max-age=900"}


def test_each_page_has_its_own_token(site: Site) -> None:
    tokens = {re.findall(r'name="csrf" value="(\w+)"', site.page("/issuer/device").text)[0] for _ in range(5)}
    assert len(tokens) == 5
    assert all(len(token) == 48 for token in tokens)


@pytest.mark.parametrize(
    "value", ['"><script>alert(1)</script>', "'><img src=x onerror=alert(1)>", "</form><form action=//evil.test>"]
)
def test_what_comes_in_the_address_is_shown_as_text(site: Site, value: str) -> None:
    for path in ("/issuer/device?user_code=", "/issuer/enrol?token="):
        text = site.http.get(f"{path}{urlencode({'': value})[1:]}").text
        assert value not in text
        assert html.escape(value, quote=True) in text


def test_passwords_are_not_shown_again(site: Site) -> None:
    site.room.enrolled()
    answer = site.sign_in(site.begin()["user_code"], "ada", "mistyped password")
    assert "mistyped password" not in answer.text


# --- open redirects ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["redirect_uri", "next", "return_to", "continue", "post_logout_redirect_uri"])
def test_nothing_redirects(site: Site, name: str) -> None:
    form = device(site)
    evil = {name: "https://evil.test/"}
    with not_taken(site, form, 400, 404, 404):
        answers = [
            site.page(f"/issuer/device?{urlencode(evil)}"),
            site.token(grant_type="authorization_code", code="x", **evil),
            site.page(f"/issuer/authorize?response_type=code&{urlencode(evil)}"),
            site.page("/issuer//evil.test"),
        ]
    # Who signs in is led nowhere either.
    another = {**form.fields, "user_code": site.begin()["user_code"]}
    answers.append(site.send(f"/issuer/device?{urlencode(evil)}", {**evil, **another}))
    assert [answer.status_code for answer in answers] == [200, 400, 404, 404, 200]
    assert approved(site) == ["approved", "approved"]
    for answer in answers:
        assert "location" not in answer.headers
        assert "evil.test" not in answer.text


def test_the_host_header_does_not_appear_in_answers(site: Site) -> None:
    for path in ("/issuer/.well-known/openid-configuration", "/issuer/device"):
        assert "evil.test" not in site.http.get(path, headers={"host": "evil.test"}).text
    answer = site.http.post(
        "/issuer/device_authorization",
        data={"client_id": SDK, "scope": "organization:acme"},
        headers={"host": "evil.test", "x-forwarded-host": "evil.test"},
    )
    assert "evil.test" not in answer.text


# --- used twice, or late -----------------------------------------------------------------------------


def test_a_code_is_approved_once_and_redeemed_once(site: Site) -> None:
    site.room.enrolled()
    begun = site.begin()
    assert site.sign_in(begun["user_code"]).status_code == 200
    with site.refuses(400):
        again = site.sign_in(begun["user_code"])
    assert (again.status_code, alert(again)) == (400, WRONG)
    assert site.redeem(begun["device_code"]).status_code == 200
    with site.refuses(400, 400):
        twice = site.redeem(begun["device_code"])
        assert (twice.status_code, twice.json()["error"]) == (400, "invalid_grant")
        assert alert(site.sign_in(begun["user_code"])) == WRONG


def test_a_late_code_is_refused(site: Site) -> None:
    site.room.enrolled()
    begun = site.begin()
    site.room.clock.advance(DEVICE_S)
    with site.refuses(400, 400):
        assert alert(site.sign_in(begun["user_code"])) == WRONG
        answer = site.redeem(begun["device_code"])
    assert (answer.status_code, answer.json()["error"]) == (400, "expired_token")


def test_a_replayed_refresh_token_revokes_the_family(site: Site) -> None:
    site.room.enrolled()
    first = str(site.room.log_in().refresh_token)
    second = site.token(grant_type="refresh_token", refresh_token=first, client_id=SDK).json()["refresh_token"]
    replay = site.token(grant_type="refresh_token", refresh_token=first, client_id=SDK)
    assert (replay.status_code, replay.json()["error"]) == (400, "invalid_grant")
    with site.refuses(400):
        robbed = site.token(grant_type="refresh_token", refresh_token=second, client_id=SDK)
    assert (robbed.status_code, robbed.json()["error"]) == (400, "invalid_grant")
    with site.room.database.platform(read_only=True) as tx:
        assert tx.all(sa.select(refresh_tokens)) == []


def test_a_link_used_twice_or_late_enrols_nobody(site: Site) -> None:
    _, used = site.room.tenant("acme")
    fields = {"username": "ada", "password": PASSWORD}
    assert site.send(f"/issuer/enrol?token={used}", fields).status_code == 200
    _, late = site.room.tenant("globex")
    with site.refuses(422):
        second = site.send(f"/issuer/enrol?token={used}", {**fields, "username": "eve"})
    site.room.clock.advance(72 * 3600)
    with site.refuses(422, 422):
        third = site.send(f"/issuer/enrol?token={late}", fields)
        fourth = site.send("/issuer/enrol?token=enr_made_up", fields)
    for answer in (second, third, fourth):
        assert (answer.status_code, alert(answer)) == (422, NO_LINK)
    with site.room.database.platform(read_only=True) as tx:
        assert [row["username"] for row in tx.all(sa.select(issuer_users))] == ["ada"]


def test_an_invitation_used_twice_enrols_once(site: Site) -> None:
    path, fields = f"/issuer/enrol?token={invited(site).token}", {"username": "ben", "password": PASSWORD}
    assert site.send(path, fields).status_code == 200
    with site.refuses(422, 422):
        answers = [
            site.send(path, {**fields, "password": "another long password"}),
            site.send(path, {**fields, "username": "eve"}),
        ]
    assert {(answer.status_code, alert(answer)) for answer in answers} == {(422, NO_LINK)}
    assert people(site) == {"ada", "ben"}
    site.room.log_in("acme", "ben")


def test_an_invitation_used_late_enrols_nobody(site: Site) -> None:
    found = invited(site)
    path, fields = f"/issuer/enrol?token={found.token}", {"username": "ben", "password": PASSWORD}
    site.room.clock.advance(found.expires_at - site.room.clock.now_s())
    with site.refuses(422):
        answer = site.send(path, fields)
    assert (answer.status_code, alert(answer)) == (422, NO_LINK)
    assert people(site) == {"ada"}


def test_an_invitation_works_until_its_last_second(site: Site) -> None:
    found = invited(site)
    site.room.clock.advance(found.expires_at - site.room.clock.now_s() - 1)
    path = f"/issuer/enrol?token={found.token}"
    assert site.send(path, {"username": "ben", "password": PASSWORD}).status_code == 200
    assert people(site) == {"ada", "ben"}


def test_an_invitation_enrols_nobody_else_and_nobody_who_was_removed(site: Site) -> None:
    admin, _ = site.room.enrolled()
    made = site.room.members.invite(admin, "ben", frozenset({Role.ANALYST}))
    path, fields = f"/issuer/enrol?token={made.invitation.token}", {"username": "ben", "password": PASSWORD}
    with site.refuses(422):
        other = site.send(path, {**fields, "username": "eve"})
    assert (other.status_code, alert(other)) == (422, "this invitation is for `ben`")
    site.room.members.remove(admin, made.member.id)
    with site.refuses(422):
        removed = site.send(path, fields)
    assert (removed.status_code, alert(removed)) == (422, NO_LINK)
    assert people(site) == {"ada"}


def test_an_enrolment_link_is_no_bearer_token_and_no_refresh_token(site: Site) -> None:
    admin, _ = site.room.enrolled()
    link = site.room.members.invite(admin, "ben", frozenset({Role.ANALYST})).invitation.token
    for form in (
        {"grant_type": "refresh_token", "refresh_token": link, "client_id": SDK},
        {"grant_type": DEVICE_GRANT, "device_code": link, "client_id": SDK},
    ):
        with site.refuses(400):
            assert site.token(**form).json()["error"] == "invalid_grant"


# --- the form of requests ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/issuer/token", "/issuer/device_authorization", "/issuer/revoke"])
@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"grant_type=a&grant_type=b", FORM, 400),
        (b"grant_type", FORM, 400),
        (b"a=%ff", FORM, 400),
        (b"a=\xff", FORM, 400),
        (b"a=%zz&b", FORM, 400),
        (b"&".join(b"f%d=1" % n for n in range(21)), FORM, 400),
        (b"a=" + b"x" * 16384, FORM, 413),
        (b'{"grant_type": "client_credentials"}', "application/json", 400),
        (b"grant_type=client_credentials", "text/plain", 400),
        (b"grant_type=client_credentials", "", 400),
        (b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--b--', "multipart/form-data; boundary=b", 400),
    ],
    ids=[
        "twice",
        "no value",
        "not UTF-8",
        "raw byte",
        "broken",
        "many fields",
        "large",
        "JSON",
        "text",
        "no type",
        "multipart",
    ],
)
def test_what_is_not_a_small_plain_form_is_refused(site: Site, path: str, body: bytes, kind: str, status: int) -> None:
    with site.refuses(status):
        answer = site.http.post(path, content=body, headers={"content-type": kind})
    assert (answer.status_code, answer.json()["error"]) == (status, "invalid_request")
    assert answer.headers["cache-control"] == "no-store"


def test_a_body_without_a_declared_length_is_stopped_at_the_limit(site: Site) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b"a=" + b"x" * 1022

    with site.refuses(413):
        answer = site.http.post("/issuer/token", content=endless(), headers={"content-type": FORM})
    assert (answer.status_code, answer.json()["error"]) == (413, "invalid_request")


def test_a_page_refuses_the_same_forms_as_a_page(site: Site) -> None:
    for path in ("/issuer/device", "/issuer/enrol"):
        for body, kind, status in (
            (b"a=1&a=2", FORM, 400),
            (b"a=" + b"x" * 20_000, FORM, 413),
            (b"{}", "application/json", 400),
        ):
            with site.refuses(status):
                answer = site.http.post(path, content=body, headers={"content-type": kind, "origin": BASE})
            assert answer.status_code == status
            assert answer.headers["x-frame-options"] == "DENY"
            assert "Refused" in answer.text


@pytest.mark.parametrize(
    ("form", "error"),
    [
        ({"grant_type": ""}, "unsupported_grant_type"),
        ({"grant_type": "password", "username": "ada", "password": PASSWORD}, "unsupported_grant_type"),
        ({"grant_type": "authorization_code", "code": "x"}, "unsupported_grant_type"),
        ({"grant_type": "implicit"}, "unsupported_grant_type"),
        ({"grant_type": "client_credentials"}, "invalid_client"),
        ({"grant_type": "client_credentials", "client_id": SDK}, "invalid_client"),
        ({"grant_type": "refresh_token", "client_id": SDK}, "invalid_grant"),
        ({"grant_type": DEVICE_GRANT, "client_id": SDK}, "invalid_grant"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(sorted(value.items())),
)
def test_other_grants_and_missing_fields_are_refused(site: Site, form: dict[str, str], error: str) -> None:
    site.room.enrolled()
    status = 401 if error == "invalid_client" else 400
    with site.refuses(status):
        answer = site.token(**form)
    assert (answer.status_code, answer.json()["error"]) == (status, error)
    assert set(answer.json()) == {"error", "error_description"}


@pytest.mark.parametrize(
    ("authorization", "form", "error"),
    [
        ("Basic ???", {}, "invalid_client"),
        ("Basic /w==", {}, "invalid_client"),
        ("Basic YTpi", {"client_secret": "b"}, "invalid_request"),
        ("Basic YTpi", {"client_id": "c"}, "invalid_request"),
        ("Basic YTpi", {"client_id": "a"}, "invalid_client"),
        ("Bearer YTpi", {}, "invalid_client"),
    ],
    ids=["not base64", "not UTF-8", "two ways", "two names", "same name", "not Basic"],
)
def test_broken_or_double_client_authentication_is_refused(
    site: Site, authorization: str, form: dict[str, str], error: str
) -> None:
    status = 401 if error == "invalid_client" else 400
    with site.refuses(status):
        answer = site.http.post(
            "/issuer/token",
            data={"grant_type": "client_credentials", **form},
            headers={"authorization": authorization},
        )
    assert (answer.status_code, answer.json()["error"]) == (status, error)


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        (
            "/issuer/token",
            400,
            {"error": "unsupported_grant_type", "error_description": "this grant type is not supported"},
        ),
        (
            "/issuer/device_authorization",
            400,
            {"error": "unauthorized_client", "error_description": "this client may not log people in"},
        ),
        ("/issuer/revoke", 200, {}),
    ],
)
def test_secrets_are_not_taken_from_the_address(site: Site, path: str, status: int, said: dict[str, str]) -> None:
    admin, _ = site.room.enrolled()
    made, refresh = site.room.account(admin), str(site.room.log_in().refresh_token)
    good = {"client_id": made.service_account.client_id, "client_secret": made.client_secret}
    query = {**good, "grant_type": "client_credentials", "scope": "organization:acme", "token": refresh}
    with site.refuses(405, *([status] if said else [])):
        assert site.page(f"{path}?{urlencode(query)}").status_code == 405
        answer = site.http.post(f"{path}?{urlencode(query)}", headers={"content-type": FORM})
    assert (answer.status_code, answer.json()) == (status, said)
    # They are good: in the form's place they are taken, and what was to be revoked was not.
    assert site.token(grant_type="client_credentials", **good).status_code == 200
    assert site.token(grant_type="refresh_token", refresh_token=refresh, client_id=SDK).status_code == 200


def test_a_head_request_changes_nothing(site: Site) -> None:
    form = link(site)
    before = rows_of(site.room.database)
    for path in ("/issuer/device", f"/issuer/enrol?{urlencode(form.fields)}"):
        answer = site.http.request("HEAD", path)
        assert (answer.status_code, answer.text) == (200, "")
    assert rows_of(site.room.database) == before
    assert site.send(form.path, form.fields).status_code == 200


def test_logging_out_revokes_and_tells_nobody_what_was_known(site: Site) -> None:
    site.room.enrolled()
    token = str(site.room.log_in().refresh_token)
    for known in (token, token, "mkr_unknown", "a.b.c", ""):
        answer = site.http.post("/issuer/revoke", data={"token": known, "client_id": SDK})
        assert (answer.status_code, answer.json()) == (200, {})
    with site.refuses(400):
        answer = site.token(grant_type="refresh_token", refresh_token=token, client_id=SDK)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_grant")


def test_when_too_many_log_in_at_once_the_answer_is_503_and_no_guess_is_counted(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.room.enrolled()
    code = site.begin()["user_code"]
    monkeypatch.setattr(secrets, "_HASHING_WAIT_S", 0.0)
    moving = MOVING | {"guesses"}
    before, recorded = rows_of(site.room.database, moving=moving), len(site.room.recorder.events)
    taken = [secrets._hashing.acquire(blocking=False) for _ in range(secrets._HASHING_AT_ONCE)]
    try:
        for _ in range(11):
            answer = site.sign_in(code)
            assert (answer.status_code, alert(answer)) == (503, "too many people log in at once; try again")
    finally:
        for _ in taken:
            secrets._hashing.release()
    # Neither a guess nor a refusal: nobody was told that anything was wrong.
    assert rows_of(site.room.database, moving=moving) == before
    with site.room.database.platform(read_only=True) as tx:
        counted = {row["what"].partition(":")[0]: row["count"] for row in tx.all(sa.select(guesses))}
    assert counted.pop("device") == 1, "the login that was begun"
    assert set(counted.values()) == {0}
    site.notes.sweep(unfinished=True)
    assert site.room.recorder.events[recorded:] == []
    assert approved(site) == ["pending"]
    assert site.sign_in(code).status_code == 200
