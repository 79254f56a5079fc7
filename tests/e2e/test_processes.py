"""Two server processes on one database: what one changes the other decides by, before the call returns."""

import sqlite3
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import pytest

from modelkeep import Client, ClientCredentials
from modelkeep.errors import AuthenticationError, ForbiddenError, NotFoundError
from services.house import GRAPH, WEIGHTS, Installation, ServerProcess, Tenant, free_port, join, wait_until

pytestmark = pytest.mark.e2e


class Pair:
    """One installation served twice, on two ports."""

    def __init__(self, folder: Path) -> None:
        self.made = Installation(folder).init()
        self.first = ServerProcess(self.made).ready()
        self.port = free_port()
        self.second = ServerProcess(self.made, options=("--port", str(self.port)))
        wait_until(lambda: answers(f"http://127.0.0.1:{self.port}"), "the second server")
        self.acme: Tenant = join(self.made, "acme")
        self.globex: Tenant = join(self.made, "globex")
        self.acme.clients["developer"].models.upload("model", graph=GRAPH, weights=WEIGHTS)

    def other(self, client: Client) -> httpx.Client:
        """Return a bare client of the second server with the token of `client`."""
        session = client._session
        assert session.auth is not None
        token = client._driver.run(session.auth.token(session.site, rejected=None))
        headers = {"authorization": f"Bearer {token}"}
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", headers=headers, timeout=30)

    def close(self) -> None:
        for tenant in (self.acme, self.globex):
            for client in (tenant.admin, *tenant.clients.values()):
                client.close()
        assert self.first.stop() == 0
        assert self.second.stop() == 0


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/v2/health/ready", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    pair = Pair(Path(tmp_path_factory.mktemp("pair")))
    yield pair
    pair.close()


INFER = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 1]}]}


def test_a_grant_and_its_end_hold_on_both(pair: Pair) -> None:
    admin = pair.acme.admin
    with pair.other(pair.globex.clients["developer"]) as there:
        for _ in range(3):
            grant = admin.grants.create("model", "model", grantee="globex", actions=["model:predict"])
            assert there.post("/v2/models/acme~model/infer", json=INFER).status_code == 200
            admin.grants.revoke(grant.id)
            assert there.post("/v2/models/acme~model/infer", json=INFER).status_code == 404


def test_a_policy_holds_on_both(pair: Pair) -> None:
    admin = pair.acme.admin
    before = next(policy.version for policy in admin.policies.list() if policy.state == "active")
    with pair.other(pair.acme.clients["analyst"]) as there:
        assert there.post("/v2/models/model/infer", json=INFER).status_code == 200
        admin.policies.publish('@id("no") forbid(principal, action == Modelkeep::Action::"model:predict", resource);')
        refused = there.post("/v2/models/model/infer", json=INFER)
        assert refused.status_code == 403
        admin.policies.activate(before)
        assert there.post("/v2/models/model/infer", json=INFER).status_code == 200


def test_a_rotated_secret_and_a_suspended_tenant_end_tokens_on_both(pair: Pair) -> None:
    admin = pair.globex.admin
    made = admin.service_accounts.create("spare", roles=["developer"])
    login = ClientCredentials(made.service_account.client_id, made.client_secret)
    with pair.made.client(login, "spare") as spare, pair.other(spare) as there:
        assert there.get("/v1/whoami").status_code == 200
        time.sleep(1)  # a token and the rotation that ends it are told apart by the second
        admin.service_accounts.rotate(made.service_account.id)
        assert there.get("/v1/whoami").status_code == 401
        with pair.made.operator() as operator, pair.other(pair.globex.clients["developer"]) as dev:
            assert dev.get("/v1/whoami").status_code == 200
            operator.tenants.suspend("globex")
            assert dev.get("/v1/whoami").status_code == 401
            operator.tenants.resume("globex")
            assert dev.get("/v1/whoami").status_code == 200


def test_a_rotated_signing_key_is_followed_by_both(pair: Pair) -> None:
    developer = pair.acme.clients["developer"]
    with pair.made.operator() as operator, pair.other(developer) as before:
        for _ in range(2):
            operator.issuer.rotate_key()
            client_id, secret = pair.acme.secrets["developer"]
            with pair.made.client(ClientCredentials(client_id, secret), "fresh") as fresh, pair.other(fresh) as after:
                assert after.get("/v1/whoami").status_code == 200
        assert before.get("/v1/whoami").status_code == 200, "a token of the retired key is good until it is over"


def test_a_dead_process_is_named_and_then_forgotten(pair: Pair, tmp_path: Path) -> None:
    third = ServerProcess(pair.made, options=("--port", str(free_port())))
    wait_until(lambda: heartbeats(pair.made) == 3, "the third server's heartbeat")
    third.kill()
    admin = pair.acme.admin
    with pair.other(admin) as there:
        body = {"kind": "model", "name": "model", "grantee": "globex", "actions": ["model:read"]}
        started = time.monotonic()
        answer = there.post("/v1/grants", json=body)
        assert answer.status_code == 201
        assert time.monotonic() - started < 2.5
        assert answer.headers.get("x-modelkeep-unacknowledged")
        admin.grants.revoke(answer.json()["id"])
        wait_until(lambda: quick(there, body), "the dead process to be forgotten", timeout_s=10)


def heartbeats(made: Installation) -> int:
    connection = sqlite3.connect(made.data / "platform.db")
    try:
        count: int = connection.execute("SELECT count(*) FROM server_processes").fetchone()[0]
    finally:
        connection.close()
    return count


def quick(there: httpx.Client, body: Mapping[str, object]) -> bool:
    answer = there.post("/v1/grants", json=body)
    there.delete(f"/v1/grants/{answer.json()['id']}")
    return "x-modelkeep-unacknowledged" not in answer.headers


def test_one_log_and_the_lease_moves(pair: Pair) -> None:
    admin = pair.acme.admin
    before = admin.audit.verify()
    with pair.other(admin) as there:
        request_id = there.get("/v1/models/never").headers["x-request-id"]
    entry = admin.audit.wait_for(request_id)
    assert entry.outcome == "denied"
    assert admin.audit.verify().size > before.size


def test_workers_share_one_address(tmp_path: Path) -> None:
    made = Installation(tmp_path).init()
    server = ServerProcess(made, options=("--workers", "2")).ready()
    try:
        tenant = join(made, "acme")
        developer = tenant.clients["developer"]
        developer.models.upload("model", graph=GRAPH, weights=WEIGHTS)
        for _ in range(5):
            assert developer.predict("model", [[1.0, 1.0]]) == [[3.5, 6.5]]
        with pytest.raises(NotFoundError):
            developer.models.get("never")
        with pytest.raises((ForbiddenError, AuthenticationError)):
            developer.members.list()
        for client in (tenant.admin, *tenant.clients.values()):
            client.close()
    finally:
        assert server.stop() == 0
