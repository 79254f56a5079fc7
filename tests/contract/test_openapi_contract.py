"""Requests made up from the OpenAPI document against the real application: what it says is what is answered.

For every operation, requests that the document calls good and requests that it calls bad. None may fail on the server's
side, answer a status or a shape that the document has not, or be accepted when it is bad. Path parameters are made up,
or name things that are there. Everything happens in a platform of this module's own.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.core.result import Ok

from fakes.asgi import AsgiClient
from modelkeep_platform.http.v1 import description
from services.house import GRAPH, WEIGHTS, House, job

pytestmark = pytest.mark.e2e
EXAMPLES = 10
TOO_LONG = {413, 414, 431}
DOCUMENT: dict[str, Any] = json.loads(json.dumps(description()))
# Calls carry a token that verifies; tests/isolation asks every route without one.
DOCUMENT["security"] = []
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
OPERATIONS = {found.ok().label: found.ok() for found in SCHEMA.get_all_operations() if isinstance(found, Ok)}
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


class Site:
    """The application, called in this process as an administrator, or as the operator where only operators may."""

    def __init__(self, house: House) -> None:
        house.fill()
        acme = house.acme
        self.http = AsgiClient(house.server.platform.edge.asgi, base_url=house.url)
        self.admin, self.operator = house.token(acme.admin), house.token(house.operator)
        body = {"graph": GRAPH, "weights_bytes": len(WEIGHTS), "weights_sha256": "0" * 64}
        with house.http(acme.clients["developer"]) as http:
            upload = http.post("/v1/models/half/versions", json=body).json()["upload"]["id"]
        started = acme.clients["developer"].jobs.create(job(dataset="open", privacy=None))
        self.known = {
            "model": {"name": "model", "version": "1", "alias": "production"},
            "dataset": {"name": "rows"},
            "upload": {"id": upload, "number": "0"},
            "job": {"id": started.id},
            "policy": {"version": "1"},
            "audit": {"index": "0"},
            "tenant": {"slug": "globex"},
        }

    def call(self, case: Case[Any]) -> httpx.Response:
        """Send what was made up."""
        options = case.as_transport_kwargs(base_url="")
        method, path = options.pop("method"), options.pop("url")
        headers = {str(name): str(value) for name, value in dict(options.pop("headers", {})).items()}
        platform = case.operation.path.startswith("/v1/tenants")
        headers["authorization"] = f"Bearer {self.operator if platform else self.admin}"
        content = options.pop("data", None)
        sent = {"content": content} if content is not None else {"json": options["json"]} if "json" in options else {}
        return self.http.request(method, path, headers=headers, params=options.get("params") or None, **sent)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    house = House(Path(tmp_path_factory.mktemp("contract")))
    yield Site(house)
    house.close()


def known(site: Site, path: str) -> dict[str, str]:
    """Return parameters of the path that name what is there."""
    noun = path.split("/")[2].removesuffix("s").removesuffix("ie")
    found = {"polic": "policy", "budget": "dataset"}.get(noun, noun)
    return {name: value for name, value in site.known.get(found, {}).items() if f"{{{name}}}" in path}


def cases(site: Site, label: str, mode: GenerationMode) -> st.SearchStrategy[Case[Any]]:
    operation = OPERATIONS[label]
    anything = operation.as_strategy(generation_mode=mode)
    named = known(site, operation.path)
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
