"""Requests made up from the OpenAPI document against the real application: what it says is what is answered.

For every operation one request that must succeed, then requests that the document calls good and requests that it calls
bad. None may fail on the server's side, answer a status or a shape that the document has not, or be accepted when it is
bad. And every role does what policy lets it do, and is refused all else. Path parameters are made up, or name things
that were made for that operation, which no other operation deletes. Everything happens in a platform of this module's
own.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.core.result import Ok

from contract.site import GOOD, Good, Site, is_the_operators, parameters
from isolation.routes import code_of, find, guard_of, lacking
from modelkeep import Client
from modelkeep_platform.core.actions import PLATFORM_ACTIONS, Action
from modelkeep_platform.http.v1 import description
from services.evidence import Evidence
from services.house import ROLES, House

pytestmark = pytest.mark.e2e
EXAMPLES = 15
TOO_LONG = {413, 414, 431}
DOCUMENT: dict[str, Any] = json.loads(json.dumps(description()))
# Calls carry a token that verifies; tests/isolation asks every route without one.
DOCUMENT["security"] = []
OPENAPI = schemathesis.openapi.from_dict(DOCUMENT)
OPERATIONS = {found.ok().label: found.ok() for found in OPENAPI.get_all_operations() if isinstance(found, Ok)}
load_all_checks()
ANSWERS: list[Any] = CHECKS.get_by_names(
    [
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
    ]
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    # Each refusal is an entry of its own, however many there are.
    house = House(
        Path(tmp_path_factory.mktemp("contract")),
        tenant_refusals_per_minute=1_000_000,
        principal_refusals_per_minute=1_000_000,
    )
    made = Site(house)
    yield made
    made.served.close()
    house.close()


# --- requests that succeed ----------------------------------------------------------------------------


def test_every_request_that_succeeds_is_of_an_operation() -> None:
    assert set(GOOD) <= set(OPERATIONS)


def request(site: Site, label: str, named: dict[str, str] | None = None) -> Case[Any]:
    """Return a request that succeeds, about what `named` names or else about something that is made for it."""
    operation, good = OPERATIONS[label], GOOD.get(label, Good())
    sent: dict[str, Any] = {}
    if good.body is not None:
        raw = label.startswith("PUT /v1/uploads/")
        sent = {"body": good.body(site), "media_type": "application/octet-stream" if raw else "application/json"}
    path = parameters(site, label) if named is None else named
    return operation.Case(path_parameters=path, query=good.query or {}, headers=good.headers or {}, **sent)


def succeeds(site: Site, label: str, caller: Client | None = None) -> None:
    """Do an operation, and compare what is answered with what is documented."""
    case = request(site, label)
    answer = site.call(case, caller)
    documented = [int(status) for status in case.operation.definition.raw["responses"] if status.startswith("2")]
    assert [answer.status_code] == documented, answer.text
    case.validate_response(answer, checks=ANSWERS)


@pytest.mark.parametrize("label", OPERATIONS)
def test_every_operation_succeeds_as_it_is_documented(site: Site, label: str) -> None:
    succeeds(site, label)


def refusal(site: Site, label: str, role: str) -> tuple[int, str, Action] | None:
    """Return status, code and action with which a role is refused in its own tenant, or nothing where it is let."""
    method, path = label.split()
    if OPERATIONS[label].definition.raw.get("security") == []:
        return None  # public
    guard = guard_of(site.house, (method, path))
    if not isinstance(guard, Action):
        return None  # everybody's own
    if guard in PLATFORM_ACTIONS and is_the_operators(path):
        return 403, "operator_only", guard
    says = "dataset" if label in {"POST /v1/jobs", "POST /v1/job-plans"} else ""
    lacks = lacking(role, find(method, path, says).deciding(guard))
    if lacks is None:
        return None
    # An upload belongs to the principal that began it; to everybody else it is not there.
    return (404, "not_found", lacks) if path.startswith("/v1/uploads/") else (403, "forbidden", lacks)


@pytest.fixture(scope="module")
def kept() -> dict[str, dict[str, str]]:
    """What was made for those who are refused, by operation: nothing of theirs changes it."""
    return {}


@pytest.mark.parametrize("role", ["tenant-admin", *ROLES])
@pytest.mark.parametrize("label", OPERATIONS)
def test_every_operation_is_done_by_the_roles_that_policy_lets_and_refused_to_the_others(
    site: Site, kept: dict[str, dict[str, str]], label: str, role: str
) -> None:
    caller, evidence = site.house.acme.role(role), Evidence(site.house)
    refused = refusal(site, label, role)
    if refused is None:
        with site.sent_by(caller):
            succeeds(site, label, caller)
        return
    if label not in kept:
        kept[label] = parameters(site, label)
    case = request(site, label, kept[label])
    site.house.token(caller)  # logged in
    with evidence.nothing_changes():
        answer = site.call(case, caller)
    assert (answer.status_code, code_of(answer)) == refused[:2], answer.text
    case.validate_response(answer, checks=ANSWERS)
    entries = evidence.entries(answer.headers["x-request-id"])
    assert [(one.tenant, one.action, one.outcome) for one in entries] == [("acme", refused[2], "denied")]


# --- requests that are made up ------------------------------------------------------------------------


def cases(site: Site, label: str, mode: GenerationMode) -> st.SearchStrategy[Case[Any]]:
    operation = OPERATIONS[label]
    anything: st.SearchStrategy[Case[Any]] = operation.as_strategy(generation_mode=mode)
    named = parameters(site, label)
    return anything | operation.as_strategy(generation_mode=mode, path_parameters=named) if named else anything


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["good", "bad"])
@pytest.mark.parametrize("label", OPERATIONS)
def test_what_is_answered_is_documented(site: Site, label: str, mode: GenerationMode) -> None:
    if mode is GenerationMode.NEGATIVE and not takes_anything(label):
        return
    refused = [*ANSWERS, *CHECKS.get_by_names(["negative_data_rejection"])]

    @given(case=cases(site, label, mode))
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def run(case: Case[Any]) -> None:
        answer = site.call(case)
        # A request that is too long to be looked at is refused for that, whatever else it is.
        good = mode is GenerationMode.POSITIVE or answer.status_code in TOO_LONG
        case.validate_response(answer, checks=ANSWERS if good else refused)

    run()


def takes_anything(label: str) -> bool:
    operation = OPERATIONS[label]
    return bool(list(operation.iter_parameters())) or bool(operation.body)
