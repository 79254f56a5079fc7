"""Every route with what can be asked of it: which ids go where, and which actions decide in which order."""

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from modelkeep_platform.core.actions import Action
from modelkeep_platform.http.routing import Authenticated, Endpoint, Public
from modelkeep_platform.http.v2 import _TEMPLATES
from services.house import GRAPH, PRIVATE, ROLES, SCHEMA, WEIGHTS, House, job

Ids = Mapping[str, str]
Route = tuple[str, str]
EVERY_ROLE = ("tenant-admin", *ROLES)
CASES = Path(__file__).resolve().parents[2] / "policies" / "cases"


def nothing(_ids: Ids) -> dict[str, str]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """How a route is called with some ids, and what somebody with every right learns of what is not there.

    Args:
        path: what goes into the path.
        body: what goes into the body.
        query: what goes into the query.
        says: tells rows of one route apart.
        first: actions on the caller's own collections that are decided before the thing is looked up.
        action: what decides about the thing, where it is not the route's guard.
        own_only: whether no grant opens it, because the thing must be the caller's own.
        unknown: the status for a thing that is not there.
    """

    path: Callable[[Ids], dict[str, str]] = nothing
    body: Callable[[Ids], object] | None = None
    query: Callable[[Ids], dict[str, str]] = nothing
    says: str = ""
    first: tuple[Action, ...] = ()
    action: Action | None = None
    own_only: bool = False
    unknown: int = 404


@dataclass(frozen=True, slots=True)
class Own:
    """A route on which no id of another tenant can stand: why, and how it is called."""

    why: str
    path: Mapping[str, str] | None = None
    body: object = None
    query: Mapping[str, str] | None = None


LISTS = "it lists the caller's own tenant only; what it shows is checked in test_lists.py"
MAKES = "it makes something in the caller's own tenant from a name that is free"
PLATFORM = "the operator's; tenants' callers are refused before anything is looked up"
SELF = "it speaks of the caller alone"
NUMBERED = "policy versions are numbers within the caller's own tenant; there is no foreign one to name"
PUBLIC = "it is read before anybody can log in"
CREDENTIAL = "what is in the form or the body is the credential; tests/attacks/test_login_page.py"


def named(parameter: str, kind: str) -> Callable[[Ids], dict[str, str]]:
    return lambda ids: {parameter: ids[kind]}


def version(ids: Ids) -> dict[str, str]:
    return {"name": ids["model"], "version": ids["version"]}


def alias(ids: Ids) -> dict[str, str]:
    return {"name": ids["model"], "alias": "production"}


def infer(_ids: Ids) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 1]}]}


def trains(ids: Ids) -> dict[str, Any]:
    return job(dataset=ids["dataset"])


def goes_on(ids: Ids) -> dict[str, Any]:
    return job(dataset="open", privacy=None, model={"name": ids["model"]})


def goes_on_from(ids: Ids, version: int | str) -> dict[str, Any]:
    """Return a job that goes on from one version of a model."""
    return job(dataset="open", privacy=None, model={"name": ids["model"], "version": version})


def goes_on_from_number(ids: Ids) -> dict[str, Any]:
    return goes_on_from(ids, 1)


def goes_on_from_alias(ids: Ids) -> dict[str, Any]:
    return goes_on_from(ids, "production")


def makes_by_name(ids: Ids) -> dict[str, Any]:
    return job(dataset="open", privacy=None, into=ids["model"])


PLANS, CREATES = (Action.JOB_PLAN,), (Action.JOB_CREATE, Action.MODEL_CREATE)
READS = (Action.AUDIT_READ,)
ACCOUNT, POLICY = {"name": "made", "roles": ["auditor"]}, {"text": ""}
DATASET = {
    "name": "made",
    "format": "csv",
    "schema": SCHEMA,
    "privacy": PRIVATE,
    "size_bytes": 10,
    "sha256": "0" * 64,
}
TENANT = {"slug": "acme"}

ROUTES: dict[Route, Own | Row | tuple[Own | Row, ...]] = {
    ("GET", "/.well-known/oauth-protected-resource"): Own(PUBLIC),
    ("GET", "/v1/openapi.json"): Own(PUBLIC),
    ("GET", "/v1/whoami"): Own(SELF),
    ("POST", "/v1/enrolments"): Own(CREDENTIAL),
    ("GET", "/v1/tenant"): Own(SELF),
    ("POST", "/v1/tenants"): Own(PLATFORM, body={"slug": "x", "name": "x"}),
    ("GET", "/v1/tenants"): Own(PLATFORM),
    ("GET", "/v1/tenants/{slug}"): Own(PLATFORM, TENANT),
    ("PATCH", "/v1/tenants/{slug}/limits"): Own(PLATFORM, TENANT, {"members": 1}),
    ("POST", "/v1/tenants/{slug}/suspend"): Own(PLATFORM, TENANT),
    ("POST", "/v1/tenants/{slug}/resume"): Own(PLATFORM, TENANT),
    ("POST", "/v1/tenants/{slug}/enrolment"): Own(PLATFORM, TENANT),
    ("POST", "/v1/issuer/rotate-key"): Own(PLATFORM),
    ("GET", "/v1/members"): Own(LISTS),
    ("POST", "/v1/members"): Own(MAKES, body={"username": "made", "roles": ["auditor"]}),
    ("PATCH", "/v1/members/{id}"): Row(path=named("id", "member"), body=lambda _ids: {"roles": ["auditor"]}),
    ("DELETE", "/v1/members/{id}"): Row(path=named("id", "member")),
    ("GET", "/v1/service-accounts"): Own(LISTS),
    ("POST", "/v1/service-accounts"): Own(MAKES, body=ACCOUNT),
    ("POST", "/v1/service-accounts/{id}/rotate"): Row(path=named("id", "service_account")),
    ("DELETE", "/v1/service-accounts/{id}"): Row(path=named("id", "service_account")),
    ("GET", "/v1/models"): Own(LISTS),
    ("GET", "/v1/models/{name}"): Row(path=named("name", "model")),
    ("DELETE", "/v1/models/{name}"): Row(path=named("name", "model")),
    ("PUT", "/v1/models/{name}/aliases/{alias}"): Row(path=alias, body=lambda _ids: {"version": 1}),
    ("DELETE", "/v1/models/{name}/aliases/{alias}"): Row(path=alias),
    ("POST", "/v1/models/{name}/versions"): Row(
        path=named("name", "model"),
        body=lambda _ids: {"graph": GRAPH, "weights_bytes": len(WEIGHTS), "weights_sha256": "0" * 64},
        first=(Action.MODEL_CREATE,),
        own_only=True,
        unknown=422,
    ),
    ("GET", "/v1/models/{name}/versions"): Row(path=named("name", "model")),
    ("GET", "/v1/models/{name}/versions/{version}"): Row(path=version),
    ("DELETE", "/v1/models/{name}/versions/{version}"): Row(path=version),
    ("GET", "/v1/models/{name}/versions/{version}/graph"): Row(path=version),
    ("GET", "/v1/models/{name}/versions/{version}/weights"): Row(path=version),
    ("GET", "/v1/uploads/{id}"): Row(path=named("id", "upload")),
    ("PUT", "/v1/uploads/{id}/parts/{number}"): Row(
        path=lambda ids: {"id": ids["upload"], "number": "0"}, body=lambda _ids: b"x"
    ),
    ("POST", "/v1/uploads/{id}/complete"): Row(path=named("id", "upload")),
    ("DELETE", "/v1/uploads/{id}"): Row(path=named("id", "upload")),
    ("POST", "/v1/datasets"): Own(MAKES, body=DATASET),
    ("GET", "/v1/datasets"): Own(LISTS),
    ("GET", "/v1/datasets/{name}"): Row(path=named("name", "dataset")),
    ("DELETE", "/v1/datasets/{name}"): Row(path=named("name", "dataset")),
    ("GET", "/v1/budgets"): Own(LISTS),
    ("GET", "/v1/budgets/{name}"): Row(path=named("name", "dataset")),
    ("POST", "/v1/job-plans"): (
        Row(body=trains, says="dataset", first=PLANS, action=Action.DATASET_TRAIN),
        Row(body=goes_on, says="model.name", first=PLANS, action=Action.MODEL_EXPORT),
        Row(body=goes_on_from_number, says="model.version", first=PLANS, action=Action.MODEL_EXPORT),
        Row(body=goes_on_from_alias, says="model.alias", first=PLANS, action=Action.MODEL_EXPORT),
        Row(body=makes_by_name, says="into", first=PLANS, own_only=True, unknown=422),
    ),
    ("POST", "/v1/jobs"): (
        Row(body=trains, says="dataset", first=CREATES, action=Action.DATASET_TRAIN),
        Row(body=goes_on, says="model.name", first=CREATES, action=Action.MODEL_EXPORT),
        Row(body=goes_on_from_number, says="model.version", first=CREATES, action=Action.MODEL_EXPORT),
        Row(body=goes_on_from_alias, says="model.alias", first=CREATES, action=Action.MODEL_EXPORT),
        Row(body=makes_by_name, says="into", first=(Action.JOB_CREATE,), own_only=True, unknown=422),
    ),
    ("GET", "/v1/jobs"): Own(LISTS),
    ("GET", "/v1/jobs/{id}"): Row(path=named("id", "job")),
    ("POST", "/v1/jobs/{id}/cancel"): Row(path=named("id", "job")),
    ("GET", "/v1/jobs/{id}/logs"): Row(path=named("id", "job")),
    ("POST", "/v1/grants"): Row(
        body=lambda ids: {"kind": "model", "name": ids["model"], "grantee": "acme", "actions": ["model:predict"]},
        first=(Action.GRANT_CREATE,),
        own_only=True,
    ),
    ("GET", "/v1/grants"): Own(LISTS),
    ("DELETE", "/v1/grants/{id}"): Row(path=named("id", "grant")),
    ("GET", "/v1/policies"): Own(LISTS),
    ("POST", "/v1/policies"): Own(MAKES, body=POLICY),
    ("POST", "/v1/policies/check"): Own(MAKES, body=POLICY),
    ("GET", "/v1/policies/{version}"): Own(NUMBERED, {"version": "1"}),
    ("POST", "/v1/policies/{version}/activate"): Own(NUMBERED, {"version": "1"}),
    ("GET", "/v1/audit/entries"): (
        Own(LISTS),
        Row(query=named("request_id", "request"), says="request_id", first=READS, unknown=200),
    ),
    ("GET", "/v1/audit/checkpoint"): Own("the log's checkpoint is one for all; it names nobody"),
    ("GET", "/v1/audit/key"): Own("the log's key is one for all"),
    ("GET", "/v1/audit/entries/{index}/proof"): Row(path=named("index", "log_index"), first=READS),
    ("GET", "/v1/audit/consistency"): Own("the proof is about the tree, which is one for all", query={"old": "1"}),
    ("GET", "/v2"): Own(PUBLIC),
    ("GET", "/v2/health/live"): Own(PUBLIC),
    ("GET", "/v2/health/ready"): Own(PUBLIC),
    ("GET", "/v2/models/{name}"): Row(path=named("name", "model")),
    ("GET", "/v2/models/{name}/ready"): Row(path=named("name", "model")),
    ("GET", "/v2/models/{name}/versions/{version}"): Row(path=version),
    ("GET", "/v2/models/{name}/versions/{version}/ready"): Row(path=version),
    ("POST", "/v2/models/{name}/infer"): Row(path=named("name", "model"), body=infer),
    ("POST", "/v2/models/{name}/versions/{version}/infer"): Row(path=version, body=infer),
    ("GET", "/issuer/.well-known/openid-configuration"): Own(PUBLIC),
    ("GET", "/issuer/jwks"): Own(PUBLIC),
    ("POST", "/issuer/token"): Own(CREDENTIAL),
    ("POST", "/issuer/device_authorization"): Own(CREDENTIAL),
    ("POST", "/issuer/revoke"): Own(CREDENTIAL),
    ("GET", "/issuer/device"): Own(CREDENTIAL),
    ("POST", "/issuer/device"): Own(CREDENTIAL),
    ("GET", "/issuer/enrol"): Own(CREDENTIAL),
    ("POST", "/issuer/enrol"): Own(CREDENTIAL),
}


@dataclass(frozen=True, slots=True)
class Asked:
    """One way to call one route."""

    route: Route
    row: Row
    own: Own | None = None

    def __str__(self) -> str:
        return " ".join(filter(None, (*self.route, self.row.says)))

    def call(self, http: httpx.Client, ids: Ids, headers: Mapping[str, str] | None = None) -> httpx.Response:
        """Call the route with some ids."""
        method, path = self.route[0], self.route[1].format(**self.row.path(ids))
        body = None if self.row.body is None else self.row.body(ids)
        query, sent = self.row.query(ids), dict(headers or {})
        if isinstance(body, bytes):
            sent["content-digest"] = "sha-256=:LXEWQrcmsEQBYnyp+6wy9chTD7GQPMTbAiWHF5IaSIE=:"
            return http.request(method, path, content=body, headers=sent, params=query)
        return http.request(method, path, json=body, headers=sent, params=query)

    def kinds(self) -> set[str]:
        """Return the kinds whose ids it uses."""
        used = set[str]()

        class Noting(dict[str, str]):
            def __missing__(self, kind: str) -> str:
                used.add(kind)
                return "x"

        for part in (self.row.path, self.row.query, self.row.body):
            if part is not None:
                part(Noting())
        return used

    def deciding(self, guard: Action) -> tuple[Action, ...]:
        """Return the actions that decide, in order; the last is about the thing."""
        return (*self.row.first, self.row.action or guard)


def _ways() -> Iterator[Asked]:
    for route, given in ROUTES.items():
        for one in given if isinstance(given, tuple) else (given,):
            yield Asked(route, one) if isinstance(one, Row) else Asked(route, _row(one), one)


def _row(own: Own) -> Row:
    return Row(
        path=lambda _ids: dict(own.path or {}),
        query=lambda _ids: dict(own.query or {}),
        body=None if own.body is None else lambda _ids: own.body,
    )


WAYS = list(_ways())
OPEN = [asked for asked in WAYS if asked.own is not None and asked.own.why in {PUBLIC, CREDENTIAL}]
"""Those that need no token."""
CLOSED = [asked for asked in WAYS if asked not in OPEN]
WITH_IDS = [asked for asked in CLOSED if asked.own is None]


def of(why: str) -> list[Asked]:
    """Return the routes that are the caller's own for this reason."""
    return [asked for asked in WAYS if asked.own is not None and asked.own.why == why]


def find(method: str, path: str, says: str = "") -> Asked:
    """Return one way."""
    return next(asked for asked in WAYS if asked.route == (method, path) and asked.row.says == says)


Guard = Action | Public | Authenticated


def endpoint_of(house: House, route: Route) -> Endpoint:
    """Return the endpoint of a route of `/v1`."""
    return next(one for one in house.server.platform.edge.endpoints if (one.method, one.path) == route)


def guard_of(house: House, route: Route) -> Guard:
    """Return what the application itself says decides a route."""
    method, path = route
    if path.startswith("/v2/"):
        template = f"{method} {path.replace('/versions/{version}', '')}"
        return next(action for known, action in _TEMPLATES.values() if known == template)
    return endpoint_of(house, route).guard


@functools.cache
def permitted() -> frozenset[tuple[str, str]]:
    """Return which role may do which action within its own tenant, as `policies/cases` has it for users."""
    found = set[tuple[str, str]]()
    for path in CASES.glob("*.json"):
        for case in json.loads(path.read_text(encoding="utf-8"))["cases"]:
            plain = not {"policies", "grants", "context"} & set(case) and len(case["roles"]) == 1
            if plain and case["resource"]["owner"] == "acme" and case["expect"]["decision"] == "allow":
                found.add((case["roles"][0], case["action"]))
    return frozenset(found)


def lacking(role: str, actions: tuple[Action, ...]) -> Action | None:
    """Return the first of the actions that the role may not do in its own tenant."""
    return next((action for action in actions if (role, str(action)) not in permitted()), None)


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


def code_of(answer: httpx.Response) -> str:
    """Return the code of a refusal, on either plane."""
    error = answer.json()["error"]
    return answer.headers["x-error-code"] if isinstance(error, str) else str(error["code"])
