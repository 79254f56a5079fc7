"""Logging in: tokens are kept, renewed, rotated, and forgotten."""

import json
import stat
import threading
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import httpx
import pytest

from fakes.sdk import FakeTime, fake_client, fake_driver, fake_site
from fakes.server import BASE, FakePlatform, oauth_error, refusal
from modelkeep._core.oauth import Tokens
from modelkeep.auth import ClientCredentials, DeviceCode, DevicePrompt, StaticToken
from modelkeep.errors import (
    AuthenticationError,
    ConfigurationError,
    ConnectionFailedError,
    ProtocolError,
    RateLimitedError,
    StateError,
)

TOKEN_PATH = "/issuer/token"


def forms(platform: FakePlatform) -> list[dict[str, str]]:
    return [
        {key: values[0] for key, values in parse_qs(request.content.decode()).items()}
        for request in platform.sent("POST", TOKEN_PATH)
    ]


def test_client_credentials_log_in_once(platform: FakePlatform, folder: Path, time: FakeTime) -> None:
    with fake_client(platform, folder, time) as client:
        for _ in range(3):
            client.whoami()
    assert [form["grant_type"] for form in forms(platform)] == ["client_credentials"]
    assert "s3cret" not in platform.sent("POST", TOKEN_PATH)[0].content.decode()


def test_client_credentials_renew_before_the_token_is_over(
    platform: FakePlatform, folder: Path, time: FakeTime
) -> None:
    with fake_client(platform, folder, time) as client:
        client.whoami()
        time.now += 265
        client.whoami()
        assert len(forms(platform)) == 1
        time.now += 10
        client.whoami()
        assert len(forms(platform)) == 2


def test_tokens_of_applications_stay_in_memory(platform: FakePlatform, folder: Path, time: FakeTime) -> None:
    with fake_client(platform, folder, time) as client:
        client.whoami()
    assert not [path for path in folder.iterdir() if path.name.startswith("token") and path.suffix == ".json"]
    assert all(b"access-1" not in path.read_bytes() for path in folder.iterdir())


def test_a_token_refused_early_leads_to_one_new_login(platform: FakePlatform, folder: Path, time: FakeTime) -> None:
    with fake_client(platform, folder, time) as client:
        client.whoami()
        platform.tokens.clear()
        client.whoami()
    assert len(forms(platform)) == 2
    assert len(platform.sent("GET", "/v1/whoami")) == 3


def test_a_token_refused_again_is_an_error(platform: FakePlatform, folder: Path, time: FakeTime) -> None:
    platform.before.append(
        lambda request: refusal(401, "tenant_suspended", "suspended") if request.url.path == "/v1/whoami" else None
    )
    with fake_client(platform, folder, time) as client, pytest.raises(AuthenticationError) as caught:
        client.whoami()
    assert (caught.value.code, caught.value.status) == ("tenant_suspended", 401)
    assert len(platform.sent("GET", "/v1/whoami")) == 2


def test_a_wrong_secret(platform: FakePlatform, folder: Path, time: FakeTime) -> None:
    auth = ClientCredentials("app", "wrong")
    with fake_client(platform, folder, time, auth=auth) as client, pytest.raises(AuthenticationError) as caught:
        client.whoami()
    assert (caught.value.code, caught.value.message) == ("invalid_client", "the client id or secret is wrong")
    assert len(forms(platform)) == 1
    assert "wrong" not in repr(auth)


def test_too_many_logins(platform: FakePlatform, folder: Path, time: FakeTime) -> None:
    def slow(request: httpx.Request) -> httpx.Response | None:
        if request.url.path != TOKEN_PATH:
            return None
        answer = oauth_error(429, "slow_down", "too many failures")
        answer.headers["retry-after"] = "3600"
        return answer

    platform.before.append(slow)
    with fake_client(platform, folder, time) as client, pytest.raises(RateLimitedError) as caught:
        client.whoami()
    assert caught.value.retry_after_s == 3600
    assert time.waits == []


def test_threads_log_in_once(platform: FakePlatform, folder: Path, time: FakeTime) -> None:
    with fake_client(platform, folder, time) as client:
        threads = [threading.Thread(target=client.whoami) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(forms(platform)) == 1
    assert len(platform.sent("GET", "/v1/whoami")) == 8


def test_one_login_object_keeps_servers_apart(folder: Path, time: FakeTime) -> None:
    auth = ClientCredentials("app", "s3cret")
    first, second = FakePlatform(now_s=time), FakePlatform("https://other.test", now_s=time)
    second.lifetime_s = 100
    for platform in (first, second):
        with fake_client(platform, folder, time, auth=auth) as client:
            client.whoami()
    assert len(forms(first)) == len(forms(second)) == 1


@pytest.mark.parametrize("token", ["", "with space", "line\nbreak", "ünicode"])
def test_a_static_token_is_checked(platform: FakePlatform, folder: Path, time: FakeTime, token: str) -> None:
    with (
        fake_client(platform, folder, time, auth=StaticToken(token)) as client,
        pytest.raises(ConfigurationError, match="token"),
    ):
        client.whoami()
    assert platform.requests == []


def test_a_static_token_is_used_as_it_is(platform: FakePlatform, folder: Path, time: FakeTime) -> None:
    token = platform.issue(renewable=False)["access_token"]
    with fake_client(platform, folder, time, auth=StaticToken(lambda: token)) as client:
        client.whoami()
        platform.tokens.clear()
        with pytest.raises(AuthenticationError):
            client.whoami()
    assert len(platform.sent("GET", "/v1/whoami")) == 2
    assert token not in repr(StaticToken(token))


class Person:
    """Sees prompts."""

    def __init__(self) -> None:
        self.prompts: list[DevicePrompt] = []

    def __call__(self, prompt: DevicePrompt) -> None:
        self.prompts.append(prompt)


def test_a_person_logs_in_by_device_code(platform: FakePlatform, folder: Path, time: FakeTime) -> None:
    person = Person()
    platform.device_answers = ["authorization_pending", "slow_down"]
    with fake_client(platform, folder, time, auth=DeviceCode(prompt=person, organization="acme")) as client:
        client.whoami()
    (prompt,) = person.prompts
    assert (prompt.user_code, prompt.verification_uri) == ("BCDF-GHJK", f"{BASE}/issuer/device")
    assert prompt.verification_uri_complete == f"{BASE}/issuer/device?user_code=BCDF-GHJK"
    (begun,) = platform.sent("POST", "/issuer/device_authorization")
    assert parse_qs(begun.content.decode())["scope"] == ["modelkeep organization:acme"]
    assert time.waits == [1.0, 6.0]


def test_tokens_of_people_are_shared_by_processes(platform: FakePlatform, folder: Path, time: FakeTime) -> None:
    person = Person()
    for _ in range(2):
        with fake_client(platform, folder, time, auth=DeviceCode(prompt=person, organization="acme")) as client:
            client.whoami()
    assert len(person.prompts) == 1
    (kept,) = folder.glob("token-*.json")
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_people_are_kept_apart_by_organization_and_profile(
    platform: FakePlatform, folder: Path, time: FakeTime
) -> None:
    person = Person()
    for auth in (
        DeviceCode(prompt=person, organization="acme"),
        DeviceCode(prompt=person, organization="globex"),
        DeviceCode(prompt=person, organization="acme", profile="second"),
    ):
        with fake_client(platform, folder, time, auth=auth) as client:
            client.whoami()
    assert len(person.prompts) == 3


def test_refresh_tokens_rotate(platform: FakePlatform, folder: Path, time: FakeTime) -> None:
    person = Person()
    with fake_client(platform, folder, time, auth=DeviceCode(prompt=person)) as client:
        client.whoami()
        for _ in range(2):
            time.now += 280
            client.whoami()
    assert [form.get("refresh_token") for form in forms(platform)] == [None, "refresh-1", "refresh-2"]
    assert len(person.prompts) == 1
    (kept,) = folder.glob("token-*.json")
    assert json.loads(kept.read_bytes())["refresh_token"] == "refresh-3"


def test_a_revoked_family_leads_to_a_new_login(platform: FakePlatform, folder: Path, time: FakeTime) -> None:
    person = Person()
    with fake_client(platform, folder, time, auth=DeviceCode(prompt=person)) as client:
        client.whoami()
        platform.refresh_tokens.clear()
        time.now += 280
        client.whoami()
    assert len(person.prompts) == 2


def test_without_a_person_a_login_is_required(platform: FakePlatform, folder: Path, time: FakeTime) -> None:
    auth = DeviceCode(prompt=DeviceCode.no_prompt)
    with fake_client(platform, folder, time, auth=auth) as client, pytest.raises(AuthenticationError) as caught:
        client.whoami()
    assert caught.value.code == "login_required"
    assert platform.requests == []


def test_nobody_approves(platform: FakePlatform, folder: Path, time: FakeTime) -> None:
    platform.device_answers = ["authorization_pending"] * 1000
    with (
        fake_client(platform, folder, time, auth=DeviceCode(prompt=Person())) as client,
        pytest.raises(AuthenticationError) as caught,
    ):
        client.whoami()
    assert caught.value.code == "expired_token"
    assert sum(time.waits) == 600


def test_a_refused_login(platform: FakePlatform, folder: Path, time: FakeTime) -> None:
    platform.device_answers = ["access_denied"]
    with (
        fake_client(platform, folder, time, auth=DeviceCode(prompt=Person())) as client,
        pytest.raises(AuthenticationError) as caught,
    ):
        client.whoami()
    assert caught.value.code == "access_denied"


def test_a_refresh_is_not_repeated_when_in_doubt(platform: FakePlatform, folder: Path, time: FakeTime) -> None:
    with fake_client(platform, folder, time, auth=DeviceCode(prompt=Person())) as client:
        client.whoami()
        time.now += 280

        def broken(request: httpx.Request) -> httpx.Response | None:
            if request.url.path == TOKEN_PATH:
                raise httpx.ReadError("gone", request=request)
            return None

        platform.before.append(broken)
        platform.requests.clear()
        with pytest.raises(ConnectionFailedError):
            client.whoami()
    assert len(platform.sent("POST", TOKEN_PATH)) == 1


def test_logout_forgets_and_revokes(platform: FakePlatform, folder: Path, time: FakeTime) -> None:
    auth = DeviceCode(prompt=Person())
    with fake_client(platform, folder, time, auth=auth) as client:
        client.whoami()
    driver, site = fake_driver(platform.transport(), time), fake_site(BASE, folder, time)
    assert driver.run(auth.logout(site)) is True
    assert platform.revoked == ["refresh-1"]
    assert not list(folder.glob("token-*.json"))
    assert driver.run(auth.logout(site)) is False
    driver.close()


def test_a_kept_token_that_others_may_read_is_refused(platform: FakePlatform, folder: Path, time: FakeTime) -> None:
    auth = DeviceCode(prompt=Person())
    with fake_client(platform, folder, time, auth=auth) as client:
        client.whoami()
    (kept,) = folder.glob("token-*.json")
    kept.chmod(0o640)
    with (
        fake_client(platform, folder, time, auth=DeviceCode(prompt=Person())) as client,
        pytest.raises(StateError, match="others may read"),
    ):
        client.whoami()


@pytest.mark.parametrize(
    "change",
    [
        {"access_token": "with space"},
        {"access_token": "x" * 20000},
        {"access_token": None},
        {"token_type": "mac"},
        {"token_type": None},
        {"refresh_token": "bad\n"},
    ],
    ids=["space", "long", "none", "mac", "untyped", "refresh"],
)
def test_a_token_that_cannot_be_is_refused(
    platform: FakePlatform, folder: Path, time: FakeTime, change: dict[str, Any]
) -> None:
    def bad(request: httpx.Request, answer: httpx.Response) -> httpx.Response:
        if request.url.path != TOKEN_PATH:
            return answer
        return httpx.Response(
            200,
            content=json.dumps({**json.loads(answer.content), **change}).encode(),
            headers={"content-type": "application/json"},
        )

    platform.after.append(bad)
    with fake_client(platform, folder, time) as client, pytest.raises(ProtocolError):
        client.whoami()


@pytest.mark.parametrize(
    ("lifetime_s", "left_s", "fresh"),
    [(300, 31, True), (300, 30, False), (60, 7, True), (60, 6, False), (300, -1, False)],
)
def test_tokens_are_renewed_ahead_of_time(lifetime_s: float, left_s: float, fresh: bool) -> None:
    tokens = Tokens(access_token="a", refresh_token=None, expires_at=1000.0, lifetime_s=lifetime_s)
    assert tokens.fresh(1000.0 - left_s) is fresh


def test_the_default_prompt_prints_to_stderr(
    platform: FakePlatform, folder: Path, time: FakeTime, capsys: pytest.CaptureFixture[str]
) -> None:
    with fake_client(platform, folder, time, auth=DeviceCode()) as client:
        client.whoami()
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == f"To log in, open {BASE}/issuer/device?user_code=BCDF-GHJK and enter the code BCDF-GHJK\n"
