"""The isolation matrix, generated from the route table: every route, every role, foreign against missing.

A foreign object answers, to the byte (request id aside), what an object that never existed answers. The matrix fails
when a route is added without its row here.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from isolation.things import Things
from modelkeep_platform.core.actions import Action
from modelkeep_platform.http.routing import Endpoint
from services.house import GRAPH, ROLES, WEIGHTS, House, job

pytestmark = pytest.mark.e2e
Ids = Mapping[str, str]
EVERY_ROLE = ("tenant-admin", *ROLES)


@dataclass(frozen=True, slots=True)
class Row:
    """How a route is called with some ids: what goes into its path, query and body."""

    path: Callable[[Ids], dict[str, str]]
    body: Callable[[Ids], object] | None = None
    query: Callable[[Ids], dict[str, str]] = lambda _ids: {}


@dataclass(frozen=True, slots=True)
class Own:
    """A route on which no id of another tenant can stand, and why."""

    why: str


def named(parameter: str, kind: str) -> Callable[[Ids], dict[str, str]]:
    return lambda ids: {parameter: ids[kind]}


def version(ids: Ids) -> dict[str, str]:
    return {"name": ids["model"], "version": ids["version"]}


LISTS = Own("it lists the caller's own tenant only; what it shows is checked in test_lists")
MAKES = Own("it makes something in the caller's own tenant from a name that is free")
PLATFORM = Own("the operator's; tenants' callers are refused before anything is looked up")
SELF = Own("it speaks of the caller alone")
NUMBERED = Own("policy versions are numbers within the caller's own tenant; there is no foreign one to name")

ROUTES: dict[tuple[str, str], Row | Own] = {
    ("GET", "/.well-known/oauth-protected-resource"): SELF,
    ("GET", "/v1/openapi.json"): SELF,
    ("GET", "/v1/whoami"): SELF,
    ("POST", "/v1/enrolments"): Own("the token in the body is the credential; tests/attacks/test_login_page.py"),
    ("POST", "/v1/tenants"): PLATFORM,
    ("GET", "/v1/tenants"): PLATFORM,
    ("POST", "/v1/tenants/{slug}/suspend"): PLATFORM,
    ("POST", "/v1/tenants/{slug}/resume"): PLATFORM,
    ("POST", "/v1/tenants/{slug}/enrolment"): PLATFORM,
    ("POST", "/v1/issuer/rotate-key"): PLATFORM,
    ("GET", "/v1/members"): LISTS,
    ("POST", "/v1/members"): MAKES,
    ("PATCH", "/v1/members/{id}"): Row(named("id", "member"), lambda _ids: {"roles": ["auditor"]}),
    ("DELETE", "/v1/members/{id}"): Row(named("id", "member")),
    ("GET", "/v1/service-accounts"): LISTS,
    ("POST", "/v1/service-accounts"): MAKES,
    ("POST", "/v1/service-accounts/{id}/rotate"): Row(named("id", "service_account")),
    ("DELETE", "/v1/service-accounts/{id}"): Row(named("id", "service_account")),
    ("GET", "/v1/models"): LISTS,
    ("GET", "/v1/models/{name}"): Row(named("name", "model")),
    ("DELETE", "/v1/models/{name}"): Row(named("name", "model")),
    ("PUT", "/v1/models/{name}/aliases/{alias}"): Row(
        lambda ids: {"name": ids["model"], "alias": "production"}, lambda _ids: {"version": 1}
    ),
    ("DELETE", "/v1/models/{name}/aliases/{alias}"): Row(lambda ids: {"name": ids["model"], "alias": "production"}),
    ("POST", "/v1/models/{name}/versions"): Row(
        named("name", "model"),
        lambda _ids: {"graph": GRAPH, "weights_bytes": len(WEIGHTS), "weights_sha256": "0" * 64},
    ),
    ("GET", "/v1/models/{name}/versions"): Row(named("name", "model")),
    ("GET", "/v1/models/{name}/versions/{version}"): Row(version),
    ("DELETE", "/v1/models/{name}/versions/{version}"): Row(version),
    ("GET", "/v1/models/{name}/versions/{version}/graph"): Row(version),
    ("GET", "/v1/models/{name}/versions/{version}/weights"): Row(version),
    ("GET", "/v1/uploads/{id}"): Row(named("id", "upload")),
    ("PUT", "/v1/uploads/{id}/parts/{number}"): Row(
        lambda ids: {"id": ids["upload"], "number": "0"}, lambda _ids: b"x"
    ),
    ("POST", "/v1/uploads/{id}/complete"): Row(named("id", "upload")),
    ("DELETE", "/v1/uploads/{id}"): Row(named("id", "upload")),
    ("POST", "/v1/datasets"): MAKES,
    ("GET", "/v1/datasets"): LISTS,
    ("GET", "/v1/datasets/{name}"): Row(named("name", "dataset")),
    ("DELETE", "/v1/datasets/{name}"): Row(named("name", "dataset")),
    ("GET", "/v1/budgets"): LISTS,
    ("GET", "/v1/budgets/{name}"): Row(named("name", "dataset")),
    ("POST", "/v1/job-plans"): Row(lambda _ids: {}, lambda ids: job(dataset=ids["dataset"])),
    ("POST", "/v1/jobs"): Row(lambda _ids: {}, lambda ids: job(dataset=ids["dataset"])),
    ("GET", "/v1/jobs"): LISTS,
    ("GET", "/v1/jobs/{id}"): Row(named("id", "job")),
    ("POST", "/v1/jobs/{id}/cancel"): Row(named("id", "job")),
    ("GET", "/v1/jobs/{id}/logs"): Row(named("id", "job")),
    ("POST", "/v1/grants"): Row(
        lambda _ids: {},
        lambda ids: {"kind": "model", "name": ids["model"], "grantee": "acme", "actions": ["model:predict"]},
    ),
    ("GET", "/v1/grants"): LISTS,
    ("DELETE", "/v1/grants/{id}"): Row(named("id", "grant")),
    ("GET", "/v1/policies"): LISTS,
    ("POST", "/v1/policies"): MAKES,
    ("POST", "/v1/policies/check"): MAKES,
    ("GET", "/v1/policies/{version}"): NUMBERED,
    ("POST", "/v1/policies/{version}/activate"): NUMBERED,
    ("GET", "/v1/audit/entries"): LISTS,
    ("GET", "/v1/audit/checkpoint"): Own("the log's checkpoint is one for all; it names nobody"),
    ("GET", "/v1/audit/key"): Own("the log's key is one for all"),
    ("GET", "/v1/audit/entries/{index}/proof"): Row(named("index", "log_index")),
    ("GET", "/v1/audit/consistency"): Own("the proof is about the tree, which is one for all"),
    ("GET", "/v2/models/{name}"): Row(named("name", "model")),
    ("GET", "/v2/models/{name}/ready"): Row(named("name", "model")),
    ("GET", "/v2/models/{name}/versions/{version}"): Row(version),
    ("GET", "/v2/models/{name}/versions/{version}/ready"): Row(version),
    ("POST", "/v2/models/{name}/infer"): Row(
        named("name", "model"),
        lambda _ids: {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 1]}]},
    ),
    ("POST", "/v2/models/{name}/versions/{version}/infer"): Row(
        version, lambda _ids: {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 1]}]}
    ),
}
WITH_IDS = [route for route, row in ROUTES.items() if isinstance(row, Row)]


def call(http: httpx.Client, route: tuple[str, str], ids: Ids) -> httpx.Response:
    row = ROUTES[route]
    assert isinstance(row, Row)
    method, path = route[0], route[1].format(**row.path(ids))
    body = None if row.body is None else row.body(ids)
    if isinstance(body, bytes):
        digest = {"content-digest": "sha-256=:LXEWQrcmsEQBYnyp+6wy9chTD7GQPMTbAiWHF5IaSIE=:"}
        return http.request(method, path, content=body, headers=digest, params=row.query(ids))
    return http.request(method, path, json=body, params=row.query(ids))


def seen(answer: httpx.Response) -> tuple[object, ...]:
    """Return all that an answer shows, request id and date aside."""
    request_id = answer.headers["x-request-id"]
    hidden = {"x-request-id", "date", "ratelimit"}  # the last: where the caller stands, whatever it asked for
    headers = sorted((name, value) for name, value in answer.headers.items() if name not in hidden)
    text = answer.text.replace(request_id, "-")
    # A refusal may repeat the caller's own words; its length then is theirs, too.
    for word in ("acme~model", "acme~never", "acme~rows"):
        text = text.replace(word, "what was asked for")
    return answer.status_code, text, [(name, value) for name, value in headers if name != "content-length"]


def served(house: House) -> list[Endpoint]:
    return list(house.server.platform.edge.endpoints)


def test_every_route_has_its_row(house: House) -> None:
    routes = {(endpoint.method, endpoint.path) for endpoint in served(house)}
    assert routes == {route for route in ROUTES if not route[1].startswith("/v2/")}


@pytest.mark.parametrize("role", EVERY_ROLE)
@pytest.mark.parametrize("route", WITH_IDS, ids=" ".join)
def test_foreign_looks_like_missing_to_the_byte(
    house: House, things: Things, route: tuple[str, str], role: str
) -> None:
    with house.http(house.globex.role(role)) as http:
        foreign, missing = call(http, route, things.foreign), call(http, route, things.missing)
    assert seen(foreign) == seen(missing)
    makes = route == ("POST", "/v1/models/{name}/versions")
    assert foreign.status_code in ({403, 404, 422} if makes else {403, 404}), foreign.text
    # A role without the right is refused before anything is looked up; whoever has it learns nothing.
    if foreign.status_code == 403:
        assert role != "tenant-admin"


@pytest.mark.parametrize("route", WITH_IDS, ids=" ".join)
def test_an_operator_reaches_nothing_of_a_tenant(house: House, things: Things, route: tuple[str, str]) -> None:
    with house.http(house.operator) as http:
        foreign, missing = call(http, route, things.foreign), call(http, route, things.missing)
    assert seen(foreign) == seen(missing)
    assert foreign.status_code in {403, 404}, foreign.text


@pytest.mark.parametrize("route", [*WITH_IDS, ("GET", "/v1/whoami")], ids=" ".join)
@pytest.mark.parametrize("header", ["", "Bearer", "Bearer nonsense", "Basic YTpi"])
def test_nobody_is_let_in_without_a_token(house: House, things: Things, route: tuple[str, str], header: str) -> None:
    headers = {"authorization": header} if header else {}
    row = ROUTES[route]
    path = route[1].format(**row.path(things.own)) if isinstance(row, Row) else route[1]
    answer = httpx.request(route[0], f"{house.url}{path}", headers=headers, timeout=30)
    assert answer.status_code == 401
    assert "oauth-protected-resource" in answer.headers["www-authenticate"]


PLATFORM_ROUTES = [route for route, row in ROUTES.items() if row is PLATFORM]


@pytest.mark.parametrize("role", EVERY_ROLE)
@pytest.mark.parametrize("route", PLATFORM_ROUTES, ids=" ".join)
def test_no_tenant_does_the_operators_work(house: House, route: tuple[str, str], role: str) -> None:
    with house.http(house.acme.role(role)) as http:
        known = http.request(route[0], route[1].format(slug="globex"), json={"slug": "x", "name": "x"})
        never = http.request(route[0], route[1].format(slug="never"), json={"slug": "x", "name": "x"})
    assert seen(known) == seen(never)
    assert (known.status_code, known.json()["error"]["code"]) == (403, "operator_only")


OWN_ROLE_DENIED: dict[str, set[str]] = {
    "developer": {"members", "service-accounts", "grants", "policies", "audit"},
    "analyst": {"members", "service-accounts", "grants", "policies", "audit"},
    "auditor": {"models", "uploads", "datasets", "jobs", "job-plans"},
}


@pytest.mark.parametrize("endpoint_path", sorted({path for _, path in WITH_IDS if path.startswith("/v1/")}))
@pytest.mark.parametrize("role", ROLES)
def test_own_things_without_the_right_are_403_with_reasons(
    house: House, things: Things, endpoint_path: str, role: str
) -> None:
    noun = endpoint_path.split("/")[2]
    if noun not in OWN_ROLE_DENIED[role]:
        return
    with house.http(house.acme.role(role)) as http:
        for route in (route for route in WITH_IDS if route[1] == endpoint_path):
            answer = call(http, route, things.own)
            if noun == "uploads":
                # An upload belongs to the principal that began it; to everybody else it is not there.
                assert answer.status_code == 404
                continue
            assert answer.status_code == 403, f"{route} {answer.text}"
            error = answer.json()["error"]
            assert error["details"]["reasons"], error


def test_lists_show_only_what_is_own(house: House, things: Things) -> None:
    foreign = {value for kind, value in things.own.items() if kind not in {"version", "log_index"}}
    with house.http(house.globex.admin) as http:
        for route, row in ROUTES.items():
            if row is not LISTS:
                continue
            shown = http.get(route[1]).json()["items"]
            ids = {str(item.get(key)) for item in shown for key in ("id", "name", "dataset") if item.get(key)}
            assert not ids & (foreign - {"model", "rows"}), route
            assert not any(item.get("owner") == "acme" for item in shown), route


ODD_IDS = [
    pytest.param("%2e%2e", id="encoded dots"),
    pytest.param("acme%2fmodel", id="encoded slash"),
    pytest.param("acme%252fmodel", id="encoded twice"),
    pytest.param("acme~model%00", id="nul"),
    pytest.param("acme~acme~model", id="two owners"),
    pytest.param("~model", id="no owner"),
    pytest.param("acme~", id="no name"),
    pytest.param("ACME~MODEL", id="capitals"),
    pytest.param("%F0%9D%92%B6cme~model", id="mathematical letter"),
    pytest.param("аcme~model", id="cyrillic letter"),
    pytest.param("acme~model' OR '1'='1", id="quotes"),
    pytest.param("x" * 3000, id="long"),
]


@pytest.mark.parametrize("odd", ODD_IDS)
@pytest.mark.parametrize("path", ["/v1/models/{}", "/v1/datasets/{}", "/v1/jobs/{}", "/v2/models/{}", "/v1/budgets/{}"])
def test_odd_ids_are_not_found_in_the_documented_shape(house: House, path: str, odd: str) -> None:
    with house.http(house.globex.admin) as http:
        answer = http.get(path.format(odd))
    assert answer.status_code in {404, 405, 422}, answer.text
    error = answer.json()["error"]
    assert "acme" not in json.dumps(error).lower() or isinstance(error, str)


def test_a_grant_opens_exactly_its_verb_and_its_object(house: House, things: Things) -> None:
    acme, globex = house.acme.admin, house.globex.admin
    grant = acme.grants.create("model", "model", grantee="globex", actions=["model:predict"])
    try:
        with house.http(globex) as http:
            infer = ("POST", "/v2/models/{name}/infer")
            assert call(http, infer, things.foreign).json()["outputs"][0]["data"] == [3.5, 6.5]
            for route in WITH_IDS:
                row = ROUTES[route]
                assert isinstance(row, Row)
                if "model" not in str(row.path(dict.fromkeys(things.own, "model"))) or route[1].startswith("/v2/"):
                    continue  # the whole of /v2 is what predicting needs
                answer = call(http, route, things.foreign)
                assert answer.status_code in {403, 404, 422}, f"{route} {answer.text}"
    finally:
        acme.grants.revoke(grant.id)
    with house.http(globex) as http:
        after, never = (call(http, infer, ids) for ids in (things.foreign, things.missing))
    assert seen(after) == seen(never)


def test_idempotency_keys_of_one_tenant_are_unknown_to_another(house: House) -> None:
    key = {"idempotency-key": "the-same-key-for-both"}
    answers: list[Any] = []
    for tenant in (house.acme, house.globex):
        with house.http(tenant.admin) as http:
            body = {"name": "same-key", "roles": ["auditor"]}
            answers.append(http.post("/v1/service-accounts", json=body, headers=key))
    assert [answer.status_code for answer in answers] == [201, 201]
    ids = [answer.json()["service_account"]["id"] for answer in answers]
    assert ids[0] != ids[1]


def test_refusals_are_recorded_in_the_callers_log_and_not_in_the_owners(house: House, things: Things) -> None:
    with house.http(house.globex.admin) as http:
        answer = http.get(f"/v1/models/{things.foreign['model']}")
    request_id = answer.json()["error"]["request_id"]
    entry = house.globex.admin.audit.wait_for(request_id)
    assert (entry.action, entry.outcome) == (Action.MODEL_READ, "denied")
    assert house.acme.admin.audit.entries(request_id=request_id) == []


def test_what_a_suspended_tenant_granted_stops_with_it_and_comes_back_with_it(house: House, things: Things) -> None:
    grant = house.acme.admin.grants.create("model", "model", grantee="globex", actions=["model:predict"])
    infer = ("POST", "/v2/models/{name}/infer")
    with house.http(house.globex.admin) as http:
        assert call(http, infer, things.foreign).status_code == 200
        house.operator.tenants.suspend("acme")
        try:
            stopped, never = (call(http, infer, ids) for ids in (things.foreign, things.missing))
            assert seen(stopped) == seen(never)
        finally:
            house.operator.tenants.resume("acme")
        assert call(http, infer, things.foreign).status_code == 200
    house.acme.admin.grants.revoke(grant.id)
