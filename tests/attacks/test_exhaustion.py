"""Exhaustion: one tenant takes whatever there is to take; each limit refuses it, and the other tenant still works.

The house has small limits. What Acme does to it here, it does with every right that it has.
"""

import asyncio
import hashlib
import shutil
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from fakes.serving import Processes, hangs, rows, run_with_worker, servable, together
from fakes.storage import statements
from modelkeep_platform.core.ids import TenantId
from modelkeep_platform.core.limits import MIB
from modelkeep_platform.core.refusals import SUMMARY
from modelkeep_platform.http.connection import Connections
from modelkeep_platform.serving.tenant_worker import MAX_QUEUED, MAX_QUEUED_GUEST, MAX_QUEUED_GUESTS, TenantWorker
from modelkeep_platform.storage.tables.audit import audit_entries
from modelkeep_platform.storage.tables.idempotency import idempotency
from modelkeep_platform.storage.tables.jobs import jobs
from services.house import GRAPH, WEIGHTS, House, Tenant, job, wait_until

INFER = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 1]}]}
AT_ONCE, OF_SOURCE, KEYS, REFUSALS = 6, 48, 20, 10
LARGE = 2048


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(
        Path(tmp_path_factory.mktemp("exhaustion")),
        tenant_storage_mib=1,
        tenant_open_uploads=3,
        tenant_active_jobs=2,
        tenant_members=3,
        tenant_service_accounts=5,
        tenant_policy_versions=3,
        tenant_idempotency_keys=KEYS,
        tenant_refusals_per_minute=REFUSALS,
        tenant_concurrent_requests=AT_ONCE,
        source_connections=OF_SOURCE,
        disk_reserve_mib=256,
    )
    for tenant in (house.acme, house.globex):
        house.fill(tenant)
    yield house
    house.close()


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A house with a model that is larger than what the kernel keeps of an answer that nobody reads."""
    house = House(Path(tmp_path_factory.mktemp("roomy")), tenant_concurrent_requests=AT_ONCE)
    import torch

    from modelkeep.torch import trace

    large = torch.nn.Linear(LARGE, LARGE, bias=False)
    house.acme.clients["developer"].models.upload("large", trace(large, torch.zeros(1, LARGE)))
    yield house
    house.close()


@pytest.fixture
def acme(house: House) -> Iterator[httpx.Client]:
    """Return a bare client of Acme's developer, which tries nothing twice."""
    with house.http(house.acme.clients["developer"]) as http:
        yield http


@pytest.fixture
def globex(house: House) -> Iterator[httpx.Client]:
    """Return a bare client of Globex's developer."""
    with house.http(house.globex.clients["developer"]) as http:
        yield http


@pytest.fixture
def admins(house: House) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    """Return bare clients of both administrators."""
    with house.http(house.acme.admin) as acme, house.http(house.globex.admin) as globex:
        yield acme, globex


def refused(house: House, answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check a refusal and that it is in the log of Acme; return its details."""
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    house.server.platform.ground.refusals.sweep(unfinished=True)
    house.server.platform.ground.log.flush()
    (entry,) = house.acme.admin.audit.entries(request_id=answer.headers["x-request-id"])
    assert (entry.outcome, entry.facts["reason"]) == ("denied", code)
    details: dict[str, Any] = error["details"]
    return details


def counted(house: House, name: str, **labels: str) -> float:
    """Return the value of a metric."""
    return house.server.platform.edge.metrics.registry.get_sample_value(name, labels) or 0.0


def entries(house: House) -> int:
    with house.server.platform.ground.database.platform(read_only=True) as tx:
        row = tx.first(sa.select(sa.func.count().label("n")).select_from(audit_entries))
    assert row is not None
    return int(row["n"])


def begin(http: httpx.Client, name: str, size_bytes: int) -> httpx.Response:
    body = {"graph": GRAPH, "weights_bytes": size_bytes, "weights_sha256": hashlib.sha256(b"").hexdigest()}
    return http.post(f"/v1/models/{name}/versions", json=body)


# --- the owner's worker -----------------------------------------------------------------------------


async def until(reached: Callable[[], bool]) -> None:
    for _ in range(5000):
        if reached():
            return
        await asyncio.sleep(0.001)


def test_a_crowd_of_guests_does_not_keep_the_owner_from_its_own_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes(monkeypatch, hangs)
    crowd = [servable(caller=TenantId(f"guest-{number}")) for number in range(5)]

    async def main(worker: TenantWorker) -> None:
        first = asyncio.create_task(together(worker, [rows(1)], timeout_s=8))
        await until(lambda: any(frame.kind == "infer" for frame in processes.started[0].frames))
        floods = [
            asyncio.create_task(together(worker, [rows(1)] * MAX_QUEUED_GUEST, version=guest, timeout_s=8))
            for guest in crowd
        ]
        await until(lambda: worker.waiting == MAX_QUEUED_GUESTS)
        own = asyncio.create_task(together(worker, [rows(1)] * (MAX_QUEUED - MAX_QUEUED_GUESTS), timeout_s=8))
        await until(lambda: worker.waiting == MAX_QUEUED)
        worker.end()
        answers = [answer for flood in await asyncio.gather(*floods) for answer in flood]
        assert Counter(answer.error_code for answer in answers) == {
            "overloaded": len(crowd) * MAX_QUEUED_GUEST - MAX_QUEUED_GUESTS,
            "worker_stopped": MAX_QUEUED_GUESTS,
        }
        assert {answer.error_code for answer in [*await own, *await first]} == {"worker_stopped"}

    run_with_worker(main)


# --- storage ----------------------------------------------------------------------------------------


def test_storage_is_promised_once_and_given_back(house: House, acme: httpx.Client, globex: httpx.Client) -> None:
    first = begin(acme, "half", MIB // 2)
    assert first.status_code == 201
    details = refused(house, begin(acme, "more", MIB // 2), 409, "storage_exhausted")
    assert details["limit_bytes"] == MIB
    assert MIB // 2 < details["used_bytes"] < MIB
    assert acme.get("/v1/models/more").status_code == 404
    others = begin(globex, "half", MIB // 2)
    assert others.status_code == 201
    for http, begun in ((acme, first), (globex, others)):
        assert http.delete(f"/v1/uploads/{begun.json()['upload']['id']}").status_code == 204
    again = begin(acme, "more", MIB // 2)
    assert again.status_code == 201
    acme.delete(f"/v1/uploads/{again.json()['upload']['id']}")
    assert counted(house, "modelkeep_limited_total", code="storage_exhausted") >= 1


def test_datasets_count_too(house: House, acme: httpx.Client, globex: httpx.Client) -> None:
    schema = {"columns": [{"name": "a", "type": "float", "min": 0, "max": 1}]}
    body = {
        "name": "large",
        "format": "csv",
        "schema": schema,
        "privacy": {"visibility": "public", "reason": "made up"},
        "size_bytes": MIB,
        "sha256": hashlib.sha256(b"").hexdigest(),
    }
    refused(house, acme.post("/v1/datasets", json=body), 409, "storage_exhausted")
    assert [one["name"] for one in acme.get("/v1/datasets").json()["items"]] == ["open", "rows"]
    assert globex.get("/v1/datasets/rows").status_code == 200


def test_open_uploads(house: House, acme: httpx.Client, globex: httpx.Client) -> None:
    begun = [begin(acme, f"open-{at}", 100) for at in range(3)]
    assert [one.status_code for one in begun] == [201] * 3
    refused(house, begin(acme, "open-3", 100), 409, "too_many_uploads")
    others = begin(globex, "open-0", 100)
    assert others.status_code == 201
    for http, one in [(acme, one) for one in begun] + [(globex, others)]:
        http.delete(f"/v1/uploads/{one.json()['upload']['id']}")


# --- jobs -------------------------------------------------------------------------------------------


def test_job_slots(house: House, acme: httpx.Client, globex: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    platform = house.server.platform
    monkeypatch.setattr(platform.rooms.dispatcher, "run_one", lambda: False)
    time.sleep(0.3)  # what the slots were doing is over
    wanted = job(privacy={"epsilon": 0.5, "clip_norm": 1.0})
    queued = [acme.post("/v1/jobs", json=wanted) for _ in range(2)]
    assert [one.status_code for one in queued] == [201, 201]
    before = acme.get("/v1/budgets/rows").json()
    third = acme.post("/v1/jobs", json=wanted)
    refused(house, third, 429, "too_many_jobs")
    assert int(third.headers["retry-after"]) >= 1
    assert acme.get("/v1/budgets/rows").json() == before
    with platform.ground.database.platform(read_only=True) as tx:
        assert len(tx.all(sa.select(jobs.c.id))) == 2
    others = globex.post("/v1/jobs", json=wanted)
    assert others.status_code == 201
    for http, one in ((acme, queued[0]), (acme, queued[1]), (globex, others)):
        assert http.post(f"/v1/jobs/{one.json()['id']}/cancel").json()["state"] == "cancelled"
    again = acme.post("/v1/jobs", json=wanted)
    assert again.status_code == 201
    acme.post(f"/v1/jobs/{again.json()['id']}/cancel")


def test_long_jobs_of_one_tenant_leave_another_a_place(house: House, acme: httpx.Client, globex: httpx.Client) -> None:
    def states() -> list[str]:
        return sorted(acme.get(f"/v1/jobs/{one}").json()["state"] for one in long)

    endless = job(steps=5_000, sample_rate=0.1, privacy={"epsilon": 0.5, "clip_norm": 1.0})
    long = [acme.post("/v1/jobs", json=endless).json()["id"] for _ in range(2)]
    try:
        wait_until(lambda: states() == ["queued", "running"], "one to run")
        short = globex.post("/v1/jobs", json=job(privacy={"epsilon": 0.5, "clip_norm": 1.0})).json()["id"]
        wait_until(lambda: globex.get(f"/v1/jobs/{short}").json()["state"] == "succeeded", "the other's job")
        # The second took the free place neither before nor after.
        assert states() == ["queued", "running"]
    finally:
        for one in long:
            acme.post(f"/v1/jobs/{one}/cancel")
    wait_until(lambda: states() == ["cancelled", "cancelled"], "both to end")


# --- requests ---------------------------------------------------------------------------------------


def test_requests_of_a_minute(house: House, acme: httpx.Client, globex: httpx.Client) -> None:
    house.operator.tenants.set_limits("acme", {"requests_per_minute": 30})
    answers = (acme.get("/v1/models") for _ in range(100))
    over = next(answer for answer in answers if answer.status_code != 200)
    assert globex.get("/v1/models").status_code == 200
    predicted = acme.post("/v2/models/model/infer", json=INFER)
    assert (predicted.status_code, predicted.headers["x-error-code"]) == (429, "rate_limited")
    assert globex.post("/v2/models/model/infer", json=INFER).status_code == 200
    house.operator.tenants.set_limits("acme", {"requests_per_minute": None})
    refused(house, over, 429, "rate_limited")
    assert 1 <= int(over.headers["retry-after"]) <= 60
    assert over.headers["ratelimit"].startswith('"requests";r=0;t=')
    assert acme.get("/v1/models").status_code == 200


# --- rows -------------------------------------------------------------------------------------------


def test_idempotency_rows(house: House, admins: tuple[httpx.Client, httpx.Client], acme: httpx.Client) -> None:
    mine, others = admins

    def ask(http: httpx.Client, key: str) -> httpx.Response:
        return http.post("/v1/policies/check", json={"text": ""}, headers={"idempotency-key": key})

    database = house.server.platform.ground.database
    with database.platform() as tx:
        tx.execute(sa.delete(idempotency))
    assert {ask(mine, f"key-{at:05}").status_code for at in range(KEYS)} == {200}
    over = ask(mine, "key-99999")
    refused(house, over, 429, "too_many_keys")
    assert int(over.headers["retry-after"]) > 3600
    # Another account of the tenant does not get round it.
    refused(house, ask(acme, "key-99998"), 429, "too_many_keys")
    with database.platform(read_only=True) as tx:
        assert len(tx.all(sa.select(idempotency.c.tenant_id))) == KEYS
    # What was kept is still answered, and without a key the request goes on.
    assert ask(mine, "key-00001").status_code == 200
    assert mine.post("/v1/policies/check", json={"text": ""}).status_code == 200
    assert ask(others, "key-99999").status_code == 200
    with database.platform() as tx:
        tx.execute(sa.delete(idempotency))


def test_members_and_accounts(house: House, admins: tuple[httpx.Client, httpx.Client]) -> None:
    mine, others = admins
    for path, body, code in (
        ("/v1/members", {"username": "person-{}", "roles": ["auditor"]}, "too_many_members"),
        ("/v1/service-accounts", {"name": "app-{}", "roles": ["auditor"]}, "too_many_service_accounts"),
    ):
        named = "username" if "username" in body else "name"
        asked = [mine.post(path, json={**body, named: f"{named}-{at}"}) for at in range(3)]
        assert [one.status_code for one in asked] == [201, 201, 409]
        refused(house, asked[-1], 409, code)
        assert len(mine.get(path).json()["items"]) == (3 if named == "username" else 5)
        assert others.post(path, json={**body, named: f"{named}-0"}).status_code == 201


def test_policies(house: House, admins: tuple[httpx.Client, httpx.Client]) -> None:
    mine, others = admins
    asked = [mine.post("/v1/policies", json={"text": f"// version {at}"}) for at in range(3)]
    assert [one.status_code for one in asked] == [201, 201, 409]
    refused(house, asked[-1], 409, "too_many_policies")
    assert [one["version"] for one in mine.get("/v1/policies").json()["items"]] == [3, 2, 1]
    # Nobody is locked in: what is kept can be activated.
    assert mine.post("/v1/policies/1/activate").status_code == 200
    assert others.post("/v1/policies", json={"text": "// ours"}).status_code == 201


# --- the log ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status", "most"),
    [
        pytest.param("/v1/members", 403, REFUSALS, id="by policy"),
        pytest.param("/v1/models?limit=x", 400, REFUSALS // 5, id="by no policy"),
    ],
)
def test_refusals_fill_a_counter_and_not_the_log(house: House, path: str, status: int, most: int) -> None:
    platform = house.server.platform
    platform.ground.authorizer.close()
    platform.ground.refusals.sweep(unfinished=True)
    platform.ground.log.flush()
    before = entries(house)
    with house.http(house.acme.clients["analyst"]) as http:
        assert {http.get(path).status_code for _ in range(60)} == {status}
    platform.ground.authorizer.close()
    platform.ground.refusals.sweep(unfinished=True)
    platform.ground.log.flush()
    # Two windows, when a minute ended meanwhile, each with a summary.
    assert entries(house) - before <= 2 * (most + 1)
    found = list(house.acme.admin.audit.entries(limit=50))
    summaries = [entry for entry in found if entry.action == SUMMARY]
    assert summaries[0].facts["unrecorded"] >= 60 - 2 * most
    with house.http(house.globex.clients["analyst"]) as http:
        answer = http.get(path)
    platform.ground.log.flush()
    assert len(list(house.globex.admin.audit.entries(request_id=answer.headers["x-request-id"]))) == 1


@pytest.mark.parametrize(
    "token",
    [
        pytest.param("x", id="no token at all"),
        pytest.param("a.b.c", id="not base64"),
        pytest.param("eyJhbGciOiJFZERTQSIsImtpZCI6Im5vIn0.e30." + "A" * 86, id="an unknown key"),
        pytest.param("A" * 8000, id="a long one"),
    ],
)
def test_junk_tokens_are_cheap_and_counted(house: House, globex: httpx.Client, token: str) -> None:
    platform = house.server.platform
    platform.ground.refusals.sweep(unfinished=True)
    platform.ground.log.flush()
    before, counted_before = entries(house), counted(house, "modelkeep_strangers_refused_total", status="401")
    headers = {"authorization": f"Bearer {token}"}
    with (
        statements(platform.ground.database) as ran,
        httpx.Client(base_url=house.url, headers=headers, timeout=30) as http,
    ):
        answers = {http.get(path).status_code for _ in range(100) for path in ("/v1/models", "/v2/models/model")}
    assert answers == {401}
    # Of the threads that serve requests: others are always at work.
    assert [text for thread, text in ran if thread.startswith(("AnyIO", "asyncio"))] == []
    assert counted(house, "modelkeep_strangers_refused_total", status="401") - counted_before == 200
    platform.ground.refusals.sweep(unfinished=True)
    platform.ground.log.flush()
    assert entries(house) - before <= 2  # one of the source, two when a minute ended meanwhile
    found = [one for one in house.operator.audit.entries(limit=20) if one.action == "stranger:refused"]
    assert sum(int(one.facts["status_401"]) for one in found[:2]) >= 200
    assert globex.post("/v2/models/model/infer", json=INFER).status_code == 200


# --- connections, workers ---------------------------------------------------------------------------


def other_source(house: House) -> httpx.Client:
    """Return a client of Globex's that comes from another address."""
    headers = {"authorization": f"Bearer {house.token(house.globex.clients['developer'])}"}
    transport = httpx.HTTPTransport(local_address="127.0.0.2")
    return httpx.Client(base_url=house.url, headers=headers, transport=transport, timeout=30)


def test_connections_of_one_address(house: House) -> None:
    host, _, port = house.url.removeprefix("http://").partition(":")
    before = counted(house, "modelkeep_connections_refused_total", limit="source")
    with ExitStack() as held, other_source(house) as globex:
        for _ in range(OF_SOURCE + 10):
            held.enter_context(socket.create_connection((host, int(port)), timeout=10))
        wait_until(
            lambda: counted(house, "modelkeep_connections_refused_total", limit="source") >= before + 10, "refusals"
        )

        def turned_away() -> bool:
            # A connection that was idle may end meanwhile and make room; that room is taken, too.
            held.enter_context(socket.create_connection((host, int(port)), timeout=10))
            try:
                httpx.get(f"{house.url}/v2/health/live")
            except httpx.TransportError:
                return True
            return False

        wait_until(turned_away, "the next connection to be turned away")
        assert globex.post("/v2/models/model/infer", json=INFER).status_code == 200
    wait_until(lambda: house.server.platform.edge.connections.open < OF_SOURCE, "the connections to end")


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        pytest.param("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True, id="of-one-64"),
        pytest.param("2001:db8:1:2::1", "2001:db8:1:3::1", False, id="of-two-64s"),
        pytest.param("::ffff:192.0.2.1", "192.0.2.1", True, id="mapped"),
        pytest.param("::ffff:192.0.2.1", "::ffff:192.0.2.2", False, id="two-mapped"),
    ],
)
def test_connections_of_one_subscriber_with_all_its_addresses(first: str, second: str, together: bool) -> None:
    bounds = Connections(of_source=2)
    assert [bounds.enter(first), bounds.enter(first), bounds.enter(second)] == [True, True, not together]
    for address in (first, first) if together else (first, first, second):
        bounds.leave(address)
    assert bounds.open == 0
    assert [bounds.enter(second), bounds.enter(second), bounds.enter(second)] == [True, True, False]


def test_slow_bodies_hold_the_places_of_their_own_tenant(house: House) -> None:
    host, _, port = house.url.removeprefix("http://").partition(":")
    token = house.token(house.acme.clients["developer"])
    head = (
        f"POST /v2/models/model/infer HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\n"
        "content-type: application/json\r\ncontent-length: 100\r\n\r\n"
    ).encode()
    running = house.server.platform.rooms.serving
    limits = house.server.platform.edge.requests
    with ExitStack() as held:
        for _ in range(AT_ONCE):
            held.enter_context(socket.create_connection((host, int(port)), timeout=10)).sendall(head)
        wait_until(lambda: limits.under_way >= AT_ONCE, "the places to be taken")
        with house.http(house.acme.clients["developer"]) as http:
            answer = http.post("/v2/models/model/infer", json=INFER)
        assert (answer.status_code, answer.headers["x-error-code"]) == (429, "too_many_at_once")
        assert int(answer.headers["retry-after"]) >= 1
        with house.http(house.globex.clients["developer"]) as http:
            assert http.post("/v2/models/model/infer", json=INFER).status_code == 200
    wait_until(lambda: not limits.under_way, "the places to be given back")
    assert running.waiting == 0


def test_downloads_that_nobody_reads_hold_the_places_of_their_own_tenant(roomy: House) -> None:
    host, _, port = roomy.url.removeprefix("http://").partition(":")
    developer = roomy.acme.clients["developer"]
    token, limits = roomy.token(developer), roomy.server.platform.edge.requests
    with ExitStack() as held:
        for _ in range(AT_ONCE):
            reader = held.enter_context(socket.socket())
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.connect((host, int(port)))
            reader.sendall(
                f"GET /v1/models/large/versions/1/weights HTTP/1.1\r\nhost: {host}\r\n"
                f"authorization: Bearer {token}\r\n\r\n".encode()
            )
            assert reader.recv(12) == b"HTTP/1.1 200"
        assert limits.under_way == AT_ONCE
        with roomy.http(developer) as http:
            answer = http.get("/v1/whoami")
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_many_at_once")
        with roomy.http(roomy.globex.clients["developer"]) as http:
            assert http.get("/v1/whoami").status_code == 200
    wait_until(lambda: not limits.under_way, "the places to be given back")
    assert len(developer.models.download("large").weights) > LARGE * LARGE * 4


def test_a_tenant_has_one_worker_however_many_models_it_asks(house: House) -> None:
    app = house.acme.clients["developer"]
    for name in ("one", "two"):
        app.models.upload(name, graph=GRAPH, weights=WEIGHTS)
    serving = house.server.platform.rooms.serving
    with house.http(app) as http, ThreadPoolExecutor(4) as pool:
        paths = [f"/v2/models/{name}/infer" for name in ("model", "one", "two")] * 4
        assert {one.status_code for one in pool.map(lambda path: http.post(path, json=INFER), paths)} == {200}
    with house.http(house.globex.clients["developer"]) as http:
        assert http.post("/v2/models/model/infer", json=INFER).status_code == 200
    assert serving.alive == 2


# --- the disk ---------------------------------------------------------------------------------------


@pytest.fixture
def full_disk(house: House, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave 100 MiB, of which 256 are kept for the log."""
    real, disk = shutil.disk_usage, house.server.platform.ground.disk

    def look(path: Any) -> Any:
        return real(path)._replace(free=100 * MIB)

    with monkeypatch.context() as patch:
        patch.setattr("modelkeep_platform.storage.disk.shutil.disk_usage", look)
        disk._looked_at = float("-inf")
        yield
    disk._looked_at = float("-inf")
    house.server.platform.edge.health._looked_at = float("-inf")


def test_the_disk_space_kept_for_the_log(house: House, acme: httpx.Client, full_disk: None) -> None:
    platform = house.server.platform
    house.server.platform.edge.health._looked_at = float("-inf")
    infer = acme.post("/v2/models/model/infer", json=INFER)
    assert (infer.status_code, infer.headers["x-error-code"]) == (503, "disk_full")
    platform.ground.log.flush()
    before = entries(house)
    for method, path in (
        ("POST", "/v1/models/new/versions"),
        ("PUT", "/v1/uploads/upl_x/parts/0"),
        ("POST", "/v1/jobs"),
        ("POST", "/v1/policies"),
        ("POST", "/v1/members"),
    ):
        answer = acme.request(method, path, content=b"{}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "disk_full")
    platform.ground.log.flush()
    assert entries(house) == before
    assert counted(house, "modelkeep_limited_total", code="disk_full") >= 6
    ready = httpx.get(f"{house.url}/v2/health/ready", timeout=10)
    assert (ready.status_code, ready.headers["x-error-code"]) == (503, "not_ready")
    assert "disk" not in ready.text
    # The log is written, tenants read and delete, and the operator works.
    assert acme.get("/v1/models").status_code == 200
    gone = acme.delete("/v1/models/two")
    assert gone.status_code == 204
    (entry,) = house.acme.admin.audit.entries(request_id=gone.headers["x-request-id"])
    assert (entry.action, entry.outcome) == ("model:delete", "done")
    with house.http(house.operator) as operator:
        assert operator.post("/v1/tenants/globex/suspend").status_code == 200
        assert operator.post("/v1/tenants/globex/resume").status_code == 200


def test_everything_goes_on_when_there_is_room_again(house: House, acme: httpx.Client, globex: httpx.Client) -> None:
    assert acme.post("/v2/models/model/infer", json=INFER).status_code == 200
    assert globex.post("/v2/models/model/infer", json=INFER).status_code == 200
    assert httpx.get(f"{house.url}/v2/health/ready", timeout=10).status_code == 200


def test_both_tenants_still_own_what_they_had(house: House) -> None:
    def names(tenant: Tenant) -> set[str]:
        return {model.name for model in tenant.clients["developer"].models.list()}

    assert {"model", "one"} <= names(house.acme)
    assert "model" in names(house.globex)
