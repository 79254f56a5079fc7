"""The isolation matrix, generated from the route table: every route, every role, foreign against missing.

A foreign object answers, to the byte (request id aside), what an object that never existed answers; no row changes, and
the refusal is one entry of the caller's log and of no other. The matrix fails when a kind or a route is added without
its row (`things.py`, `routes.py`).
"""

import inspect
import re
from typing import Any

import httpx
import pytest
from starlette.routing import Route as Served

from isolation.routes import (
    CLOSED,
    EVERY_ROLE,
    OPEN,
    PLATFORM,
    ROUTES,
    WITH_IDS,
    Asked,
    code_of,
    find,
    guard_of,
    lacking,
    of,
    seen,
)
from isolation.things import KINDS, NO_THINGS, Things
from modelkeep_platform.core.actions import PLATFORM_ACTIONS, Action
from modelkeep_platform.core.refs import Kind
from modelkeep_platform.http.routing import Public
from modelkeep_platform.http.v2 import _TEMPLATES, DataPlane
from services.evidence import Evidence
from services.house import ROLES, House

pytestmark = pytest.mark.e2e
CODES = {403: "forbidden", 404: "not_found", 422: "invalid_name"}
INFER = find("POST", "/v2/models/{name}/infer")


def denied(evidence: Evidence, answer: httpx.Response) -> list[tuple[str, str, str]]:
    """Return whose log has what action of a call with what outcome."""
    return [(one.tenant, one.action, one.outcome) for one in evidence.entries(answer.headers["x-request-id"])]


# --- nothing is without its row -----------------------------------------------------------------------


def test_every_kind_has_its_thing_or_a_reason() -> None:
    assert set(Kind) == set(KINDS) | set(NO_THINGS)
    assert not set(KINDS) & set(NO_THINGS)
    assert all(NO_THINGS.values())


def test_every_thing_is_there_and_asked_for(things: Things) -> None:
    asked_for = set().union(*(asked.kinds() for asked in WITH_IDS))
    assert set(KINDS.values()) <= asked_for == set(things.own) == set(things.foreign) == set(things.missing)
    assert all(things.foreign[kind] != things.missing[kind] for kind in set(KINDS.values()))


def test_every_route_of_the_management_api_and_the_issuer_has_its_row(house: House) -> None:
    management: Any = house.server.platform.edge.asgi
    served = {
        (method, route.path)
        for route in management._management.routes
        if isinstance(route, Served)
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert len(management._management.routes) == len({path for _, path in served}), "a route of another class"
    assert served == {route for route in ROUTES if not is_inference(route[1])}


def test_every_route_of_the_data_plane_has_its_row() -> None:
    source = inspect.getsource(DataPlane._route)
    literal = set(re.findall(r'"([A-Z]+ /v2[^"]*)"', source))
    # Each case names its route, but the last, which finds none; and one names those of models.
    assert source.count("case ") - 1 == source.count("matched(scope") == len(literal) + 1
    rows = {f"{method} {path.replace('/versions/{version}', '')}" for method, path in ROUTES if is_inference(path)}
    assert rows == literal | {template for template, _ in _TEMPLATES.values()}


def is_inference(path: str) -> bool:
    return path == "/v2" or path.startswith("/v2/")


def test_what_needs_no_token_is_what_the_application_calls_public(house: House) -> None:
    endpoints = house.server.platform.edge.endpoints
    public = {(one.method, one.path) for one in endpoints if isinstance(one.guard, Public)}
    assert public == {asked.route for asked in OPEN if asked.route[1].startswith(("/v1/", "/.well-known/"))}


# --- foreign against missing --------------------------------------------------------------------------


@pytest.mark.parametrize("role", EVERY_ROLE)
@pytest.mark.parametrize("asked", WITH_IDS, ids=str)
def test_foreign_looks_like_missing_to_the_byte(
    house: House, things: Things, evidence: Evidence, asked: Asked, role: str
) -> None:
    guard = guard_of(house, asked.route)
    assert isinstance(guard, Action)
    with house.http(house.globex.role(role)) as http, evidence.nothing_changes():
        answers = [asked.call(http, ids) for ids in (things.foreign, things.missing)]
    foreign, missing = answers
    assert seen(foreign) == seen(missing)
    # A role without the right is refused before anything is looked up; whoever has it learns nothing.
    lacks = lacking(role, asked.row.first)
    assert foreign.status_code == (403 if lacks else asked.row.unknown), foreign.text
    if foreign.status_code == 200:
        assert foreign.json()["items"] == []
        assert [denied(evidence, answer) for answer in answers] == [[], []]
        return
    assert code_of(foreign) == CODES[foreign.status_code]
    action = lacks or (guard if foreign.status_code == 422 else asked.deciding(guard)[-1])
    for answer in answers:
        assert denied(evidence, answer) == [("globex", action, "denied")]


NAMED = [asked for asked in WITH_IDS if asked.kinds() & {"model", "dataset"} and asked.row.unknown == 404]
"""What is about a thing that has a name; where a name that is free is refused as illegal, it is what is asked for."""


@pytest.mark.parametrize("role", EVERY_ROLE)
@pytest.mark.parametrize("asked", NAMED, ids=str)
def test_a_name_that_the_own_tenant_has_not_answers_as_a_foreign_one(
    house: House, things: Things, evidence: Evidence, asked: Asked, role: str
) -> None:
    guard = guard_of(house, asked.route)
    assert isinstance(guard, Action)
    with house.http(house.globex.role(role)) as http, evidence.nothing_changes():
        answers = [asked.call(http, ids) for ids in (things.never, things.missing)]
    assert seen(answers[0]) == seen(answers[1])
    lacks = lacking(role, asked.row.first)
    assert (answers[0].status_code, code_of(answers[0])) == ((403, "forbidden") if lacks else (404, "not_found"))
    for answer in answers:
        assert denied(evidence, answer) == [("globex", lacks or asked.deciding(guard)[-1], "denied")]


@pytest.mark.parametrize("asked", CLOSED, ids=str)
def test_an_operator_reaches_nothing_of_a_tenant(
    house: House, things: Things, evidence: Evidence, asked: Asked
) -> None:
    guard = guard_of(house, asked.route)
    if asked in of(PLATFORM) or not isinstance(guard, Action):
        return  # the operator's own work, and who it is
    with house.http(house.operator) as http, evidence.nothing_changes():
        answers = [asked.call(http, ids) for ids in (things.foreign, things.missing)]
    foreign, missing = answers
    assert seen(foreign) == seen(missing)
    if guard in PLATFORM_ACTIONS:
        # An operator reads the platform's own log, and in it nothing of a tenant's.
        assert foreign.status_code == (asked.row.unknown if asked.own is None else 200)
        if "items" in foreign.text:
            of_acme = {entry.id for entry in house.acme.admin.audit.entries(limit=None)}
            assert not of_acme & {item["id"] for item in foreign.json()["items"]}
        return
    assert (foreign.status_code, code_of(foreign)) == (403, "operator_forbidden")
    for answer in answers:
        assert denied(evidence, answer) == [("platform", guard, "denied")]


@pytest.mark.parametrize("asked", CLOSED, ids=str)
@pytest.mark.parametrize(
    ("header", "code"),
    [
        ("", "token_missing"),
        ("Bearer", "token_missing"),
        ("Bearer nonsense", "token_invalid"),
        ("Basic YTpi", "token_missing"),
    ],
)
def test_nobody_is_let_in_without_a_token(
    house: House, things: Things, evidence: Evidence, asked: Asked, header: str, code: str
) -> None:
    headers = {"authorization": header} if header else {}
    with house.http(None) as http, evidence.strangers_counted(2):
        own, missing = (asked.call(http, ids, headers) for ids in (things.own, things.missing))
    assert seen(own) == seen(missing)
    assert (own.status_code, code_of(own)) == (401, code)
    assert "oauth-protected-resource" in own.headers["www-authenticate"]
    assert [denied(evidence, answer) for answer in (own, missing)] == [[], []]


@pytest.mark.parametrize("role", EVERY_ROLE)
@pytest.mark.parametrize("asked", of(PLATFORM), ids=str)
def test_no_tenant_does_the_operators_work(house: House, evidence: Evidence, asked: Asked, role: str) -> None:
    assert guard_of(house, asked.route) in PLATFORM_ACTIONS
    method, template = asked.route
    with house.http(house.acme.role(role)) as http, evidence.nothing_changes():
        body = asked.own.body if asked.own is not None else None
        known, never = (http.request(method, template.format(slug=slug), json=body) for slug in ("globex", "never"))
    assert seen(known) == seen(never)
    assert (known.status_code, code_of(known)) == (403, "operator_only")
    for answer in (known, never):
        assert denied(evidence, answer) == [("acme", guard_of(house, asked.route), "denied")]


# --- roles --------------------------------------------------------------------------------------------

BEGAN = "developer"
NOT_HERE = "an upload belongs to the principal that began it; to everybody else it is not there"


@pytest.mark.parametrize("role", EVERY_ROLE)
@pytest.mark.parametrize("asked", [one for one in CLOSED if one not in of(PLATFORM)], ids=str)
def test_own_things_are_opened_by_the_routes_own_action_alone(
    house: House, things: Things, evidence: Evidence, asked: Asked, role: str
) -> None:
    """What `policies/cases` has of a role and the route's declared action is what the route does."""
    guard = guard_of(house, asked.route)
    if not isinstance(guard, Action):
        return  # everyone may know who they are
    lacks = lacking(role, asked.deciding(guard))
    if lacks is None and asked.route[0] != "GET" and not is_inference(asked.route[1]):
        # It would be done, and is, to a thing made for it, in contract/test_openapi_contract.py:
        # test_every_operation_is_done_by_the_roles_that_policy_lets_and_refused_to_the_others.
        return
    with house.http(house.acme.role(role)) as http, evidence.nothing_changes():
        answer = asked.call(http, things.own)
    if lacks is None and not (asked.route[1].startswith("/v1/uploads/") and role != BEGAN):
        assert answer.status_code == 200, answer.text
        return
    assert denied(evidence, answer) == [("acme", lacks or guard, "denied")]
    if asked.route[1].startswith("/v1/uploads/"):
        assert (answer.status_code, code_of(answer)) == (404, "not_found"), NOT_HERE
        return
    assert (answer.status_code, code_of(answer)) == (403, "forbidden"), answer.text
    if not is_inference(asked.route[1]):
        details = answer.json()["error"]["details"]
        assert details["action"] == lacks
        assert details["reasons"] == [f"no policy permits `{lacks}` to the roles `{role}`"]


# --- odd ids ------------------------------------------------------------------------------------------

NO_PATH = (404, "no_such_path")
NOT_FOUND = (404, "not_found")
ODD_IDS = [
    pytest.param("%2e%2e", NOT_FOUND, id="encoded dots"),
    pytest.param("acme%2fmodel", NO_PATH, id="encoded slash"),
    pytest.param("acme%252fmodel", NOT_FOUND, id="encoded twice"),
    pytest.param("acme~model%00", NOT_FOUND, id="nul"),
    pytest.param("acme~acme~model", NOT_FOUND, id="two owners"),
    pytest.param("~model", NOT_FOUND, id="no owner"),
    pytest.param("acme~", NOT_FOUND, id="no name"),
    pytest.param("ACME~MODEL", NOT_FOUND, id="capitals"),
    pytest.param("%F0%9D%92%B6cme~model", NOT_FOUND, id="mathematical letter"),
    pytest.param("аcme~model", NOT_FOUND, id="cyrillic letter"),
    pytest.param("acme~model' OR '1'='1", NOT_FOUND, id="quotes"),
    pytest.param("x" * 3000, NOT_FOUND, id="long"),
]


@pytest.mark.parametrize(("odd", "expected"), ODD_IDS)
@pytest.mark.parametrize("path", ["/v1/models/{}", "/v1/datasets/{}", "/v1/jobs/{}", "/v2/models/{}", "/v1/budgets/{}"])
def test_odd_ids_answer_as_what_is_missing(
    house: House, evidence: Evidence, path: str, odd: str, expected: tuple[int, str]
) -> None:
    with house.http(house.globex.admin) as http, evidence.nothing_changes():
        answer, missing = http.get(path.format(odd)), http.get(path.format("acme~never"))
    assert (answer.status_code, code_of(answer)) == expected, answer.text
    if expected == NOT_FOUND:
        assert seen(answer) == seen(missing)
    assert "acme" not in answer.text


# --- across tenants -----------------------------------------------------------------------------------


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


def test_a_grant_tells_that_a_tenant_is_there(house: House, things: Things, evidence: Evidence) -> None:
    """That is all that is learnt of a tenant by its name, by whoever may grant, and each question is an entry."""
    body = {"kind": "model", "name": "model", "actions": ["model:read"]}
    ours = house.globex.admin.models.get("model").id

    def ask(http: httpx.Client, grantee: str) -> httpx.Response:
        answer = http.post("/v1/grants", json={**body, "grantee": grantee})
        assert "r=" in answer.headers["ratelimit"], "each question counts"
        return answer

    with house.http(house.globex.admin) as http:
        there = ask(http, "acme")
        house.operator.tenants.suspend("acme")
        try:
            suspended = ask(http, "acme")
        finally:
            house.operator.tenants.resume("acme")
        assert there.status_code == 201, there.text
        made = there.json()
        grant_id, _ = made.pop("id"), made.pop("created_at")
        assert made == {**body, "grantee": "acme", "object_id": ours, "expires_at": None}
        assert [one.tenant for one in evidence.entries(there.headers["x-request-id"])] == ["globex"]
        assert http.delete(f"/v1/grants/{grant_id}").status_code == 204
        # One that is suspended answers as one that is not there.
        assert (suspended.status_code, code_of(suspended)) == (422, "invalid_grantee")
        with evidence.nothing_changes():
            refused = {slug: ask(http, slug) for slug in ("never", "globex", "platform")}
        for slug, answer in refused.items():
            assert (answer.status_code, code_of(answer)) == (422, "invalid_grantee")
            assert answer.json()["error"]["message"] == f"`{slug}` is not another tenant's slug; ask them for theirs"
            assert denied(evidence, answer) == [("globex", Action.GRANT_CREATE, "denied")]
    for role in ROLES:
        with house.http(house.globex.role(role)) as http, evidence.nothing_changes():
            assert seen(ask(http, "acme")) == seen(ask(http, "never")), role


def test_a_refusal_of_what_is_foreign_is_read_in_the_callers_log_and_not_in_the_owners(
    house: House, things: Things
) -> None:
    with house.http(house.globex.admin) as http:
        answer = http.get(f"/v1/models/{things.foreign['model']}")
    request_id = answer.json()["error"]["request_id"]
    entry = house.globex.admin.audit.wait_for(request_id)
    assert (entry.action, entry.outcome) == (Action.MODEL_READ, "denied")
    assert house.acme.admin.audit.entries(request_id=request_id) == []


def test_what_a_suspended_tenant_granted_stops_with_it_and_comes_back_with_it(house: House, things: Things) -> None:
    grant = house.acme.admin.grants.create("model", "model", grantee="globex", actions=["model:predict"])
    with house.http(house.globex.admin) as http:
        assert INFER.call(http, things.foreign).status_code == 200
        house.operator.tenants.suspend("acme")
        try:
            stopped, never = (INFER.call(http, ids) for ids in (things.foreign, things.missing))
            assert seen(stopped) == seen(never)
        finally:
            house.operator.tenants.resume("acme")
        assert INFER.call(http, things.foreign).status_code == 200
    house.acme.admin.grants.revoke(grant.id)
