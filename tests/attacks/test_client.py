"""A malicious or broken server against the SDK: the family *Client*. Secrets and tokens never go elsewhere."""

import base64
import json
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fakes.sdk import FakeTime, fake_client
from fakes.server import BASE, Chunks, FakePlatform, answer_json
from modelkeep._core.flows import Sync
from modelkeep.auth import ClientCredentials, DeviceCode
from modelkeep.client import Nouns
from modelkeep.errors import (
    APIError,
    ConfigurationError,
    ConnectionFailedError,
    ModelkeepError,
    ProtocolError,
    StateError,
    UntrustedServerError,
)

SECRET = "s3cret"
RESOURCE = "/.well-known/oauth-protected-resource"
DISCOVERY = "/issuer/.well-known/openid-configuration"
ISSUER = f"{BASE}/issuer"


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def platform(time: FakeTime) -> FakePlatform:
    return FakePlatform(now_s=time)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def client(platform: FakePlatform, folder: Path, time: FakeTime) -> Iterator[Nouns[Sync]]:
    with fake_client(platform, folder, time, retries=1) as client:
        yield client


def answering(path: str, value: object) -> Callable[[httpx.Request], httpx.Response | None]:
    return lambda request: answer_json(value) if request.url.path == path else None


def sent_secrets(platform: FakePlatform) -> list[str]:
    """Return the addresses that got the client's secret."""
    shown = base64.b64encode(f"app:{SECRET}".encode()).decode()
    return [
        str(request.url)
        for request in platform.requests
        if SECRET in request.content.decode("latin-1") or shown in request.headers.get("authorization", "")
    ]


def sent_tokens(platform: FakePlatform) -> list[str]:
    return [str(one.url) for one in platform.requests if one.headers.get("authorization", "").startswith("Bearer ")]


# --- discovery ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "document",
    [
        {"resource": "https://evil.test", "authorization_servers": [ISSUER]},
        {"resource": f"{BASE}/", "authorization_servers": [ISSUER]},
        {"resource": BASE.upper(), "authorization_servers": [ISSUER]},
        {"resource": [BASE], "authorization_servers": [ISSUER]},
        {"authorization_servers": [ISSUER]},
        {"resource": BASE, "authorization_servers": ["https://evil.test/issuer"]},
        {"resource": BASE, "authorization_servers": [f"{BASE}:8443/issuer"]},
        {"resource": BASE, "authorization_servers": [f"{BASE}@evil.test/issuer"]},
        {"resource": BASE, "authorization_servers": ["http://models.test/issuer"]},
        {"resource": BASE, "authorization_servers": []},
        {"resource": BASE, "authorization_servers": ISSUER},
        {"resource": BASE, "authorization_servers": [None, 7]},
    ],
)
def test_a_server_cannot_send_a_secret_elsewhere_by_discovery(
    client: Nouns[Sync], platform: FakePlatform, document: object
) -> None:
    platform.before.append(answering(RESOURCE, document))
    with pytest.raises((UntrustedServerError, ProtocolError)):
        client.whoami()
    assert sent_secrets(platform) == []


@pytest.mark.parametrize(
    "change",
    [
        {"issuer": "https://evil.test/issuer"},
        {"issuer": f"{ISSUER}/"},
        {"issuer": None},
        {"token_endpoint": "https://evil.test/token"},
        {"token_endpoint": "http://models.test/issuer/token"},
        {"token_endpoint": f"{BASE}:444/issuer/token"},
        {"token_endpoint": f"{BASE}@evil.test/token"},
        {"token_endpoint": "javascript:alert(1)"},
        {"token_endpoint": None},
    ],
)
def test_an_issuer_cannot_send_a_secret_elsewhere(
    client: Nouns[Sync], platform: FakePlatform, change: dict[str, Any]
) -> None:
    document = {"issuer": ISSUER, "token_endpoint": f"{ISSUER}/token", **change}
    platform.before.append(answering(DISCOVERY, document))
    with pytest.raises((UntrustedServerError, ProtocolError)):
        client.whoami()
    assert sent_secrets(platform) == []


def test_an_issuer_that_changes_after_pinning_is_refused(platform: FakePlatform, folder: Path, time: FakeTime) -> None:
    with fake_client(platform, folder, time) as client:
        client.whoami()
    platform.requests.clear()
    other = f"{BASE}/issuer2"
    platform.before.append(answering(RESOURCE, {"resource": BASE, "authorization_servers": [other]}))
    platform.before.append(
        answering("/issuer2/.well-known/openid-configuration", {"issuer": other, "token_endpoint": f"{other}/token"})
    )
    with fake_client(platform, folder, time) as client, pytest.raises(UntrustedServerError):
        client.whoami()
    assert sent_secrets(platform) == []


def test_an_issuer_that_the_caller_named_is_the_only_one(platform: FakePlatform, folder: Path, time: FakeTime) -> None:
    login = ClientCredentials("app", SECRET, issuer="https://id.example/realm")
    with fake_client(platform, folder, time, auth=login) as client, pytest.raises(UntrustedServerError):
        client.whoami()
    assert sent_secrets(platform) == []


def test_a_kept_token_goes_only_to_its_own_server(platform: FakePlatform, folder: Path, time: FakeTime) -> None:
    with fake_client(platform, folder, time, auth=DeviceCode(prompt=lambda _: None)) as client:
        client.whoami()
    other = FakePlatform("https://other.test", now_s=time)
    login = DeviceCode(prompt=DeviceCode.no_prompt)
    with fake_client(other, folder, time, auth=login) as client, pytest.raises(APIError) as caught:
        client.whoami()
    assert caught.value.code == "login_required"
    assert sent_tokens(other) == []


# --- redirects, plain HTTP ----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("target", ["https://evil.test/", f"{BASE}/v1/models", "//evil.test/", "http://models.test/"])
def test_redirects_are_not_followed(client: Nouns[Sync], platform: FakePlatform, status: int, target: str) -> None:
    def redirect(request: httpx.Request) -> httpx.Response | None:
        if request.url.path != "/v1/whoami":
            return None
        return httpx.Response(status, headers={"location": target})

    platform.before.append(redirect)
    with pytest.raises(ProtocolError, match="redirect"):
        client.whoami()
    assert {httpx.URL(url).host for url in sent_tokens(platform)} == {"models.test"}
    assert len(sent_tokens(platform)) == 1


def test_redirects_of_the_token_endpoint_are_not_followed(client: Nouns[Sync], platform: FakePlatform) -> None:
    def redirect(request: httpx.Request) -> httpx.Response | None:
        if request.url.path != "/issuer/token":
            return None
        return httpx.Response(307, headers={"location": "https://evil.test/token"})

    platform.before.append(redirect)
    with pytest.raises(ProtocolError):
        client.whoami()
    assert {httpx.URL(url).host for url in sent_secrets(platform)} == {"models.test"}


@pytest.mark.parametrize("url", ["http://models.test", "http://10.0.0.8", "http://127.0.0.1.evil.test"])
def test_plain_http_beyond_this_machine_is_refused_before_anything_is_sent(url: str, time: FakeTime) -> None:
    from modelkeep import Client

    platform = FakePlatform(url, now_s=time)
    with pytest.raises(ConfigurationError):
        Client(url, auth=ClientCredentials("app", SECRET), transport=platform.transport())
    assert platform.requests == []


# --- answers ------------------------------------------------------------------------------------------


def endless() -> Iterator[bytes]:
    while True:
        yield b" " * 65536


def test_an_endless_answer_is_cut_off(client: Nouns[Sync], platform: FakePlatform) -> None:
    client.whoami()

    def forever(request: httpx.Request) -> httpx.Response | None:
        if request.url.path != "/v1/whoami":
            return None
        return httpx.Response(200, headers={"content-type": "application/json"}, stream=Chunks(endless()))

    platform.before.append(forever)
    with pytest.raises(ProtocolError):
        client.whoami()


def test_an_endless_error_is_cut_off(client: Nouns[Sync], platform: FakePlatform) -> None:
    client.whoami()

    def forever(request: httpx.Request) -> httpx.Response | None:
        if request.url.path != "/v1/whoami":
            return None
        return httpx.Response(418, headers={"content-type": "application/json"}, stream=Chunks(endless()))

    platform.before.append(forever)
    with pytest.raises(ModelkeepError):
        client.whoami()


@pytest.mark.parametrize(
    "body",
    [
        b'{"kind": "tenant", "kind": "operator"}',
        b'{"kind": NaN}',
        b"[" * 100_000,
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        b"\xff\xfe",
        b"",
        b"null",
        b'{"kind": 7}',
        b"{}" + b" " * 10 + b"{}",
    ],
)
def test_json_that_is_not_strict_or_not_the_answer_is_refused(
    client: Nouns[Sync], platform: FakePlatform, body: bytes
) -> None:
    client.whoami()

    def broken(request: httpx.Request) -> httpx.Response | None:
        if request.url.path != "/v1/whoami":
            return None
        return httpx.Response(200, headers={"content-type": "application/json"}, content=body)

    platform.before.append(broken)
    with pytest.raises(ProtocolError):
        client.whoami()


@pytest.mark.parametrize("kind", ["text/html", "application/json; charset=utf-16", "application/octet-stream", ""])
def test_another_media_type_is_refused(client: Nouns[Sync], platform: FakePlatform, kind: str) -> None:
    client.whoami()

    def other(request: httpx.Request) -> httpx.Response | None:
        if request.url.path != "/v1/whoami":
            return None
        return httpx.Response(200, headers={"content-type": kind}, content=b"<html>log in</html>")

    platform.before.append(other)
    with pytest.raises(ProtocolError):
        client.whoami()


def test_a_gzip_bomb_is_not_inflated(client: Nouns[Sync], platform: FakePlatform) -> None:
    import gzip

    client.whoami()
    bomb = gzip.compress(b" " * (64 * 1024 * 1024), 9)

    def bombed(request: httpx.Request) -> httpx.Response | None:
        if request.url.path != "/v1/whoami":
            return None
        headers = {"content-type": "application/json", "content-encoding": "gzip"}
        return httpx.Response(200, headers=headers, stream=Chunks(iter([bomb])))

    platform.before.append(bombed)
    with pytest.raises(ProtocolError):
        client.whoami()


@pytest.mark.parametrize("change", ["name", "version"])
def test_an_answer_for_something_else_is_refused(client: Nouns[Sync], platform: FakePlatform, change: str) -> None:
    platform.add_model("mine", weights=b"0123456789")

    def swap(request: httpx.Request, answer: httpx.Response) -> httpx.Response:
        if request.url.path == "/v1/models/mine/versions/1":
            value = json.loads(answer.content)
            value[change] = {"name": "yours", "version": 2}[change]
            return answer_json(value)
        return answer

    platform.after.append(swap)
    with pytest.raises(ProtocolError):
        client.models.version("mine", 1)


ESCAPES = ["\x1b]0;owned\x07", "\x1b[2J", "a\rb", "a\nb", "a\x00b", "a\u202eb", "a\u2028b", "a\x9bb"]


@pytest.mark.parametrize("text", ESCAPES, ids=[repr(text) for text in ESCAPES])
def test_a_servers_words_cannot_steer_a_terminal(client: Nouns[Sync], platform: FakePlatform, text: str) -> None:
    client.whoami()

    def refuse(request: httpx.Request) -> httpx.Response | None:
        if request.url.path != "/v1/whoami":
            return None
        body = {"error": {"code": text, "message": text, "request_id": text, "details": {"reasons": [text]}}}
        return answer_json(body, status=403)

    platform.before.append(refuse)
    with pytest.raises(APIError) as caught:
        client.whoami()
    for shown in (str(caught.value), caught.value.code, caught.value.request_id, *getattr(caught.value, "reasons", ())):
        assert not any(character in shown for character in "\x1b\x07\r\n\x00\u202e\u2028\x9b")


@pytest.mark.parametrize("name", ["../../evil", "/etc/passwd", "a/b", "..", "a\x00b", "con\n", ""])
def test_a_download_does_not_choose_where_it_is_written(
    client: Nouns[Sync], platform: FakePlatform, tmp_path: Path, name: str
) -> None:
    from dataclasses import replace

    platform.add_model("mine", weights=b"0123456789")
    download = replace(client.models.download("mine"), name=name)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ConfigurationError):
        download.save(out)
    assert list(tmp_path.rglob("*.safetensors")) == []


# --- state --------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="modes")
def test_a_token_cache_that_others_may_read_is_not_used(platform: FakePlatform, folder: Path, time: FakeTime) -> None:
    with fake_client(platform, folder, time, auth=DeviceCode(prompt=lambda _: None)) as client:
        client.whoami()
    kept = [path for path in folder.iterdir() if path.suffix == ".json"]
    assert kept
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in kept)
    for path in kept:
        path.chmod(0o640)
    login = DeviceCode(prompt=DeviceCode.no_prompt)
    with fake_client(platform, folder, time, auth=login) as client, pytest.raises(StateError):
        client.whoami()


def test_a_connection_that_dies_tells_nothing_of_the_secret(client: Nouns[Sync], platform: FakePlatform) -> None:
    def die(request: httpx.Request) -> httpx.Response | None:
        raise httpx.ConnectError(f"cannot connect with {request.content!r}", request=request)

    platform.before.append(die)
    with pytest.raises(ConnectionFailedError) as caught:
        client.whoami()
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(caught.value)
