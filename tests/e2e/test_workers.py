"""`serve --workers 2`: two servers behind one address, which decide alike and end with their supervisor."""

import json
import os
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from modelkeep import Client
from modelkeep.errors import AuthenticationError, ForbiddenError, NotFoundError
from modelkeep_platform.app import settings as settings_file
from services.house import GRAPH, WEIGHTS, Installation, ServerProcess, Tenant, bare, free_port, join, wait_until
from services.places import PLACES, held_at_once, holding, nearly_all
from services.processes import alive, children
from services.rates import SECONDS, check_rate

pytestmark = pytest.mark.e2e


class Twins:
    """One installation served by two processes of one supervisor."""

    def __init__(self, folder: Path) -> None:
        self.made = Installation(folder).init()
        self.metrics_port = free_port()
        changed = replace(settings_file.load(self.made.data), metrics_port=self.metrics_port)
        settings_file.write(self.made.data, changed)
        self.server = ServerProcess(self.made, options=("--workers", "2")).ready()
        wait_until(lambda: len(self.heartbeats()) == 2, "both servers")
        self.acme: Tenant = join(self.made, "acme")
        self.globex: Tenant = join(self.made, "globex")
        self.acme.clients["developer"].models.upload("model", graph=GRAPH, weights=WEIGHTS)

    def heartbeats(self) -> set[str]:
        connection = sqlite3.connect(self.made.data / "platform.db")
        try:
            return {row[0] for row in connection.execute("SELECT id FROM server_processes")}
        finally:
            connection.close()

    def pids(self) -> list[int]:
        """Return the servers' own ids, not the supervisor's."""
        return children(self.server.process.pid)

    def served(self) -> list[float]:
        """Return how many requests each server has answered."""
        return [self._count(self.metrics_port + number) for number in range(2)]

    def _count(self, port: int) -> float:
        text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        lines = [line for line in text.splitlines() if line.startswith("modelkeep_request_seconds_count")]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def fresh(self, client: Client) -> httpx.Client:
        """Return a bare client with connections of its own: either server takes them."""
        return bare(client, self.made.url)

    def close(self) -> None:
        for tenant in (self.acme, self.globex):
            for client in (tenant.admin, *tenant.clients.values()):
                client.close()
        self.server.stop()


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    twins = Twins(Path(tmp_path_factory.mktemp("twins")))
    yield twins
    twins.close()


def test_they_share_one_address(twins: Twins) -> None:
    developer = twins.acme.clients["developer"]
    for _ in range(5):
        assert developer.predict("model", [[1.0, 1.0]]) == [[3.5, 6.5]]
    with pytest.raises(NotFoundError):
        developer.models.get("never")
    with pytest.raises((ForbiddenError, AuthenticationError)):
        developer.members.list()


def statuses(twins: Twins, client: Client, path: str, count: int) -> Counter[int]:
    """Ask over as many connections as there are questions."""
    found: Counter[int] = Counter()
    for _ in range(count):
        with twins.fresh(client) as one:
            found[one.get(path).status_code] += 1
    return found


def test_what_is_revoked_on_one_is_refused_by_both(twins: Twins) -> None:
    admin, other = twins.acme.admin, twins.globex.clients["developer"]
    before = twins.served()
    for _ in range(3):
        grant = admin.grants.create("model", "model", grantee="globex", actions=["model:read"])
        assert statuses(twins, other, "/v1/models/acme~model", 8) == {200: 8}
        admin.grants.revoke(grant.id)
        assert statuses(twins, other, "/v1/models/acme~model", 8) == {404: 8}
    assert all(after > earlier for after, earlier in zip(twins.served(), before, strict=True)), "one did nothing"


def test_who_is_suspended_and_what_a_policy_forbids_is_refused_by_both(twins: Twins) -> None:
    admin, developer = twins.acme.admin, twins.globex.clients["developer"]
    with twins.made.operator() as operator:
        operator.tenants.suspend("globex")
        refused = statuses(twins, developer, "/v1/whoami", 8)
        operator.tenants.resume("globex")
    assert refused == {401: 8}
    before = next(policy.version for policy in admin.policies.list() if policy.state == "active")
    admin.policies.publish('@id("no") forbid(principal, action == Modelkeep::Action::"model:read", resource);')
    assert statuses(twins, twins.acme.clients["analyst"], "/v1/models/model", 8) == {403: 8}
    admin.policies.activate(before)
    assert statuses(twins, twins.acme.clients["analyst"], "/v1/models/model", 8) == {200: 8}


def test_a_rate_is_shared_by_both(twins: Twins) -> None:
    before = twins.served()
    with ExitStack() as stack:
        asking = [stack.enter_context(twins.fresh(twins.acme.clients["developer"])) for _ in range(16)]
        check_rate(twins.made, "acme", asking)
    counts = [after - earlier for after, earlier in zip(twins.served(), before, strict=True)]
    # Refusals are counted, too: whichever server a connection went to, it was asked all the time.
    assert min(counts) > SECONDS, counts


@pytest.mark.parametrize("limit", ["concurrent_requests", "principal_concurrent_requests"])
def test_places_at_once_are_shared_by_both(twins: Twins, limit: str) -> None:
    developer, port = twins.acme.clients["developer"], int(twins.made.url.rpartition(":")[2])
    before = twins.served()
    with twins.made.operator() as operator:
        operator.tenants.set_limits("acme", {limit: PLACES})
        try:
            for _ in range(2):
                held = held_at_once(developer, [port], each=3 * PLACES)
                assert nearly_all(held), held
                time.sleep(1.5)  # what was needed a moment ago is kept half a second, or a whole one
        finally:
            operator.tenants.set_limits("acme", {limit: None})
    assert all(after > earlier for after, earlier in zip(twins.served(), before, strict=True)), "one did nothing"


def test_places_of_one_that_is_killed_are_free_for_the_other(twins: Twins) -> None:
    developer, port = twins.acme.clients["developer"], int(twins.made.url.rpartition(":")[2])
    with twins.made.operator() as operator:
        operator.tenants.set_limits("acme", {"concurrent_requests": PLACES})
        try:
            before = twins.heartbeats()
            with holding(developer, [port], each=3 * PLACES) as held:
                assert nearly_all(held), held
                os.kill(twins.pids()[0], signal.SIGKILL)
            wait_until(lambda: nearly_all(held_at_once(developer, [port], each=3 * PLACES)), "its places", timeout_s=30)
            wait_until(lambda: len(twins.pids()) == 2 and twins.heartbeats() - before, "another in its place")
        finally:
            operator.tenants.set_limits("acme", {"concurrent_requests": None})


def test_one_that_is_killed_is_named_until_it_is_forgotten_and_started_again(twins: Twins) -> None:
    admin = twins.acme.admin
    before = twins.heartbeats()
    os.kill(twins.pids()[0], signal.SIGKILL)
    body = {"kind": "model", "name": "model", "grantee": "globex", "actions": ["model:read"]}
    with twins.fresh(admin) as client:
        answer = client.post("/v1/grants", json=body)
    assert answer.status_code == 201, answer.text
    named = set(answer.headers["x-modelkeep-unacknowledged"].split(","))
    assert named <= before, "one that was killed by the test before may be named, too"
    wait_until(lambda: len(twins.pids()) == 2 and twins.heartbeats() - before, "another in its place")
    other = twins.globex.clients["developer"]
    assert statuses(twins, other, "/v1/models/acme~model", 8) == {200: 8}
    admin.grants.revoke(answer.json()["id"])
    assert statuses(twins, other, "/v1/models/acme~model", 8) == {404: 8}


def test_they_end_in_order_with_a_supervisor_that_is_killed(twins: Twins) -> None:
    pids = twins.pids()
    assert len(pids) == 2
    twins.server.kill()
    wait_until(lambda: not any(map(alive, pids)), "the servers to end")
    ends = [json.loads(line)["event"] for line in twins.server.log.read_text().splitlines() if line.startswith("{")]
    assert ends.count("the server has stopped") == 2
    # The address is free for the next one.
    twins.server = ServerProcess(twins.made, options=("--workers", "2")).ready()
    assert twins.acme.clients["developer"].models.get("model").latest_version == 1


def heeds(pid: int) -> bool:
    """Return whether a process has a handler for SIGTERM."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    (mask,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(mask, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("options", [(), ("--workers", "2")], ids=["one", "two"])
def test_a_server_that_is_told_to_stop_while_it_starts_does(tmp_path: Path, options: tuple[str, ...]) -> None:
    made = Installation(tmp_path).init()
    server = ServerProcess(made, options=options)

    def starting() -> bool:
        pids = children(server.process.pid) if options else [server.process.pid]
        return any(heeds(pid) for pid in pids)

    wait_until(starting, "a server that heeds signals")
    started = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - started < 20
