"""The same for the SDK: every method that takes a name or an id, foreign against missing.

It fails when a method is added without its row.
"""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from isolation.things import Things
from modelkeep import Client
from modelkeep._core.flows import Operation
from modelkeep.errors import APIError, ForbiddenError, NotFoundError
from services.house import GRAPH, WEIGHTS, House, job

pytestmark = pytest.mark.e2e
Ids = Mapping[str, str]
Call = Callable[[Client, Ids], object]
ROW = [[1.0, 1.0]]

OWN = "takes no name or id of something that exists"
METHODS: dict[str, Call | str] = {
    "client.login": OWN,
    "client.logout": OWN,
    "client.whoami": OWN,
    "client.predict": lambda client, ids: client.predict(ids["model"], ROW),
    "models.upload": OWN,
    "models.list": OWN,
    "models.get": lambda client, ids: client.models.get(ids["model"]),
    "models.versions": lambda client, ids: client.models.versions(ids["model"]),
    "models.version": lambda client, ids: client.models.version(ids["model"], 1),
    "models.set_alias": lambda client, ids: client.models.set_alias(ids["model"], "production", version=1),
    "models.delete_alias": lambda client, ids: client.models.delete_alias(ids["model"], "production"),
    "models.delete": lambda client, ids: client.models.delete(ids["model"]),
    "models.download": lambda client, ids: client.models.download(ids["model"]),
    "datasets.upload_csv": OWN,
    "datasets.upload_arrays": OWN,
    "datasets.upload": OWN,
    "datasets.list": OWN,
    "datasets.get": lambda client, ids: client.datasets.get(ids["dataset"]),
    "datasets.delete": lambda client, ids: client.datasets.delete(ids["dataset"]),
    "uploads.get": lambda client, ids: client.uploads.get(ids["upload"]),
    "uploads.resume": lambda client, ids: client.uploads.resume(ids["upload"], WEIGHTS),
    "uploads.abort": lambda client, ids: client.uploads.abort(ids["upload"]),
    "jobs.plan": lambda client, ids: client.jobs.plan(job(dataset=ids["dataset"])),
    "jobs.create": lambda client, ids: client.jobs.create(job(dataset=ids["dataset"])),
    "jobs.list": OWN,
    "jobs.get": lambda client, ids: client.jobs.get(ids["job"]),
    "jobs.wait": lambda client, ids: client.jobs.wait(ids["job"]),
    "jobs.cancel": lambda client, ids: client.jobs.cancel(ids["job"]),
    "jobs.logs": lambda client, ids: client.jobs.logs(ids["job"]),
    "budgets.get": lambda client, ids: client.budgets.get(ids["dataset"]),
    "budgets.list": OWN,
    "grants.create": lambda client, ids: client.grants.create(
        "model", ids["model"], grantee="acme", actions=["model:predict"]
    ),
    "grants.list": OWN,
    "grants.revoke": lambda client, ids: client.grants.revoke(ids["grant"]),
    "policies.publish": OWN,
    "policies.check": OWN,
    "policies.list": OWN,
    "policies.get": OWN,
    "policies.activate": OWN,
    "members.list": OWN,
    "members.invite": OWN,
    "members.update": lambda client, ids: client.members.update(ids["member"], roles=["auditor"]),
    "members.remove": lambda client, ids: client.members.remove(ids["member"]),
    "service_accounts.list": OWN,
    "service_accounts.create": OWN,
    "service_accounts.rotate": lambda client, ids: client.service_accounts.rotate(ids["service_account"]),
    "service_accounts.delete": lambda client, ids: client.service_accounts.delete(ids["service_account"]),
    "tenants.create": "the operator's",
    "tenants.list": "the operator's",
    "tenants.suspend": "the operator's",
    "tenants.resume": "the operator's",
    "tenants.new_enrolment_link": "the operator's",
    "issuer.rotate_key": "the operator's",
    "audit.entries": OWN,
    "audit.verify": OWN,
    "audit.verify_entry": OWN,
    "audit.wait_for": "waits for an entry of the own log; another's request id is never found there",
}
WITH_IDS = {name: call for name, call in METHODS.items() if not isinstance(call, str)}


def operations(client: Client) -> set[str]:
    found = {f"client.{name}" for name in vars_of(type(client).__mro__)}
    for noun, value in vars(client).items():
        if not noun.startswith("_"):
            found |= {f"{noun}.{name}" for name in vars_of(type(value).__mro__)}
    return found


def vars_of(classes: tuple[type, ...]) -> set[str]:
    return {name for one in classes for name, value in vars(one).items() if isinstance(value, Operation)}


def refusal(call: Callable[[], object]) -> tuple[Any, ...]:
    try:
        call()
    except APIError as exc:
        message = exc.message
        for word in ("acme~model", "acme~never", "acme~rows"):
            message = message.replace(word, "what was asked for")
        return type(exc), exc.status, exc.code, message, exc.details
    raise AssertionError("the call was not refused")


def test_every_method_has_its_row(house: House) -> None:
    assert operations(house.globex.admin) == set(METHODS)


@pytest.mark.parametrize("name", WITH_IDS)
def test_foreign_looks_like_missing(house: House, things: Things, name: str) -> None:
    client, call = house.globex.admin, WITH_IDS[name]
    foreign = refusal(lambda: call(client, things.foreign))
    missing = refusal(lambda: call(client, things.missing))
    assert foreign == missing
    assert foreign[0] in {NotFoundError, ForbiddenError}


def test_uploads_under_a_foreign_name_are_refused_before_anything_is_sent(house: House) -> None:
    with pytest.raises(APIError) as caught:
        house.globex.clients["developer"].models.upload("acme~model", graph=GRAPH, weights=WEIGHTS)
    assert caught.value.code == "invalid_name"
    assert house.acme.admin.models.get("model").latest_version == 1
