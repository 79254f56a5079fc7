"""Nothing the platform fetches can be pointed anywhere by a tenant: it fetches nothing. The family *Outbound*.

The sources have no client. And a real server, whose process and workers note every connection that they ask for, is
played a whole story full of addresses at which a listener waits: nothing is noted, and nobody comes.
"""

import ast
import contextlib
import json
import os
import socket
import subprocess
import sys
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from docs.generate import tree_of
from modelkeep.errors import APIError
from modelkeep_platform.http.routing import Endpoint
from services import watched
from services.evidence import Entry, Evidence
from services.house import (
    GRAPH,
    ROWS,
    SCHEMA,
    WEIGHTS,
    House,
    Installation,
    ServerProcess,
    Tenant,
    bare,
    job,
    join,
    token_of,
)

SOURCES = Path(__file__).resolve().parents[2] / "platform" / "src" / "modelkeep_platform"
CLIENTS = {"httpx", "requests", "aiohttp", "urllib3", "http.client", "urllib.request", "ftplib", "smtplib", "telnetlib"}
REASONS = {
    "app/doctor/answering.py": "the operator's own command asks the operator's own `base_url`",
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(Path(tmp_path_factory.mktemp("outbound")))
    yield house
    house.close()


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return found


def test_no_part_of_the_server_has_a_client() -> None:
    using = {
        str(path.relative_to(SOURCES))
        for path in SOURCES.rglob("*.py")
        if any(name == one or name.startswith(f"{one}.") for name in imports(path) for one in CLIENTS)
    }
    assert using == set(REASONS)


SENDS = {
    *("connect", "connect_ex", "sock_connect", "create_connection", "open_connection"),
    *("sendto", "sock_sendto", "sendmsg", "create_datagram_endpoint", "start_tls", "open_unix_connection"),
    *("create_unix_connection", "socketpair", "getaddrinfo", "gethostbyname"),
}
REACHES = {
    "app/backup/gathering.py": {"sqlite3.connect"},
    "app/backup/restoring.py": {"sqlite3.connect"},
    "app/backup/writing.py": {"sqlite3.connect"},
    "app/doctor/contents.py": {"sqlite3.connect"},
    "storage/database.py": {"self._epochs.connect", "self.engine.connect"},
    "storage/migrate.py": {"database.engine.connect"},
    "workers/channel_async.py": {"loop.create_connection"},
    "workers/process.py": {"socket.socketpair"},
}
"""Every place that connects: to a database, which is a file, or to a child over a pair of sockets."""


def sends(path: Path) -> set[str]:
    """Return what a source calls that could reach out, as it is written there."""
    return {
        ast.unparse(node)
        for node in ast.walk(tree_of(path))
        if (isinstance(node, ast.Attribute) and node.attr in SENDS) or (isinstance(node, ast.Name) and node.id in SENDS)
    }


def test_sockets_are_opened_to_listen_or_to_a_child_only() -> None:
    found = {str(path.relative_to(SOURCES)): sends(path) for path in SOURCES.rglob("*.py")}
    assert {path: names for path, names in found.items() if names} == REACHES
    called = tree_of(SOURCES / "workers" / "channel_async.py")
    for node in ast.walk(called):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "loop.create_connection":
            assert {word.arg for word in node.keywords} == {"sock"}
            assert len(node.args) == 1, "an address beside the child's socket"


@pytest.mark.parametrize(
    "url", ["http://169.254.169.254/latest/meta-data", "file:///etc/passwd", "http://127.0.0.1:22", "gopher://x"]
)
def test_an_address_in_a_body_is_only_text(house: House, url: str) -> None:
    evidence = Evidence(house)
    with house.http(house.acme.admin) as http, evidence.nothing_changes():
        body = {"text": f'@id("{url}") permit(principal, action, resource);'}
        assert http.post("/v1/policies/check", json=body).status_code in {200, 422}
        for name in ("jku", "x5u", "url", "webhook", "callback"):
            answer = http.post("/v1/members", json={"username": "x", "roles": ["analyst"], name: url})
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_body")
            facts = {"reason": "invalid_body", "route": "POST /v1/members"}
            assert evidence.entries(answer.headers["x-request-id"]) == [Entry("acme", "member:invite", "denied", facts)]


def test_a_token_that_names_its_own_keys_is_a_strangers(house: House) -> None:
    evidence = Evidence(house)
    counted = evidence.strangers()
    with listening() as canary, evidence.nothing_changes():
        for name in ("jku", "x5u", "iss"):
            answer = httpx.get(f"{house.url}/v1/whoami", headers=pointing(house.token(house.acme.admin), name, canary))
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "token_invalid")
            assert evidence.entries(answer.headers["x-request-id"]) == []
        assert not came(canary)
    assert evidence.strangers() - counted == 3


def test_no_route_takes_an_address(house: House) -> None:
    endpoints: list[Endpoint] = list(house.server.platform.edge.endpoints)
    for endpoint in endpoints:
        names = set(getattr(endpoint.body, "__struct_fields__", ())) | set(endpoint.query)
        assert not {name for name in names if "url" in name or "uri" in name or "host" in name}, endpoint.path


# --- a whole story ------------------------------------------------------------------------------------

WATCHED = str(Path(watched.__file__))


@contextlib.contextmanager
def listening() -> Iterator[socket.socket]:
    """Listen where the platform is sent to."""
    with socket.create_server(("127.0.0.1", 0)) as canary:
        canary.setblocking(False)
        yield canary


def came(canary: socket.socket) -> bool:
    """Return whether somebody connected."""
    with contextlib.suppress(BlockingIOError):
        canary.accept()[0].close()
        return True
    return False


def address(canary: socket.socket) -> str:
    return f"http://127.0.0.1:{canary.getsockname()[1]}/x"


def pointing(token: str, name: str, canary: socket.socket) -> dict[str, str]:
    """Return headers with a token whose header or body names an address."""
    parts = token.split(".")
    at = 1 if name == "iss" else 0
    padded = parts[at] + "=" * (-len(parts[at]) % 4)
    changed = json.loads(urlsafe_b64decode(padded)) | {name: address(canary)}
    parts[at] = urlsafe_b64encode(json.dumps(changed).encode()).rstrip(b"=").decode()
    return {"authorization": "Bearer " + ".".join(parts)}


@dataclass(slots=True)
class Noted:
    """A pipe in which watched processes note what they ask of the network."""

    path: Path
    descriptor: int = field(init=False)

    def __post_init__(self) -> None:
        os.mkfifo(self.path, 0o600)
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_NONBLOCK)

    def read(self) -> list[list[str]]:
        """Return what was noted since: module, event and address."""
        read = b""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.descriptor, 1 << 16):
                read += data
        return [json.loads(line) for line in read.splitlines()]


@pytest.fixture
def noted(tmp_path: Path) -> Iterator[Noted]:
    noted = Noted(tmp_path / "noted")
    yield noted
    os.close(noted.descriptor)


def sent_away(http: httpx.Client, url: str) -> list[int]:
    """Put an address wherever a tenant's words go; return the statuses."""
    hostile = {"x-forwarded-host": url, "referer": url, "origin": url, "forwarded": f"host={url}", "link": f"<{url}>"}
    asked: list[tuple[str, str, Any]] = [
        (
            "POST",
            "/v1/models/m/versions",
            {"graph": {**GRAPH, "external": url}, "weights_bytes": 1, "weights_url": url},
        ),
        ("POST", "/v1/jobs", job(dataset=url)),
        ("POST", "/v1/jobs", job(model={"name": url})),
        ("POST", "/v1/jobs", job(into=url)),
        ("POST", "/v1/datasets", {"name": "d", "format": url, "schema": {"$ref": url}, "url": url}),
        ("POST", "/v1/members", {"username": url, "roles": [url]}),
        ("POST", "/v1/service-accounts", {"name": "hook", "roles": ["auditor"], "jwks_uri": url}),
        ("POST", "/v1/grants", {"kind": "model", "name": url, "grantee": url, "actions": [url]}),
        (
            "POST",
            "/v1/policies",
            {"text": f'@doc("{url}") permit(principal, action, resource) when {{ "{url}" == "" }};'},
        ),
        (
            "POST",
            "/v2/models/model/infer",
            {"id": url, "inputs": [{"name": url, "datatype": url, "shape": [1], "data": [url]}]},
        ),
        ("POST", "/v1/enrolments", {"token": url, "username": url, "password": url}),
        ("GET", f"/v1/models?cursor={url}", None),
    ]
    answers = [http.request(method, path, json=body, headers=hostile) for method, path, body in asked]
    forms = ({"grant_type": "client_credentials", "resource": url, "scope": url}, {"client_assertion": url})
    answers += [http.post("/issuer/token", data=form | {"redirect_uri": url, "request_uri": url}) for form in forms]
    return [answer.status_code for answer in answers]


REFUSED = [400, 404, 404, 422, 400, 422, 400, 422, 201, 422, 422, 400, 401, 400, *[401] * 3]
"""What is answered to all of it: an address within a policy is a text like any other."""


def work(tenant: Tenant, url: str) -> None:
    """Upload, train and predict as one should, with an address in each text."""
    app = tenant.clients["developer"]
    app.models.upload("model", graph=GRAPH, weights=WEIGHTS, description=url)
    public = {"visibility": "public", "reason": url}
    app.datasets.upload_csv("open", ROWS, schema=SCHEMA, privacy=public, description=url)
    done = app.jobs.wait(app.jobs.create(job(dataset="open", privacy=None, steps=1)).id, timeout_s=120)
    assert done.state == "succeeded"
    assert app.predict("model", [[1.0, 1.0]]) == [[3.5, 6.5]]
    tenant.admin.policies.publish(f"// {url}")
    tenant.admin.audit.verify()


@pytest.mark.e2e
def test_a_whole_story_full_of_addresses_makes_no_connection(tmp_path: Path, noted: Noted) -> None:
    folder = tmp_path / "house"
    folder.mkdir()
    made = Installation(folder).init()
    program = (WATCHED, str(noted.path), "modelkeep_platform")
    server = ServerProcess(made, program=program).ready()
    try:
        with listening() as canary:
            acme, globex = join(made, "acme"), join(made, "globex")
            work(acme, address(canary))
            acme.admin.grants.create("model", "model", grantee="globex", actions=["model:predict"])
            assert globex.admin.predict("acme~model", [[1.0, 1.0]]) == [[3.5, 6.5]]
            with bare(acme.admin, made.url) as http:
                statuses = sent_away(http, address(canary))
                for name in ("jku", "x5u", "iss"):
                    headers = pointing(token_of(acme.admin), name, canary)
                    statuses.append(http.get("/v1/whoami", headers=headers).status_code)
            assert statuses == REFUSED
            with pytest.raises(APIError):
                acme.admin.models.get(address(canary))
            assert noted.read() == []
            assert not came(canary)
        # The watch sees what there is: the operator's own command asks the operator's own address.
        doctor = [sys.executable, *program, "doctor", "--data", str(made.data)]
        subprocess.run(doctor, capture_output=True, check=False, timeout=60)
        port = made.url.rpartition(":")[2]
        assert [event for _, event, where in noted.read() if event == "socket.connect" and port in where]
        for tenant in (acme, globex):
            for client in (tenant.admin, *tenant.clients.values()):
                client.close()
    finally:
        server.kill()
