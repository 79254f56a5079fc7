"""What a server writes of itself: one JSON object a line, each request once, and nothing of what was in it.

A scenario full of marks (names, rows, weights, inputs, policies, queries, tokens, passwords) is played against a
real server at its most talkative, refusals and faults included. No mark may be in its log, nor in its metrics.
"""

import base64
import hashlib
import json
import os
import re
import secrets
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

import modelkeep
from fakes.graphs import document, encoded, node, weights_of
from modelkeep import Client, ClientCredentials, DeviceCode, ModelkeepError
from modelkeep._core import safetensors
from modelkeep_platform.models.graph import parse
from modelkeep_platform.telemetry.logs import FIELDS
from services.house import (
    GRAPH,
    PASSWORD,
    PRIVATE,
    SCHEMA,
    Installation,
    ServerProcess,
    approve,
    free_port,
    job,
    token_of,
    wait_until,
)
from services.processes import children

pytestmark = pytest.mark.e2e

MARK = f"mark{secrets.token_hex(6)}"
WEIGHT, ROW, INPUT = 0.8437219265, 0.7261534472, 0.6138527194
POLICY = f"// {MARK}-policy"
LARGE = document([node("linear", {"in_features": 1500, "out_features": 1500}, "x0")], [(-1, 1500)], (-1, 1500))
"""A model whose weights are more than one part."""
HEAD = frozenset({"time", "level", "logger", "event"})


@dataclass(slots=True)
class Played:
    """What was played, what must not show, and what the server said."""

    log: Path
    metrics: str
    secrets: dict[str, str] = field(default_factory=dict)
    answers: list[httpx.Response] = field(default_factory=list)
    tenant: str = ""

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text(encoding="ascii").splitlines()]


class Scenario:
    """Plays it."""

    def __init__(self, folder: Path) -> None:
        self.made = Installation(folder).init()
        self.port = free_port()
        self.server = ServerProcess(
            self.made,
            env={"MODELKEEP_PLATFORM_LOG_LEVEL": "debug", "MODELKEEP_PLATFORM_METRICS_PORT": str(self.port)},
        ).ready()
        self.played = Played(log=self.server.log, metrics="")
        self.hidden = self.played.secrets
        self.hidden |= {
            "mark": MARK,
            "password": PASSWORD,
            "operator secret": self.made.operator_secret,
            "weight": str(WEIGHT),
            "row": str(ROW),
            "input": str(INPUT),
        }

    def play(self) -> Played:
        admin, app = self.people()
        self.work(app)
        self.refusals()
        self.faults()
        for client in (admin, app):
            client.close()
        self.played.metrics = httpx.get(f"http://127.0.0.1:{self.port}/metrics", timeout=10).text
        assert self.server.stop() == 0
        return self.played

    def people(self) -> tuple[Client, Client]:
        with self.made.operator() as operator:
            link = operator.tenants.create("acme", name=f"{MARK}-organisation").enrolment
        username = f"{MARK}-admin"
        self.hidden["enrolment"] = link.token
        modelkeep.enrol(self.made.url, link.token, username=username, password=PASSWORD)
        prompts: list[str] = []

        def prompt(asked: Any) -> None:
            prompts.append(asked.user_code)
            approve(asked, username)

        admin = self.made.client(DeviceCode(prompt=prompt, organization="acme"), "admin")
        account = admin.service_accounts.create(f"{MARK}-app", roles=["developer"])
        admin.members.invite(f"{MARK}-person", roles=["auditor"])
        admin.policies.publish(POLICY)
        credentials = (account.service_account.client_id, account.client_secret)
        app = self.made.client(ClientCredentials(*credentials), "app")
        tenant = app.whoami().tenant
        assert tenant is not None
        self.played.tenant = tenant.id
        self.hidden |= {"user code": prompts[0], "client secret": account.client_secret}
        for name, client in (("admin token", admin), ("app token", app)):
            self.hidden[name] = token_of(client)
        return admin, app

    def work(self, app: Client) -> None:
        weights = safetensors.write(
            {"w": [[WEIGHT, 2.0], [3.0, 4.0]], "b": [0.5, -0.5]}, dtypes={"w": "float32", "b": "float32"}
        )
        self.hidden["weights"] = base64.b64encode(weights[-24:]).decode()
        app.models.upload(f"{MARK}-model", graph=GRAPH, weights=weights, description=f"{MARK}-description")
        app.models.upload(f"{MARK}-large", graph=LARGE, weights=weights_of(parse(encoded(LARGE))))
        app.models.set_alias(f"{MARK}-model", f"{MARK}-alias", version=1)
        rows = b"a,b,kind\n" + f"{ROW},{ROW},yes\n".encode() * 64
        app.datasets.upload_csv("rows", rows, schema=SCHEMA, privacy=PRIVATE)
        app.predict(f"{MARK}-model", {"x": [[INPUT, INPUT]]})
        with self.http() as http:
            started = http.post("/v1/jobs", json=job(into=f"{MARK}-trained"))
        assert app.jobs.wait(started.json()["id"], timeout_s=120, check=False).state == "succeeded"

    def http(self, **headers: str) -> httpx.Client:
        headers |= {"authorization": f"Bearer {self.hidden['app token']}"}
        return httpx.Client(base_url=self.made.url, headers=headers, timeout=30)

    def refusals(self) -> None:
        bad = f"a,b,kind\n{MARK},0,yes\n"
        with self.http(referer=f"{MARK}-referer") as http:
            for method, path, options in (
                ("GET", f"/v1/models?limit=1&cursor={MARK}", {}),
                ("GET", f"/v1/models?{MARK}=1", {}),
                ("GET", f"/v1/{MARK}", {}),
                ("GET", f"/v1/models/{MARK}%0a%1b[31m", {}),
                ("POST", f"/{MARK}", {}),
                ("POST", "/v1/policies", {"json": {"text": POLICY}}),
                ("POST", "/v1/policies/check", {"content": f'{{"{MARK}":'}),
                ("POST", f"/v1/models/{MARK}-other/versions", {"json": {"graph": {MARK: 1}}}),
                ("POST", "/v1/datasets", {"json": {"name": MARK, "format": "csv", "schema": {}, "x": bad}}),
                ("GET", "/v1/whoami", {"headers": {"authorization": f"Bearer {MARK}.{MARK}.{MARK}"}}),
                ("POST", f"/v2/models/{MARK}-model/infer", {"json": {"inputs": [{"name": MARK, "data": [INPUT]}]}}),
                ("POST", f"/v2/models/{MARK}-none/infer", {"json": {}}),
                ("GET", "/v2/health/live", {}),
                ("GET", "/v2/health/ready", {}),
                ("OPTIONS", f"/v1/models/{MARK}", {}),
                ("POST", "/issuer/token", {"data": {"grant_type": MARK, "client_secret": MARK}}),
                ("POST", "/issuer/device", {"data": {"username": MARK, "password": MARK}}),
                ("GET", f"/issuer/enrol?token={MARK}", {}),
            ):
                self.played.answers.append(http.request(method, path, **options))
        wrong = self.made.client(ClientCredentials("operator", f"{MARK}-wrong"), "wrong")
        with wrong, pytest.raises(ModelkeepError):
            wrong.whoami()

    def faults(self) -> None:
        # Sealed bytes that do not authenticate are a fault of the platform's, with a trace in the log.
        part = b"x" * 100
        digest = hashlib.sha256(part)
        body = {"graph": GRAPH, "weights_bytes": len(part), "weights_sha256": digest.hexdigest()}
        with self.http() as http:
            upload = http.post(f"/v1/models/{MARK}-broken/versions", json=body).json()["upload"]["id"]
            sent = {"content-digest": f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"}
            assert http.put(f"/v1/uploads/{upload}/parts/0", content=part, headers=sent).status_code == 200
            for blob in (self.made.data / "blobs").rglob("part-0"):
                if (blob.parent / "part-1").exists():
                    continue
                blob.write_bytes(MARK.encode() * 100)
            self.played.answers.append(http.get(f"/v1/models/{MARK}-model/versions/1/weights"))
            for blob in (self.made.data / "blobs").rglob("part-1"):
                blob.write_bytes(MARK.encode() * 100)
            with pytest.raises(httpx.RemoteProtocolError):
                http.get(f"/v1/models/{MARK}-large/versions/1/weights")
            self.played.answers.append(http.post(f"/v1/uploads/{upload}/complete"))


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    scenario = Scenario(Path(tmp_path_factory.mktemp("log")))
    try:
        yield scenario.play()
    finally:
        scenario.server.kill()


def test_every_line_is_an_object_of_known_fields(played: Played) -> None:
    lines = played.lines()
    for line in lines:
        assert line.keys() >= HEAD, line
        assert line.keys() <= HEAD | set(FIELDS), line
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
    assert [line["event"] for line in lines if line["logger"].endswith("app.server")] == [
        "the server takes requests",
        "the server has stopped",
    ]


def test_nothing_of_what_was_sent_is_in_the_log_or_the_metrics(played: Played) -> None:
    said = played.log.read_text() + played.metrics
    for name, secret in played.secrets.items():
        assert len(secret) >= 8, name
        for form in (secret, base64.b64encode(secret.encode()).decode().rstrip("="), secret.encode().hex()):
            assert form not in said, f"{name} is in the log"
    for part in played.secrets["app token"].split("."):
        assert part not in said
    assert str(played.log.parent) not in said


def test_every_answered_request_has_its_line(played: Played) -> None:
    lines = {line["request_id"]: line for line in played.lines() if line["event"] == "request"}
    for answer in played.answers:
        line = lines[answer.headers["x-request-id"]]
        assert line["status"] == answer.status_code
        assert line["duration_ms"] >= 0
    by_route = {(line["route"], line["status"]): line for line in lines.values()}
    predicted = by_route["POST /v2/models/{name}/infer", 200]
    assert (predicted["action"], predicted["tenant"], predicted["code"]) == ("model:predict", played.tenant, "")
    assert predicted["principal"].startswith("svc_")
    assert by_route["GET /v1/whoami", 401]["code"] == "token_invalid"
    assert by_route["GET /v1/whoami", 401]["tenant"] == ""
    assert by_route["POST /v1/policies", 403]["code"] == "forbidden"
    assert ("unmatched", 404) in by_route
    assert by_route["POST /issuer/token", 200]["action"] == ""


def test_a_fault_is_a_line_with_its_places_and_types(played: Played) -> None:
    lines = played.lines()
    assert played.answers[-1].status_code == 500
    request_id = played.answers[-1].headers["x-request-id"]
    (fault,) = [line for line in lines if line["event"] == "a request failed" and line["request_id"] == request_id]
    assert fault["code"] in fault["error"]
    assert any(place.startswith("modelkeep_platform.uploads.service:") for place in fault["trace"])
    # An answer that breaks off had its status sent already; its line has the code, another the places.
    refused, broken = [line for line in lines if line.get("route", "").endswith("/weights") and "status" in line]
    assert (refused["status"], refused["code"]) == (500, fault["code"])
    assert (broken["status"], broken["code"]) == (200, fault["code"])
    (foreign,) = [line for line in lines if line["logger"] == "uvicorn.error"]
    assert foreign["event"] == "Exception in ASGI application"
    assert foreign["error"].startswith(fault["error"].partition(" from ")[0])


def test_metrics_have_a_listener_of_their_own(played: Played) -> None:
    assert 'modelkeep_predictions_total{outcome="done"} 1.0' in played.metrics
    assert f'modelkeep_tenant_requests_total{{tenant="{played.tenant}"}}' in played.metrics


def serves(port: int) -> bool:
    try:
        return "modelkeep_build" in httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text
    except httpx.TransportError:
        return False


def test_the_public_address_serves_no_metrics(tmp_path: Path) -> None:
    made = Installation(tmp_path).init()
    port = free_port()
    environment = {
        "MODELKEEP_PLATFORM_METRICS_PORT": str(port),
        "MODELKEEP_PLATFORM_LOG_FORMAT": "text",
        "MODELKEEP_PLATFORM_PORT": made.url.rpartition(":")[2],
    }
    server = ServerProcess(made, env=environment, options=("--workers", "2")).ready()
    try:
        assert httpx.get(f"{made.url}/metrics", timeout=10).status_code == 404
        wait_until(lambda: serves(port) and serves(port + 1), "both processes' metrics")
        # Whoever takes the place of a process that died takes its port, too.
        pid = server.process.pid
        os.kill(children(pid)[0], signal.SIGKILL)
        wait_until(lambda: not (serves(port) and serves(port + 1)), "one to be gone")
        wait_until(lambda: serves(port) and serves(port + 1), "both again")
    finally:
        server.stop()
    assert re.search(r"^\S+Z info \S+ request ", server.log.read_text(), re.MULTILINE)


def test_an_unknown_variable_is_refused_by_name(tmp_path: Path) -> None:
    made = Installation(tmp_path).init()
    server = ServerProcess(made, env={"MODELKEEP_PLATFORM_PROT": "9000"})
    assert server.process.wait(timeout=30) == 1
    assert "`MODELKEEP_PLATFORM_PROT` in the environment is not a setting" in server.log.read_text()
