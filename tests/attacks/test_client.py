"""A malicious or broken server against the SDK: the family *Client*. Secrets and tokens never go elsewhere."""

import base64
import hashlib
import json
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from fakes.sdk import FakeTime, fake_client
from fakes.server import BASE, Chunks, FakePlatform, answer_json, new_job, new_version
from modelkeep._core.flows import Operation, Sync
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


class Weights:
    """Sends weights piece by piece, and remembers how much was taken."""

    def __init__(self, platform: FakePlatform, pieces: Iterator[bytes], **headers: str) -> None:
        self.asked, self.taken = 0, 0
        self._pieces, self._headers = pieces, {"content-type": "application/octet-stream", **headers}
        platform.before.append(self._answer)

    def _answer(self, request: httpx.Request) -> httpx.Response | None:
        if not request.url.path.endswith("/weights"):
            return None
        self.asked += 1
        return httpx.Response(200, headers=self._headers, stream=Chunks(self._counted()))

    def _counted(self) -> Iterator[bytes]:
        for piece in self._pieces:
            self.taken += len(piece)
            yield piece


PIECE = 65_536
LYING: dict[str, tuple[Callable[[], Iterator[bytes]], dict[str, str], int]] = {
    "endless": (endless, {}, 4 * PIECE),
    "a byte more": (lambda: iter([bytes(PIECE)] * 3 + [b"x"] + [bytes(PIECE)] * 9), {}, 3 * PIECE + 1),
    "declared longer": (endless, {"content-length": str(3 * PIECE + 1)}, 0),
    "declared beyond any number": (endless, {"content-length": "9" * 5000}, 0),
    "a byte less": (lambda: iter([bytes(3 * PIECE - 1)]), {}, 3 * PIECE - 1),
    "other bytes": (lambda: iter([b"x" * 3 * PIECE]), {}, 3 * PIECE),
    "compressed": (endless, {"content-encoding": "gzip"}, 0),
}


@pytest.mark.parametrize(("pieces", "headers", "taken"), LYING.values(), ids=LYING)
def test_weights_are_as_long_as_the_version_says_or_refused(
    client: Nouns[Sync],
    platform: FakePlatform,
    pieces: Callable[[], Iterator[bytes]],
    headers: dict[str, str],
    taken: int,
) -> None:
    """No more is taken than was said, and the piece that is too much; and nothing is asked for again."""
    platform.add_model("mine", weights=bytes(3 * PIECE))
    assert len(client.models.download("mine").weights) == 3 * PIECE
    sent = Weights(platform, pieces(), **headers)
    with pytest.raises(ProtocolError):
        client.models.download("mine")
    assert (sent.asked, sent.taken) == (1, taken)


@pytest.mark.parametrize("size", [-1, 0, 32 * 2**30 + 1, 2**62])
def test_a_version_larger_than_any_that_can_be_uploaded_is_not_asked_for(
    client: Nouns[Sync], platform: FakePlatform, size: int
) -> None:
    """Who says how long the weights are is who sends them: without a bound of our own they could fill the memory."""
    platform.add_model("mine", weights=b"0123456789")
    platform.models["mine"]["versions"][1]["shown"]["weights_bytes"] = size
    sent = Weights(platform, iter([bytes(PIECE)] * 64))
    with pytest.raises(ProtocolError, match="bytes"):
        client.models.download("mine")
    assert (sent.asked, sent.taken) == (0, 0)


class Named(NamedTuple):
    """A method that names an object.

    Args:
        call: the method with its arguments.
        path: of the call whose answer says of which object it speaks.
        says: where in the answer it does, of which each is changed.
        answer: an honest one; None for the fake platform's own.
        first: what is there before the call.
    """

    call: Callable[[Nouns[Sync]], object]
    path: str
    says: tuple[str, ...]
    answer: object = None
    first: Callable[[FakePlatform], None] = lambda _platform: None


MINE: dict[str, object] = {"name": "mine", "id": "m-1", "description": "", "created_at": 1, "owner": "acme"}
MINE |= {"aliases": {"production": 1}, "latest_version": 1}
VERSION = new_version("mine", 1, b"{}", b"0123456789")
DATASET: dict[str, object] = {
    "id": "d-1",
    "name": "rows",
    "description": "",
    "format": "csv",
    "schema": {},
    "privacy": {},
}
DATASET |= {"state": "ready", "created_at": 1}
BUDGET = {
    "dataset": "rows",
    "epsilon": 1.0,
    "delta": 1e-5,
    "epsilon_spent": 0.0,
    "epsilon_reserved": 0.0,
    "charges": [],
}
GRANT: dict[str, object] = {"id": "g-1", "kind": "model", "name": "mine", "object_id": "m-1", "grantee": "globex"}
GRANT |= {"actions": ["model:predict"], "created_at": 1, "expires_at": None}
POLICY = {"version": 2, "state": "active", "created_at": 1, "created_by": "p-1", "sha256": "0", "text": ""}
MEMBER = {"id": "u-1", "name": "ana", "roles": ["auditor"], "state": "active", "created_at": 1}
ACCOUNT = {"id": "sa-1", "name": "bot", "roles": ["developer"], "client_id": "c", "created_at": 1}
SECRETED = {"service_account": ACCOUNT, "client_secret": "z"}
TENANT = {"id": "t-1", "slug": "acme", "name": "Acme", "state": "active", "created_at": 1}
LINK = {"token": "k", "url": "https://models.test/e#k", "expires_at": 1}
UPLOAD = {"id": "up-1", "kind": "model", "object_id": "m-1", "version": 1, "size_bytes": 4, "part_bytes": 4, "parts": 1}
UPLOAD |= {"sha256": hashlib.sha256(b"data").hexdigest(), "received": [], "state": "open", "expires_at": 9}
ENTRY = {"id": "e-1", "index": 0, "time": 1, "action": "model:read", "outcome": "done", "actor_tenant": "t-1"}
ENTRY |= {"actor_kind": "user", "principal": "p-1", "name": "ana", "kind": "model", "object_id": "m-1"}
ENTRY |= {"request_id": "r-1", "policies": [], "facts": {}, "salt": "", "entry": "", "leaf_hash": ""}
SPEC = {"dataset": "rows", "into": "tumour"}
CSV: dict[str, Any] = {"schema": {}, "privacy": {}}
COMPLETE = "/v1/uploads/up-1/complete"
NAMES_NOTHING = "names nothing that exists"
NO_ANSWER = "its answer holds nothing"
SPEAKS_OF_NOTHING = "its answer does not say of what it speaks"


def begin_model(platform: FakePlatform) -> None:
    platform._new_version("mine", {"graph": {}, "weights_bytes": 4, "weights_sha256": UPLOAD["sha256"]})


def begin_dataset(platform: FakePlatform) -> None:
    platform._new_dataset({**DATASET, "size_bytes": 4, "sha256": UPLOAD["sha256"]})


METHODS: dict[str, Named | str] = {
    "client.login": NAMES_NOTHING,
    "client.logout": NAMES_NOTHING,
    "client.whoami": NAMES_NOTHING,
    "client.tenant": NAMES_NOTHING,
    "client.predict": Named(
        lambda c: c.predict("mine", [1.0, 2.0, 3.0], version=1),
        "/v2/models/mine/versions/1/infer",
        ("id", "model_name", "model_version"),
    ),
    "models.upload": Named(
        lambda c: c.models.upload("mine", graph={}, weights=b"0123456789"), COMPLETE, ("name", "weights_sha256")
    ),
    "models.list": NAMES_NOTHING,
    "models.get": Named(lambda c: c.models.get("acme~mine"), "/v1/models/acme~mine", ("name",), MINE),
    "models.versions": Named(
        lambda c: c.models.versions("mine"), "/v1/models/mine/versions", ("items.0.name",), {"items": [VERSION]}
    ),
    "models.version": Named(
        lambda c: [c.models.version("mine", 1), c.models.version("mine", "1")],
        "/v1/models/mine/versions/1",
        ("name", "version"),
    ),
    "models.set_alias": Named(
        lambda c: c.models.set_alias("mine", "production", version=1),
        "/v1/models/mine/aliases/production",
        ("name",),
        MINE,
    ),
    "models.delete_alias": NO_ANSWER,
    "models.delete": NO_ANSWER,
    "models.download": Named(
        lambda c: c.models.download("mine", 1), "/v1/models/mine/versions/1", ("name", "version", "weights_sha256")
    ),
    "datasets.upload_csv": Named(lambda c: c.datasets.upload_csv("rows", b"a", **CSV), COMPLETE, ("name",)),
    "datasets.upload_arrays": Named(
        lambda c: c.datasets.upload_arrays("rows", {"features": [[1.0]]}, **CSV), COMPLETE, ("name",)
    ),
    "datasets.upload": Named(lambda c: c.datasets.upload("rows", b"a", format="csv", **CSV), COMPLETE, ("name",)),
    "datasets.list": NAMES_NOTHING,
    "datasets.get": Named(lambda c: c.datasets.get("rows"), "/v1/datasets/rows", ("name",), DATASET),
    "datasets.delete": NO_ANSWER,
    "uploads.get": Named(lambda c: c.uploads.get("up-1"), "/v1/uploads/up-1", ("id",), UPLOAD),
    "uploads.resume": Named(
        lambda c: c.uploads.resume("up-1", b"data"),
        COMPLETE,
        ("model_id", "version", "weights_sha256"),
        first=begin_model,
    ),
    "uploads.resume of a dataset": Named(
        lambda c: c.uploads.resume("up-1", b"data"), COMPLETE, ("id",), first=begin_dataset
    ),
    "uploads.abort": NO_ANSWER,
    "jobs.plan": SPEAKS_OF_NOTHING,
    "jobs.create": Named(lambda c: c.jobs.create(SPEC), "/v1/jobs", ("dataset", "into"), new_job("queued")),
    "jobs.list": NAMES_NOTHING,
    "jobs.get": Named(lambda c: c.jobs.get("j-1"), "/v1/jobs/j-1", ("id",), new_job("queued")),
    "jobs.wait": Named(lambda c: c.jobs.wait("j-1"), "/v1/jobs/j-1", ("id",), new_job("succeeded")),
    "jobs.cancel": Named(lambda c: c.jobs.cancel("j-1"), "/v1/jobs/j-1/cancel", ("id",), new_job("cancelled")),
    "jobs.logs": SPEAKS_OF_NOTHING,
    "budgets.get": Named(lambda c: c.budgets.get("acme~rows"), "/v1/budgets/acme~rows", ("dataset",), BUDGET),
    "budgets.list": NAMES_NOTHING,
    "grants.create": Named(
        lambda c: c.grants.create("model", "mine", grantee="globex", actions=["model:predict"]),
        "/v1/grants",
        ("kind", "name", "grantee"),
        GRANT,
    ),
    "grants.list": NAMES_NOTHING,
    "grants.revoke": NO_ANSWER,
    "policies.publish": NAMES_NOTHING,
    "policies.check": NAMES_NOTHING,
    "policies.list": NAMES_NOTHING,
    "policies.get": Named(lambda c: c.policies.get(2), "/v1/policies/2", ("version",), POLICY),
    "policies.activate": Named(lambda c: c.policies.activate(2), "/v1/policies/2/activate", ("version",), POLICY),
    "members.list": NAMES_NOTHING,
    "members.invite": Named(
        lambda c: c.members.invite("ana", roles=["auditor"]),
        "/v1/members",
        ("member.name",),
        {"member": MEMBER, "invitation": LINK},
    ),
    "members.update": Named(lambda c: c.members.update("u-1", roles=["auditor"]), "/v1/members/u-1", ("id",), MEMBER),
    "members.remove": NO_ANSWER,
    "service_accounts.list": NAMES_NOTHING,
    "service_accounts.create": Named(
        lambda c: c.service_accounts.create("bot", roles=["developer"]),
        "/v1/service-accounts",
        ("service_account.name",),
        SECRETED,
    ),
    "service_accounts.rotate": Named(
        lambda c: c.service_accounts.rotate("sa-1"),
        "/v1/service-accounts/sa-1/rotate",
        ("service_account.id",),
        SECRETED,
    ),
    "service_accounts.delete": NO_ANSWER,
    "tenants.create": Named(
        lambda c: c.tenants.create("acme", name="Acme"),
        "/v1/tenants",
        ("tenant.slug",),
        {"tenant": TENANT, "enrolment": LINK},
    ),
    "tenants.list": NAMES_NOTHING,
    "tenants.get": Named(lambda c: c.tenants.get("acme"), "/v1/tenants/acme", ("slug",), {**TENANT, "limits": {}}),
    "tenants.set_limits": Named(
        lambda c: c.tenants.set_limits("acme", {}), "/v1/tenants/acme/limits", ("slug",), {**TENANT, "limits": {}}
    ),
    "tenants.suspend": Named(lambda c: c.tenants.suspend("acme"), "/v1/tenants/acme/suspend", ("slug",), TENANT),
    "tenants.resume": Named(lambda c: c.tenants.resume("acme"), "/v1/tenants/acme/resume", ("slug",), TENANT),
    "tenants.new_enrolment_link": SPEAKS_OF_NOTHING,
    "issuer.rotate_key": NAMES_NOTHING,
    "audit.entries": Named(
        lambda c: c.audit.entries(request_id="r-1"),
        "/v1/audit/entries",
        ("items.0.request_id",),
        {"items": [ENTRY]},
    ),
    "audit.verify": NAMES_NOTHING,
    "audit.verify_entry": "proves what it is given: tests/attacks/test_audit.py",
    "audit.wait_for": Named(
        lambda c: c.audit.wait_for("r-1"), "/v1/audit/entries", ("items.0.request_id",), {"items": [ENTRY]}
    ),
}
NAMED = {name: row for name, row in METHODS.items() if isinstance(row, Named)}


def operations(client: Nouns[Sync]) -> set[str]:
    nouns = {"client": client, **{name: noun for name, noun in vars(client).items() if not name.startswith("_")}}
    return {
        f"{noun}.{name}"
        for noun, value in nouns.items()
        for one in type(value).__mro__
        for name, method in vars(one).items()
        if isinstance(method, Operation)
    }


def of_another(value: Any, where: str) -> Any:
    """Return an answer that says something else at `where`."""
    first, _, rest = where.partition(".")
    key: Any = int(first) if first.isdigit() else first
    changed = list(value) if isinstance(value, list) else dict(value)
    if rest:
        changed[key] = of_another(value[key], rest)
    else:
        changed[key] = value[key] + 1 if isinstance(value[key], int) else f"{value[key]}9"
    return changed


def answer_to(platform: FakePlatform, row: Named, where: str | None) -> None:
    """Have the row's path answered honestly, or with something else at `where`."""

    def given(value: object) -> httpx.Response:
        return answer_json(value if where is None else of_another(value, where))

    def instead(request: httpx.Request) -> httpx.Response | None:
        return given(row.answer) if request.url.path == row.path and row.answer is not None else None

    def change(request: httpx.Request, answer: httpx.Response) -> httpx.Response:
        return given(json.loads(answer.content)) if request.url.path == row.path else answer

    platform.add_model("mine", weights=b"0123456789")
    row.first(platform)
    platform.before.append(instead)
    platform.after.append(change)


def test_every_method_has_its_row(client: Nouns[Sync]) -> None:
    assert operations(client) == {name.partition(" ")[0] for name in METHODS}


@pytest.mark.parametrize("name", NAMED)
def test_an_answer_for_what_was_asked_is_taken(client: Nouns[Sync], platform: FakePlatform, name: str) -> None:
    answer_to(platform, NAMED[name], None)
    NAMED[name].call(client)


@pytest.mark.parametrize(("name", "where"), [(name, where) for name, row in NAMED.items() for where in row.says])
def test_an_answer_for_something_else_is_refused(
    client: Nouns[Sync], platform: FakePlatform, name: str, where: str
) -> None:
    answer_to(platform, NAMED[name], where)
    with pytest.raises(ProtocolError):
        NAMED[name].call(client)


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
