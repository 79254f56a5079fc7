"""For every operation a request that succeeds, and the hands that make what it is about."""

import base64
import hashlib
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from schemathesis import Case

from fakes.asgi import AsgiClient
from modelkeep import Client
from services.house import GRAPH, PASSWORD, PRIVATE, ROWS, SCHEMA, WEIGHTS, House, job


class Site:
    """The application, called in this process, and hands that make a thing of any kind afresh."""

    def __init__(self, house: House) -> None:
        house.fill()
        # Jobs stay queued: nothing that was made for an operation changes by itself.
        house.operator.tenants.set_limits("acme", {"running_jobs": 0, "active_jobs": 10_000, "open_uploads": 10_000})
        self.house, self.admin, self.operator = house, house.acme.admin, house.operator
        self.http = AsgiClient(house.server.platform.edge.asgi, base_url=house.url)
        self.served = httpx.Client(base_url=house.url, timeout=60)
        self.sender = self.admin
        """Who begins an upload, which nobody else can go on with."""
        self._numbers = itertools.count()

    @contextmanager
    def sent_by(self, client: Client) -> Iterator[None]:
        """Let `client` begin uploads."""
        before, self.sender = self.sender, client
        try:
            yield
        finally:
            self.sender = before

    def fresh(self) -> str:
        """Return a name that is free."""
        return f"made-{next(self._numbers)}"

    def model(self) -> dict[str, str]:
        name = self.fresh()
        self.admin.models.upload(name, graph=GRAPH, weights=WEIGHTS)
        self.admin.models.set_alias(name, "production", version=1)
        return {"name": name, "version": "1", "alias": "production"}

    def dataset(self) -> dict[str, str]:
        return {"name": self.admin.datasets.upload_csv(self.fresh(), ROWS, schema=SCHEMA, privacy=PRIVATE).name}

    def upload(self) -> dict[str, str]:
        with self.house.http(self.sender) as http:
            made = http.post(f"/v1/models/{self.fresh()}/versions", json=VERSION).json()
        return {"id": made["upload"]["id"], "number": "0"}

    def sent(self) -> dict[str, str]:
        upload = self.upload()
        with self.house.http(self.sender) as http:
            path = f"/v1/uploads/{upload['id']}/parts/0"
            assert http.put(path, content=WEIGHTS, headers=DIGEST).status_code == 200
        return upload

    def job(self) -> dict[str, str]:
        return {"id": self.admin.jobs.create(job(dataset="open", privacy=None, into=self.fresh())).id}

    def member(self) -> dict[str, str]:
        return {"id": self.admin.members.invite(self.fresh(), roles=["analyst"]).member.id}

    def account(self) -> dict[str, str]:
        return {"id": self.admin.service_accounts.create(self.fresh(), roles=["analyst"]).service_account.id}

    def grant(self) -> dict[str, str]:
        actions = ["model:read"]
        return {"id": self.admin.grants.create("model", "model", grantee="globex", actions=actions).id}

    def entry(self) -> dict[str, str]:
        self.admin.audit.verify()
        return {"index": str(next(one.index for one in self.admin.audit.entries(limit=200) if one.index is not None))}

    def tenant(self) -> dict[str, str]:
        slug = self.fresh()
        self.operator.tenants.create(slug, name=slug)
        return {"slug": slug}

    def suspended(self) -> dict[str, str]:
        made = self.tenant()
        self.operator.tenants.suspend(made["slug"])
        return made

    def enrolment(self) -> dict[str, str]:
        slug = self.fresh()
        link = self.operator.tenants.create(slug, name=slug).enrolment
        return {"token": link.token, "username": slug, "password": PASSWORD}

    def call(self, case: Case[Any], caller: Client | None = None) -> httpx.Response:
        """Send a request as `caller`, or as whoever has the right to it."""
        options = case.as_transport_kwargs(base_url="")
        method, path = options.pop("method"), options.pop("url")
        headers = {str(name): str(value) for name, value in dict(options.pop("headers", {})).items()}
        headers["authorization"] = f"Bearer {self.house.token(caller or self.caller(case.operation.path))}"
        content = options.pop("data", None)
        sent = {"content": content} if content is not None else {"json": options["json"]} if "json" in options else {}
        # Predictions wait in the event loop of the server; the rest is called in this thread.
        http = self.served if path.startswith("/v2") else self.http
        return http.request(method, path, headers=headers, params=options.get("params") or None, **sent)

    def caller(self, path: str) -> Client:
        """Return the operator where only operators may, else the administrator, who may do all else."""
        return self.operator if is_the_operators(path) else self.admin


def is_the_operators(path: str) -> bool:
    """Return whether only operators may do what is done there."""
    return path.startswith(("/v1/tenants", "/v1/issuer/"))


INFER = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 1]}]}
VERSION = {
    "graph": GRAPH,
    "weights_bytes": len(WEIGHTS),
    "weights_sha256": hashlib.sha256(WEIGHTS).hexdigest(),
}
POLICY = {"text": 'permit (principal, action, resource) when { principal.roles.contains("tenant-admin") };'}
"""It permits nothing to anybody who could not do it before."""
DIGEST = {"content-digest": f"sha-256=:{base64.b64encode(hashlib.sha256(WEIGHTS).digest()).decode()}:"}


def nothing(_site: Site) -> dict[str, str]:
    return {}


@dataclass(frozen=True, slots=True)
class Good:
    """A request that succeeds: the thing it is about, made afresh, and what is sent with it."""

    make: Callable[[Site], dict[str, str]] = nothing
    body: Callable[[Site], Any] | None = None
    query: dict[str, Any] | None = None
    headers: dict[str, str] | None = None


GOOD: dict[str, Good] = {
    "GET /v1/audit/consistency": Good(query={"old": 1}),
    "GET /v1/audit/entries/{index}/proof": Good(Site.entry),
    "GET /v1/budgets/{name}": Good(Site.dataset),
    "POST /v1/datasets": Good(
        body=lambda site: {
            "name": site.fresh(),
            "format": "csv",
            "schema": SCHEMA,
            "privacy": PRIVATE,
            "size_bytes": len(ROWS),
            "sha256": hashlib.sha256(ROWS).hexdigest(),
        }
    ),
    "GET /v1/datasets/{name}": Good(Site.dataset),
    "DELETE /v1/datasets/{name}": Good(Site.dataset),
    "POST /v1/enrolments": Good(body=Site.enrolment),
    "POST /v1/grants": Good(
        body=lambda _site: {"kind": "model", "name": "model", "grantee": "globex", "actions": ["model:predict"]}
    ),
    "DELETE /v1/grants/{id}": Good(Site.grant),
    "POST /v1/job-plans": Good(body=lambda _site: job()),
    "POST /v1/jobs": Good(body=lambda site: job(dataset="open", privacy=None, into=site.fresh())),
    "GET /v1/jobs/{id}": Good(Site.job),
    "POST /v1/jobs/{id}/cancel": Good(Site.job),
    "GET /v1/jobs/{id}/logs": Good(Site.job),
    "POST /v1/members": Good(body=lambda site: {"username": site.fresh(), "roles": ["developer"]}),
    "PATCH /v1/members/{id}": Good(Site.member, body=lambda _site: {"roles": ["auditor"]}),
    "DELETE /v1/members/{id}": Good(Site.member),
    "GET /v1/models/{name}": Good(Site.model),
    "DELETE /v1/models/{name}": Good(Site.model),
    "PUT /v1/models/{name}/aliases/{alias}": Good(Site.model, body=lambda _site: {"version": 1}),
    "DELETE /v1/models/{name}/aliases/{alias}": Good(Site.model),
    "POST /v1/models/{name}/versions": Good(Site.model, body=lambda _site: VERSION),
    "GET /v1/models/{name}/versions": Good(Site.model),
    "GET /v1/models/{name}/versions/{version}": Good(Site.model),
    "DELETE /v1/models/{name}/versions/{version}": Good(Site.model),
    "GET /v1/models/{name}/versions/{version}/graph": Good(Site.model),
    "GET /v1/models/{name}/versions/{version}/weights": Good(Site.model),
    "POST /v1/policies": Good(body=lambda _site: POLICY),
    "POST /v1/policies/check": Good(body=lambda _site: POLICY),
    "GET /v1/policies/{version}": Good(lambda _site: {"version": "1"}),
    "POST /v1/policies/{version}/activate": Good(lambda _site: {"version": "1"}),
    "POST /v1/service-accounts": Good(body=lambda site: {"name": site.fresh(), "roles": ["developer"]}),
    "DELETE /v1/service-accounts/{id}": Good(Site.account),
    "POST /v1/service-accounts/{id}/rotate": Good(Site.account),
    "POST /v1/tenants": Good(body=lambda site: {"slug": site.fresh(), "name": "Made"}),
    "GET /v1/tenants/{slug}": Good(Site.tenant),
    "POST /v1/tenants/{slug}/enrolment": Good(Site.tenant),
    "PATCH /v1/tenants/{slug}/limits": Good(Site.tenant, body=lambda _site: {"members": 3}),
    "POST /v1/tenants/{slug}/resume": Good(Site.suspended),
    "POST /v1/tenants/{slug}/suspend": Good(Site.tenant),
    "GET /v1/uploads/{id}": Good(Site.upload),
    "DELETE /v1/uploads/{id}": Good(Site.upload),
    "POST /v1/uploads/{id}/complete": Good(Site.sent),
    "PUT /v1/uploads/{id}/parts/{number}": Good(Site.upload, body=lambda _site: WEIGHTS, headers=DIGEST),
    **{
        f"{method} /v2/models/{{name}}{which}{verb}": Good(
            Site.model, body=None if body is None else lambda _site: INFER
        )
        for which in ("", "/versions/{version}")
        for method, verb, body in (("GET", "", None), ("GET", "/ready", None), ("POST", "/infer", INFER))
    },
}
"""By operation; one that is not here succeeds when it is called with nothing."""


def parameters(site: Site, label: str) -> dict[str, str]:
    """Return parameters of the path that name what was made just now."""
    made = GOOD.get(label, Good()).make(site)
    return {name: value for name, value in made.items() if f"{{{name}}}" in label}
