"""Two servers, started apart, on one database: what one changes the other decides by, before the call returns."""

import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

import modelkeep
from modelkeep import Client, ClientCredentials, DeviceCode, UnacknowledgedWarning
from modelkeep.errors import NotFoundError
from modelkeep_platform.audit.integrator import LEASE_S
from modelkeep_platform.storage.peers import ALIVE_S
from services.house import (
    GRAPH,
    PASSWORD,
    WEIGHTS,
    Installation,
    ServerProcess,
    Tenant,
    approve,
    bare,
    free_port,
    join,
    token_of,
    wait_until,
)
from services.places import PLACES, held_at_once, holding, nearly_all
from services.rates import check_rate

pytestmark = pytest.mark.e2e


class Pair:
    """One installation served twice, on two ports."""

    def __init__(self, folder: Path) -> None:
        self.made = Installation(folder).init()
        self.first = ServerProcess(self.made).ready()
        before = heartbeats(self.made)
        self.port = free_port()
        self.second = ServerProcess(self.made, options=("--port", str(self.port)))
        wait_until(lambda: answers(f"http://127.0.0.1:{self.port}"), "the second server")
        (self.second_id,) = heartbeats(self.made) - before
        self.acme: Tenant = join(self.made, "acme")
        self.globex: Tenant = join(self.made, "globex")
        self.acme.clients["developer"].models.upload("model", graph=GRAPH, weights=WEIGHTS)

    def other(self, client: Client) -> httpx.Client:
        """Return a bare client of the second server with the token of `client`."""
        return bare(client, f"http://127.0.0.1:{self.port}")

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


def test_a_revoked_token_is_over_on_both(pair: Pair) -> None:
    login = ClientCredentials(*pair.acme.secrets["developer"])
    with pair.made.client(login, "revoked") as client, pair.other(client) as there:
        assert there.get("/v1/whoami").status_code == 200
        done = httpx.post(f"{pair.made.url}/issuer/revoke", data={"token": token_of(client)})
        assert there.get("/v1/whoami").status_code == 401
        assert (done.status_code, done.headers.get("x-modelkeep-unacknowledged")) == (200, None)


def test_a_members_roles_and_removal_hold_on_both(pair: Pair) -> None:
    admin = pair.acme.admin
    invited = admin.members.invite("ana", roles=["developer"])
    modelkeep.enrol(pair.made.url, invited.invitation.token, username="ana", password=PASSWORD)
    login = DeviceCode(prompt=lambda prompt: approve(prompt, "ana"), organization="acme")
    with pair.made.client(login, "ana") as ana, pair.other(ana) as there:
        assert there.get("/v1/jobs").status_code == 200
        assert there.get("/v1/audit/entries").status_code == 403
        admin.members.update(invited.member.id, roles=["auditor"])
        assert there.get("/v1/audit/entries").status_code == 200
        admin.members.update(invited.member.id, roles=["developer"])
        assert there.get("/v1/audit/entries").status_code == 403
        admin.members.remove(invited.member.id)
        assert there.get("/v1/jobs").status_code == 401


def test_a_rotated_signing_key_is_followed_by_both(pair: Pair) -> None:
    developer = pair.acme.clients["developer"]
    with pair.made.operator() as operator, pair.other(developer) as before:
        for _ in range(2):
            operator.issuer.rotate_key()
            client_id, secret = pair.acme.secrets["developer"]
            with pair.made.client(ClientCredentials(client_id, secret), "fresh") as fresh, pair.other(fresh) as after:
                assert after.get("/v1/whoami").status_code == 200
        assert before.get("/v1/whoami").status_code == 200, "a token of the retired key is good until it is over"


def test_limits_of_a_tenant_hold_on_both(pair: Pair) -> None:
    with pair.made.operator() as operator, pair.other(pair.acme.clients["developer"]) as there:
        for _ in range(3):
            operator.tenants.set_limits("acme", {"serving_workers": 0})
            refused = there.post("/v2/models/model/infer", json=INFER)
            assert (refused.status_code, refused.headers["x-error-code"]) == (409, "serving_off")
            operator.tenants.set_limits("acme", {"serving_workers": None})
            assert there.post("/v2/models/model/infer", json=INFER).status_code == 200


@pytest.mark.parametrize("share", [1, 4], ids=["evenly", "mostly on one"])
def test_a_rate_is_shared_by_both(pair: Pair, share: int) -> None:
    """Ask both as fast as they answer for some seconds; what passes is the rate, and the burst once."""
    developer = pair.acme.clients["developer"]
    with pair.other(developer) as there, bare(developer, pair.made.url) as here:
        # A refusal waits 200 ms before it leaves: so many ask that some are always there.
        check_rate(pair.made, "acme", [here] * share * 4 + [there] * 4)


@pytest.mark.parametrize("limit", ["concurrent_requests", "principal_concurrent_requests"])
def test_places_at_once_are_shared_by_both(pair: Pair, limit: str) -> None:
    developer, analyst = pair.acme.clients["developer"], pair.acme.clients["analyst"]
    first, second = int(pair.made.url.rpartition(":")[2]), pair.port
    with pair.made.operator() as operator, pair.other(analyst) as there, bare(analyst, pair.made.url) as here:
        operator.tenants.set_limits("acme", {limit: PLACES})
        try:
            for ports in ([first, second], [second], [first], [second, first]):
                with holding(developer, ports, each=PLACES) as held:
                    assert nearly_all(held), f"{held} at {ports}"
                    if limit.startswith("principal"):
                        others = {one.get("/v1/whoami").status_code for one in (here, there)}
                        assert others == {200}, "another account of the tenant has places of its own"
                time.sleep(1.5)  # what was needed a moment ago is kept half a second, or a whole one
        finally:
            operator.tenants.set_limits("acme", {limit: None})


def test_places_of_a_killed_process_are_free_when_its_heartbeat_is_over(pair: Pair) -> None:
    developer = pair.acme.clients["developer"]
    first, port = int(pair.made.url.rpartition(":")[2]), free_port()
    with pair.made.operator() as operator:
        operator.tenants.set_limits("acme", {"concurrent_requests": PLACES})
        before = heartbeats(pair.made)
        third = ServerProcess(pair.made, options=("--port", str(port)))
        try:
            wait_until(lambda: answers(f"http://127.0.0.1:{port}"), "the third server")
            time.sleep(2)  # all know of one another by a heartbeat, once a second
            with holding(developer, [port], each=PLACES) as held:
                assert nearly_all(held), held
                assert held_at_once(developer, [first], each=PLACES) <= PLACES - held, "more than there are"
                third.kill()
            assert heartbeats(pair.made) > before, "it left nothing in order"
            started = time.monotonic()
            wait_until(lambda: nearly_all(held_at_once(developer, [first], each=PLACES)), "its places", timeout_s=30)
            assert (
                time.monotonic() - started < ALIVE_S + 6
            )  # a try takes a second and a half, and more on a busy machine
        finally:
            third.kill()
            operator.tenants.set_limits("acme", {"concurrent_requests": None})


def test_a_dead_process_is_named_and_then_forgotten(pair: Pair, tmp_path: Path) -> None:
    before = heartbeats(pair.made)
    third = ServerProcess(pair.made, options=("--port", str(free_port())))
    wait_until(lambda: heartbeats(pair.made) - before, "the third server's heartbeat")
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


def heartbeats(made: Installation) -> set[str]:
    return {str(row[0]) for row in ask(made, "SELECT id FROM server_processes")}


def quick(there: httpx.Client, body: Mapping[str, object]) -> bool:
    answer = there.post("/v1/grants", json=body)
    there.delete(f"/v1/grants/{answer.json()['id']}")
    return "x-modelkeep-unacknowledged" not in answer.headers


@contextmanager
def hung(pair: Pair) -> Iterator[None]:
    """Let the second server hang, as a machine does that swaps; it does not hold the database's lock."""
    pid = pair.second.process.pid
    while True:
        os.kill(pid, signal.SIGSTOP)
        connection = sqlite3.connect(pair.made.data / "platform.db", timeout=0.2, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            os.kill(pid, signal.SIGCONT)
            continue
        finally:
            connection.close()
        break
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def revoke(pair: Pair, _operator: Client) -> None:
    (grant,) = pair.acme.admin.grants.list()
    pair.acme.admin.grants.revoke(grant.id)


def suspend(_pair: Pair, operator: Client) -> None:
    operator.tenants.suspend("globex")


def forbid(pair: Pair, _operator: Client) -> None:
    text = '@id("no") forbid(principal, action == Modelkeep::Action::"model:read", resource);'
    pair.acme.admin.policies.publish(text)


@pytest.mark.parametrize("change", [revoke, suspend, forbid], ids=["revoked", "suspended", "re-policied"])
def test_a_process_that_hangs_is_named_and_refuses_when_it_wakes(
    pair: Pair, change: Callable[[Pair, Client], None]
) -> None:
    admin = pair.acme.admin
    first = next(policy.version for policy in admin.policies.list() if policy.state == "active")
    grant = admin.grants.create("model", "model", grantee="globex", actions=["model:read"])
    with pair.made.operator() as operator, pair.other(pair.globex.clients["developer"]) as there:
        operator.whoami()  # logged in
        assert there.get("/v1/models/acme~model").status_code == 200
        with hung(pair):
            started = time.monotonic()
            with pytest.warns(UnacknowledgedWarning) as caught:
                change(pair, operator)
            took_s = time.monotonic() - started
        # At once: what it knew is older than a second, and may not be used.
        woken = there.get("/v1/models/acme~model")
        assert [one.message.processes for one in caught if isinstance(one.message, UnacknowledgedWarning)] == [
            (pair.second_id,)
        ]
        assert took_s < 2.5
        assert woken.status_code in (401, 403, 404, 503), woken.text
        wait_until(lambda: there.get("/v1/models/acme~model").status_code in (401, 403, 404), "a refusal")
        operator.tenants.resume("globex")
        admin.policies.activate(first)
        with suppress(NotFoundError):
            admin.grants.revoke(grant.id)


def test_one_log_whose_integrator_moves_when_its_holder_is_killed(pair: Pair) -> None:
    admin = pair.acme.admin
    before = admin.audit.verify()
    with pair.other(admin) as there:
        request_id = there.get("/v1/models/never").headers["x-request-id"]
        assert admin.audit.wait_for(request_id).outcome == "denied"
        size = admin.audit.verify().size
        assert size > before.size
        # It has held the lease since it started alone.
        holder = lease(pair.made)
        pair.first.kill()
        denied = there.get("/v1/models/gone").headers["x-request-id"]
        wait_until(lambda: lease(pair.made) != holder, "the lease to move", timeout_s=LEASE_S + 5)
    pair.first = ServerProcess(pair.made).ready()
    assert admin.audit.wait_for(denied).outcome == "denied"
    assert admin.audit.verify().size > size
    assert lease(pair.made) != holder


def lease(made: Installation) -> str:
    return str(ask(made, "SELECT holder FROM audit_lease")[0][0])


def ask(made: Installation, question: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(made.data / "platform.db")
    try:
        return connection.execute(question).fetchall()
    finally:
        connection.close()
