"""The same for the SDK: every method that takes a name or an id, foreign against missing, and granted.

Both clients raise the same error for both, whatever the caller's role, no row changes, and each refusal is one entry of
the caller's log. It fails when a method is added without its row, an operation or a plain one, or a parameter that no
row gives a value.
"""

import asyncio
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import pytest

from isolation.routes import (
    CREATES,
    EVERY_ROLE,
    PLANS,
    READS,
    goes_on,
    goes_on_from,
    lacking,
    makes_by_name,
)
from isolation.things import Things
from modelkeep import AsyncClient, Client, StaticToken, errors
from modelkeep.errors import APIError, ForbiddenError, InvalidRequestError, NotFoundError
from modelkeep.types import Job
from modelkeep_platform.core.actions import GRANTABLE, Action
from services.evidence import Evidence
from services.house import GRAPH, WEIGHTS, House, job

pytestmark = pytest.mark.e2e
Ids = Mapping[str, str]
Call = Callable[[Client, Ids], object]
ROW = [[1.0, 1.0]]


OWN = "takes no name or id of something that exists"
METHODS: dict[str, Call | str | dict[str, Call]] = {
    "client.base_url": OWN,
    "client.close": OWN,
    "client.login": OWN,
    "client.logout": OWN,
    "client.whoami": OWN,
    "client.tenant": OWN,
    "client.predict": {
        "": lambda client, ids: client.predict(ids["model"], ROW),
        "version": lambda client, ids: client.predict(ids["model"], ROW, version=1),
    },
    "models.upload": OWN,
    "models.list": OWN,
    "models.get": lambda client, ids: client.models.get(ids["model"]),
    "models.versions": lambda client, ids: client.models.versions(ids["model"]),
    "models.version": {
        "": lambda client, ids: client.models.version(ids["model"]),
        "version": lambda client, ids: client.models.version(ids["model"], 1),
        "alias": lambda client, ids: client.models.version(ids["model"], "production"),
    },
    "models.set_alias": lambda client, ids: client.models.set_alias(ids["model"], "production", version=1),
    "models.delete_alias": lambda client, ids: client.models.delete_alias(ids["model"], "production"),
    "models.delete": {
        "": lambda client, ids: client.models.delete(ids["model"]),
        "version": lambda client, ids: client.models.delete(ids["model"], version=1),
    },
    "models.download": {
        "": lambda client, ids: client.models.download(ids["model"]),
        "version": lambda client, ids: client.models.download(ids["model"], 1),
        "alias": lambda client, ids: client.models.download(ids["model"], "production"),
    },
    "datasets.upload_csv": OWN,
    "datasets.upload_arrays": OWN,
    "datasets.upload": OWN,
    "datasets.list": OWN,
    "datasets.get": lambda client, ids: client.datasets.get(ids["dataset"]),
    "datasets.delete": lambda client, ids: client.datasets.delete(ids["dataset"]),
    "uploads.get": lambda client, ids: client.uploads.get(ids["upload"]),
    "uploads.resume": lambda client, ids: client.uploads.resume(ids["upload"], WEIGHTS),
    "uploads.abort": lambda client, ids: client.uploads.abort(ids["upload"]),
    "jobs.plan": {
        "dataset": lambda client, ids: client.jobs.plan(job(dataset=ids["dataset"])),
        "model.name": lambda client, ids: client.jobs.plan(goes_on(ids)),
        "model.version": lambda client, ids: client.jobs.plan(goes_on_from(ids, 1)),
        "model.alias": lambda client, ids: client.jobs.plan(goes_on_from(ids, "production")),
        "into": lambda client, ids: client.jobs.plan(makes_by_name(ids)),
    },
    "jobs.create": {
        "dataset": lambda client, ids: client.jobs.create(job(dataset=ids["dataset"])),
        "model.name": lambda client, ids: client.jobs.create(goes_on(ids)),
        "model.version": lambda client, ids: client.jobs.create(goes_on_from(ids, 1)),
        "model.alias": lambda client, ids: client.jobs.create(goes_on_from(ids, "production")),
        "into": lambda client, ids: client.jobs.create(makes_by_name(ids)),
    },
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
    "tenants.get": "the operator's",
    "tenants.set_limits": "the operator's",
    "tenants.suspend": "the operator's",
    "tenants.resume": "the operator's",
    "tenants.new_enrolment_link": "the operator's",
    "issuer.rotate_key": "the operator's",
    "audit.entries": {"request_id": lambda client, ids: client.audit.entries(request_id=ids["request"])},
    "audit.verify": OWN,
    "audit.verify_entry": "takes a whole entry: test_no_entry_of_another_tenants_is_proven",
    "audit.wait_for": {"request_id": lambda client, ids: client.audit.wait_for(ids["request"], timeout_s=0)},
}
WITH_IDS = {
    f"{method} {says}".strip(): call
    for method, row in METHODS.items()
    if not isinstance(row, str)
    for says, call in (row.items() if isinstance(row, dict) else [("", row)])
}
NOTHING = {"audit.entries request_id": [], "audit.wait_for request_id": errors.TimeoutError}
"""What is answered where nothing is refused: a list without what is another's, and a wait in vain."""
INVALID = {"jobs.plan into", "jobs.create into"}
"""No name of another tenant's is a name for something new."""
FIRST = {
    "jobs.plan": PLANS,
    "jobs.create": CREATES,
    "grants.create": (Action.GRANT_CREATE,),
    "audit.entries": READS,
    "audit.wait_for": READS,
}
"""By method, the actions on the caller's own collections that are decided before the thing is looked up."""
DECIDES = {
    "client.predict": (Action.MODEL_PREDICT,),
    "models.get": (Action.MODEL_READ,),
    "models.versions": (Action.MODEL_READ,),
    "models.version": (Action.MODEL_READ,),
    "models.set_alias": (Action.MODEL_ALIAS,),
    "models.delete_alias": (Action.MODEL_ALIAS,),
    "models.delete": (Action.MODEL_DELETE,),
    "models.download": (Action.MODEL_READ, Action.MODEL_EXPORT),
    "datasets.get": (Action.DATASET_READ,),
    "datasets.delete": (Action.DATASET_DELETE,),
    "budgets.get": (Action.BUDGET_READ,),
    "jobs.plan dataset": (Action.DATASET_TRAIN,),
    "jobs.create dataset": (Action.DATASET_TRAIN,),
    "jobs.plan model": (Action.MODEL_EXPORT,),
    "jobs.create model": (Action.MODEL_EXPORT,),
}
"""By method, what is decided about a thing that can be granted, in order."""


NAMES_NOTHING = {"limit", "timeout_s", "progress", "check", "expires_at"}
"""Parameters that say how much, how long or until when, and are left out in the rows."""


def methods(client: object) -> set[str]:
    """Return whatever can be called or read on a client and its nouns, whether it is an operation or not."""
    nouns = {noun: value for noun, value in vars(client).items() if not noun.startswith("_")}
    found = {f"client.{name}" for name in dir(client) if not name.startswith("_") and name not in nouns}
    for noun, value in nouns.items():
        found |= {f"{noun}.{name}" for name in dir(value) if not name.startswith("_")}
    return found


class Noting:
    """Stands for a client, or a noun of it, and notes which parameters of its methods a row gives."""

    def __init__(self, real: object, path: str, given: dict[str, set[str]]) -> None:
        self._real, self._path, self._given = real, path, given

    def __getattr__(self, name: str) -> object:
        found = getattr(self._real, name)
        if not callable(found):
            return Noting(found, name, self._given)
        return partial(self._note, f"{self._path}.{name}", parameters(found))

    def _note(self, method: str, known: list[str], *args: object, **kwargs: object) -> None:
        self._given.setdefault(method, set()).update(known[: len(args)], kwargs)


def parameters(method: Callable[..., object]) -> list[str]:
    """Return the names of a method's parameters, in order."""
    return [name for name in inspect.signature(method).parameters if name != "self"]


@pytest.fixture(scope="module")
def async_client(house: House, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], AsyncClient]:
    """Makes clients that are awaited, each for one event loop, of the same caller."""
    state = Path(tmp_path_factory.mktemp("state"))
    auth = StaticToken(house.token(house.globex.admin))
    return lambda: AsyncClient(house.url, auth=auth, state_dir=state, retries=0)


async def awaited(client: AsyncClient, call: Call, ids: Ids) -> object:
    """Await a call of a row, which is written for the client that blocks."""
    try:
        return await cast("Any", call(cast("Client", client), ids))
    finally:
        await client.close()


def outcome(call: Callable[[], object]) -> object:
    """Return what a call was refused with, or what it returned or raised else; a refusal's request id comes last."""
    try:
        return call()
    except APIError as exc:
        message = exc.message
        for word in ("acme~model", "acme~never", "acme~rows"):
            message = message.replace(word, "what was asked for")
        return type(exc), exc.status, exc.code, message, exc.details, exc.request_id
    except TimeoutError as exc:
        return type(exc)


def test_every_method_has_its_row(house: House, async_client: Callable[[], AsyncClient]) -> None:
    assert methods(house.globex.admin) == methods(async_client()) == set(METHODS)


def test_every_parameter_of_a_method_with_ids_is_given_in_its_rows(house: House, things: Things) -> None:
    given: dict[str, set[str]] = {}
    client = house.globex.admin
    for call in WITH_IDS.values():
        call(cast("Client", Noting(client, "client", given)), things.own)
    lacking = {}
    for method, names in given.items():
        noun, _, name = method.partition(".")
        found = getattr(client if noun == "client" else getattr(client, noun), name)
        lacking[method] = set(parameters(found)) - names - NAMES_NOTHING
    assert not any(lacking.values()), lacking
    assert set(given) == {method for method, row in METHODS.items() if not isinstance(row, str)}


@pytest.mark.parametrize(
    ("role", "blocks"),
    [
        *(pytest.param(role, True, id=f"Client-{role}") for role in EVERY_ROLE),
        pytest.param("tenant-admin", False, id="AsyncClient"),
    ],
)
@pytest.mark.parametrize("name", WITH_IDS)
def test_foreign_looks_like_missing(
    house: House,
    things: Things,
    evidence: Evidence,
    async_client: Callable[[], AsyncClient],
    name: str,
    role: str,
    blocks: bool,
) -> None:
    client, call = house.globex.role(role), WITH_IDS[name]
    client.whoami()

    def ask(ids: Ids) -> object:
        return call(client, ids) if blocks else asyncio.run(awaited(async_client(), call, ids))

    with evidence.nothing_changes():
        foreign, missing = (outcome(partial(ask, ids)) for ids in (things.foreign, things.missing))
    lacks = lacking(role, FIRST.get(name.partition(" ")[0], ()))
    if name in NOTHING and lacks is None:
        assert foreign == missing == NOTHING[name]
        return
    assert isinstance(foreign, tuple)
    assert isinstance(missing, tuple)
    assert foreign[:-1] == missing[:-1]
    expected = (InvalidRequestError, 422, "invalid_name") if name in INVALID else (NotFoundError, 404, "not_found")
    assert foreign[:3] == ((ForbiddenError, 403, "forbidden") if lacks else expected)
    recorded = [
        [(entry.tenant, entry.action, entry.outcome) for entry in evidence.entries(refused[-1])]
        for refused in (foreign, missing)
    ]
    assert recorded[0] == recorded[1]
    assert [(tenant, outcome) for tenant, _, outcome in recorded[0]] == [("globex", "denied")]
    assert lacks in {None, recorded[0][0][1]}


def deciding(name: str) -> tuple[Action, ...]:
    """Return what is decided, in order, about a thing of a row that can be granted."""
    method, _, says = name.partition(" ")
    about = f"{method} {says.partition('.')[0]}" if method in {"jobs.plan", "jobs.create"} else method
    return DECIDES.get(about, ())


@pytest.mark.parametrize("verb", sorted(GRANTABLE))
def test_a_grant_opens_the_methods_of_its_verb_on_its_object(
    house: House, things: Things, evidence: Evidence, verb: Action
) -> None:
    """On what was granted every other method says that it is not granted; on all else, that there is no such object."""
    kind: Literal["model", "dataset"] = "model" if verb.startswith("model:") else "dataset"
    grant = house.acme.admin.grants.create(kind, things.own[kind], grantee="globex", actions=[verb])
    client, opened = house.globex.admin, set[str]()
    try:
        for name, call in WITH_IDS.items():
            if name in NOTHING or name in INVALID:
                continue  # about nothing that can be granted
            found = outcome(partial(call, client, things.foreign))
            decides = deciding(name)
            lacks = next((action for action in decides if action != verb), None)
            if not decides or decides[0].startswith("model:") != (kind == "model"):
                assert isinstance(found, tuple), name
                assert found[:3] == (NotFoundError, 404, "not_found"), name
            elif lacks is not None:
                assert isinstance(found, tuple), name
                assert found[:3] == (ForbiddenError, 403, "forbidden"), name
                assert f"`{lacks}` is not granted on this object" in found[3], name
                recorded = [(one.tenant, one.action, one.outcome) for one in evidence.entries(found[-1])]
                assert recorded == [("globex", lacks, "denied")], name
            else:
                assert not isinstance(found, tuple), (name, found)
                opened.add(name)
                if isinstance(found, Job):
                    client.jobs.cancel(found.id)
        assert opened
    finally:
        house.acme.admin.grants.revoke(grant.id)


def test_no_entry_of_another_tenants_is_proven(house: House, things: Things) -> None:
    client = house.globex.admin
    client.audit.verify()
    entries = house.acme.admin.audit.entries(limit=None)
    theirs = next(one for one in entries if str(one.index) == things.own["log_index"])
    platforms = house.operator.audit.entries(limit=200)[-1]
    own = next(entry for entry in client.audit.entries(limit=200) if entry.index is not None)
    refusals = [
        outcome(partial(client.audit.verify_entry, entry))
        for entry in (theirs, platforms, replace(own, index=theirs.index))
    ]
    seen = [refused[:-1] if isinstance(refused, tuple) else refused for refused in refusals]
    assert seen == [seen[0]] * 3
    assert isinstance(seen[0], tuple)
    assert seen[0][:3] == (NotFoundError, 404, "not_found")
    assert client.audit.verify_entry(own).entries_checked == 1


def test_uploads_under_a_foreign_name_are_refused_before_anything_is_sent(house: House) -> None:
    with pytest.raises(APIError) as caught:
        house.globex.clients["developer"].models.upload("acme~model", graph=GRAPH, weights=WEIGHTS)
    assert caught.value.code == "invalid_name"
    assert house.acme.admin.models.get("model").latest_version == 1
