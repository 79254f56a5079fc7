"""Every limit, set for one tenant while the server runs: it refuses that tenant alone, and what is taken back is over.

Each limit is pressed four times: as the settings have it, set for Acme, by Globex meanwhile, and after it was taken
back. A limit without its row here fails the test.
"""

import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import httpx
import pytest

from modelkeep import Client
from modelkeep.errors import ForbiddenError, InvalidRequestError
from modelkeep.types import AuditEntry
from modelkeep_platform.core.limits import LIMITS
from services.house import GRAPH, House, Tenant, job, wait_until

pytestmark = pytest.mark.e2e
INFER = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 1]}]}
_names = count()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(Path(tmp_path_factory.mktemp("limits")))
    for tenant in (house.acme, house.globex):
        house.fill(tenant)
    yield house
    house.close()


Said = tuple[int, str]
OK: Said = (200, "")


def said(answer: httpx.Response) -> Said:
    """Return status and code; every success is `OK`."""
    if answer.is_success:
        return OK
    error = answer.json()["error"]
    return answer.status_code, answer.headers["x-error-code"] if isinstance(error, str) else error["code"]


def requests(house: House, tenant: Tenant) -> Said:
    with house.http(tenant.clients["developer"]) as http:
        http.get("/v1/whoami")
        return said(http.get("/v1/whoami"))


def burst(house: House, tenant: Tenant) -> Said:
    """Ask as often as 3 seconds of 600 a minute are worth, after what was asked before has come in again."""
    house.operator.tenants.set_limits(tenant.slug, {"requests_per_minute": 600})
    try:
        time.sleep(2.5)
        with house.http(tenant.clients["developer"]) as http:
            answers = [said(http.get("/v1/whoami")) for _ in range(25)]
    finally:
        house.operator.tenants.set_limits(tenant.slug, {"requests_per_minute": None})
    return max(answers)


def at_once(house: House, tenant: Tenant) -> Said:
    """Ask while a request is under way: its head has come, its body does not."""
    host, _, port = house.url.removeprefix("http://").partition(":")
    limits = house.server.platform.edge.requests
    head = (
        f"POST /v2/models/model/infer HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer "
        f"{house.token(tenant.clients['developer'])}\r\ncontent-length: 100\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=10) as held:
        held.sendall(head.encode())
        wait_until(lambda: limits.under_way == 1, "the request to be under way")
        with house.http(tenant.clients["developer"]) as http:
            answer = said(http.get("/v1/whoami"))
    wait_until(lambda: not limits.under_way, "the request to be over")
    return answer


def upload(house: House, tenant: Tenant) -> Said:
    body = {"graph": GRAPH, "weights_bytes": 100, "weights_sha256": "0" * 64}
    with house.http(tenant.clients["developer"]) as http:
        begun = http.post(f"/v1/models/half-{next(_names)}/versions", json=body)
        if begun.is_success:
            http.delete(f"/v1/uploads/{begun.json()['upload']['id']}")
    return said(begun)


def start_job(house: House, tenant: Tenant) -> Said:
    with house.http(tenant.clients["developer"]) as http:
        started = http.post("/v1/jobs", json=job(dataset="open", privacy=None))
        if started.is_success:
            http.post(f"/v1/jobs/{started.json()['id']}/cancel")
    return said(started)


def run_job(house: House, tenant: Tenant) -> Said:
    """Return `OK` when a job leaves the queue within a second; a slot looks every 200 ms."""
    app = tenant.clients["developer"]
    started = app.jobs.create(job(dataset="open", privacy=None, steps=1))
    end = time.monotonic() + 1
    while app.jobs.get(started.id).state == "queued" and time.monotonic() < end:
        time.sleep(0.05)
    state = app.jobs.get(started.id).state
    app.jobs.cancel(started.id)
    wait_until(lambda: app.jobs.get(started.id).done, "the job to end")
    return (0, "queued") if state == "queued" else OK


def predict(house: House, tenant: Tenant) -> Said:
    with house.http(tenant.clients["developer"]) as http:
        return said(http.post("/v2/models/model/infer", json=INFER))


def invite(house: House, tenant: Tenant) -> Said:
    with house.http(tenant.admin) as http:
        return said(http.post("/v1/members", json={"username": f"person-{next(_names)}", "roles": ["analyst"]}))


def add_account(house: House, tenant: Tenant) -> Said:
    with house.http(tenant.admin) as http:
        return said(http.post("/v1/service-accounts", json={"name": f"app-{next(_names)}", "roles": ["analyst"]}))


def publish(house: House, tenant: Tenant) -> Said:
    with house.http(tenant.admin) as http:
        return said(http.post("/v1/policies", json={"text": f"// {next(_names)}"}))


def key(house: House, tenant: Tenant) -> Said:
    with house.http(tenant.admin) as http:
        headers = [{"idempotency-key": f"a-new-key-{next(_names)}"} for _ in range(2)]
        return [said(http.post("/v1/policies/check", json={"text": ""}, headers=one)) for one in headers][-1]


def refuse(house: House, tenant: Tenant) -> Said:
    """Return `OK` when the second of two refusals has an entry of its own."""
    ground = house.server.platform.ground
    ground.authorizer.close()  # what was counted before is over
    ground.refusals.sweep(unfinished=True)
    with house.http(tenant.clients["analyst"]) as http:
        answer = [http.get("/v1/members") for _ in range(2)][-1]
    entries = tenant.admin.audit.entries(request_id=answer.headers["x-request-id"])
    return OK if entries else (0, "counted")


@dataclass(frozen=True, slots=True)
class Case:
    """A limit's small value, what is tried, and what is answered under it."""

    value: int
    press: Callable[[House, Tenant], Said]
    refused: Said


CASES = {
    "requests_per_minute": Case(1, requests, (429, "rate_limited")),
    "principal_requests_per_minute": Case(1, requests, (429, "rate_limited")),
    "burst_seconds": Case(1, burst, (429, "rate_limited")),
    "concurrent_requests": Case(1, at_once, (429, "too_many_at_once")),
    "principal_concurrent_requests": Case(1, at_once, (429, "too_many_at_once")),
    "storage_mib": Case(0, upload, (409, "storage_exhausted")),
    "principal_storage_mib": Case(0, upload, (409, "storage_exhausted")),
    "open_uploads": Case(0, upload, (409, "too_many_uploads")),
    "principal_open_uploads": Case(0, upload, (409, "too_many_uploads")),
    "active_jobs": Case(0, start_job, (429, "too_many_jobs")),
    "principal_active_jobs": Case(0, start_job, (429, "too_many_jobs")),
    "running_jobs": Case(0, run_job, (0, "queued")),
    "serving_workers": Case(0, predict, (409, "serving_off")),
    "members": Case(0, invite, (409, "too_many_members")),
    "service_accounts": Case(0, add_account, (409, "too_many_service_accounts")),
    "policy_versions": Case(1, publish, (409, "too_many_policies")),
    "idempotency_keys": Case(1, key, (429, "too_many_keys")),
    "refusals_per_minute": Case(1, refuse, (0, "counted")),
    "principal_refusals_per_minute": Case(1, refuse, (0, "counted")),
}


def test_every_limit_has_its_case() -> None:
    assert set(CASES) == set(LIMITS)


@pytest.mark.parametrize("name", CASES)
def test_a_limit_of_one_tenant(house: House, name: str) -> None:
    case, tenants = CASES[name], house.operator.tenants
    assert case.press(house, house.acme) == OK
    set_to = tenants.set_limits("acme", {name: case.value}).limits[name]
    assert (set_to.value, set_to.own) == (case.value, True)
    try:
        assert case.press(house, house.acme) == case.refused
        assert case.press(house, house.globex) == OK
        assert not tenants.get("globex").limits[name].own
    finally:
        back = tenants.set_limits("acme", {name: None}).limits[name]
    assert (back.value, back.own) == (back.default, False)
    assert case.press(house, house.acme) == OK


@pytest.mark.parametrize("name", ["requests_per_minute", "principal_requests_per_minute"])
def test_every_answer_to_somebody_known_says_the_rate_that_binds(house: House, name: str) -> None:
    """The draft's fields, on both planes, of what is done and of what is refused; a stranger is told nothing."""
    plain = house.operator.tenants.get("acme").limits["principal_requests_per_minute"].value
    planes = (("GET", "/v1/whoami"), ("POST", "/v2/models/model/infer"))

    def told(tenant: Tenant, wanted: int) -> list[tuple[str, str]]:
        with house.http(tenant.clients["developer"]) as http:
            answers = [http.request(method, path, json=INFER if method == "POST" else None) for method, path in planes]
        assert {answer.status_code for answer in answers} == {wanted}
        return [(answer.headers["ratelimit-policy"], answer.headers["ratelimit"]) for answer in answers]

    def policies(tenant: Tenant, wanted: int = 200) -> set[str]:
        return {policy for policy, _ in told(tenant, wanted)}

    assert policies(house.acme) == {f'"requests";q={plain};w=60'}
    house.operator.tenants.set_limits("acme", {name: 240})
    try:
        found = told(house.acme, 200)
        assert {policy for policy, _ in found} == {'"requests";q=240;w=60'}
        assert all(re.fullmatch(r'"requests";r=\d+;t=\d+', standing) for _, standing in found)
        assert policies(house.globex) == {f'"requests";q={plain};w=60'}
        house.operator.tenants.set_limits("acme", {name: 1})
        with house.http(house.acme.clients["developer"]) as http:
            http.get("/v1/whoami")
        found = told(house.acme, 429)
        assert {policy for policy, _ in found} == {'"requests";q=1;w=60'}
        assert all(re.fullmatch(r'"requests";r=0;t=[1-9]\d*', standing) for _, standing in found)
    finally:
        house.operator.tenants.set_limits("acme", {name: None})
    with house.http(None) as http:
        strangers = [http.request(method, path, json={}) for method, path in planes]
    assert [answer.status_code for answer in strangers] == [401, 401]
    assert not [name for answer in strangers for name in answer.headers if name.startswith("ratelimit")]


def test_below_what_is_used_nothing_is_taken_away(house: House) -> None:
    before = {member.id for member in house.acme.admin.members.list()}
    set_to = house.operator.tenants.set_limits("acme", {"members": 0, "storage_mib": 0})
    try:
        assert set_to.limits["members"].exceeded
        assert set_to.limits["members"].used == len(before)
        assert {member.id for member in house.acme.admin.members.list()} == before
        assert predict(house, house.acme) == OK
        # What the operator looks at and what the tenant looks at are the same.
        assert house.acme.admin.tenant() == set_to
        for role in ("developer", "analyst", "auditor"):
            assert house.acme.role(role).tenant().limits == set_to.limits
    finally:
        house.operator.tenants.set_limits("acme", {"members": None, "storage_mib": None})


def test_nobody_of_a_tenant_sets_its_limits(house: House) -> None:
    before = house.acme.admin.tenant()
    for tenant, slug in ((house.acme, "acme"), (house.globex, "acme")):
        with pytest.raises(ForbiddenError) as caught:
            tenant.admin.tenants.set_limits(slug, {"members": 1})
        assert caught.value.code == "operator_only"
    assert house.acme.admin.tenant().limits == before.limits
    with pytest.raises(ForbiddenError):
        house.operator.tenant()


@pytest.mark.parametrize(
    ("body", "status", "code", "says"),
    [
        ({}, 422, "invalid_limit", "name a limit"),
        ({"memberz": 1}, 400, "invalid_body", "memberz"),
        ({"members": -1}, 400, "invalid_body", "$.members"),
        ({"members": "9"}, 400, "invalid_body", "$.members"),
        ({"members": 1.5}, 400, "invalid_body", "$.members"),
        ({"members": True}, 400, "invalid_body", "$.members"),
        ({"members": 10**9 + 1}, 422, "invalid_limit", "between 0 and 1000000000"),
        ({"members": 10**30}, 400, "invalid_body", "64 bits"),
        ({"members": 1, "requests_per_minute": 0}, 422, "invalid_limit", "suspend it"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_with_the_name(
    house: House, body: dict[str, object], status: int, code: str, says: str
) -> None:
    before = house.operator.tenants.get("acme").limits
    with house.http(house.operator) as http:
        answer = http.patch("/v1/tenants/acme/limits", json=body)
    assert said(answer) == (status, code)
    assert says in answer.json()["error"]["message"]
    assert house.operator.tenants.get("acme").limits == before


def test_both_logs_have_what_was_set(house: House) -> None:
    def of(client: Client) -> list[AuditEntry]:
        return [one for one in client.audit.entries(limit=50) if (one.action, one.outcome) == ("tenant:limit", "done")]

    house.operator.tenants.set_limits("acme", {"members": 77})
    house.operator.tenants.set_limits("acme", {"members": None})
    own, platforms = of(house.acme.admin), of(house.operator)
    for back, was_set, *_ in (own, platforms):
        assert (was_set.facts["members"], back.facts["members"]) == (77, "default")
        assert (was_set.actor_kind, was_set.kind) == ("operator", "tenant")
    assert (own[0].name, platforms[0].name) == (None, "operator")
    assert all("members" not in entry.facts for entry in of(house.globex.admin))


def test_an_unknown_tenant_and_an_absurd_number_from_the_sdk(house: House) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        house.operator.tenants.set_limits("acme", {"serving_workers": 2})
    assert caught.value.code == "invalid_limit"
    with house.http(house.operator) as http:
        assert said(http.patch("/v1/tenants/never/limits", json={"members": 1})) == (404, "not_found")
        assert said(http.get("/v1/tenants/never")) == (404, "not_found")
