"""The OpenAPI document: valid, checked in, printed by the command, and true of every endpoint."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from modelkeep_platform.cli.main import main
from modelkeep_platform.core.actions import Action
from modelkeep_platform.http import openapi
from modelkeep_platform.http.routing import Endpoint, Public
from modelkeep_platform.http.v1 import description

CHECKED_IN = Path(__file__).parents[3] / "docs/reference/openapi.json"
API_PAGE = Path(__file__).parents[3] / "docs/reference/api.md"
DOCUMENT: dict[str, Any] = json.loads(json.dumps(description()))
OPERATIONS = {
    f"{method.upper()} {path}": operation
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
}
every_operation = pytest.mark.parametrize("route", OPERATIONS)


def test_it_is_a_valid_document_of_openapi_3_1() -> None:
    assert DOCUMENT["openapi"] == "3.1.0"
    schemathesis.openapi.from_dict(DOCUMENT).validate()


@pytest.mark.parametrize("name", DOCUMENT["components"]["schemas"])
def test_every_schema_is_one(name: str) -> None:
    Draft202012Validator.check_schema(DOCUMENT["components"]["schemas"][name])


def test_it_is_the_one_that_is_checked_in() -> None:
    assert json.loads(CHECKED_IN.read_text(encoding="utf-8")) == DOCUMENT, "run `python tests/docs/generate.py`"


def test_the_command_prints_it_without_an_installation() -> None:
    printed = CliRunner().invoke(main, ["openapi"])
    assert printed.exit_code == 0
    assert printed.stdout == CHECKED_IN.read_text(encoding="utf-8")


def test_every_reference_leads_somewhere() -> None:
    for kind, name in re.findall(r'"#/components/(\w+)/([^"]+)"', json.dumps(DOCUMENT)):
        assert name in DOCUMENT["components"][kind]


@every_operation
def test_every_operation_is_on_the_page_with_its_action_and_statuses(route: str) -> None:
    (line,) = [line for line in API_PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| `{route}` |")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:] == [
        OPERATIONS[route]["summary"],
        OPERATIONS[route]["x-action"],
        ", ".join(sorted(OPERATIONS[route]["responses"])),
    ]


def test_the_page_has_no_route_that_is_not_served() -> None:
    page = API_PAGE.read_text(encoding="utf-8")
    listed = re.findall(r"^\| `((?:GET|POST|PUT|PATCH|DELETE) [^`]+)` \|", page, re.MULTILINE)
    assert set(listed) == set(OPERATIONS)


@every_operation
def test_every_status_is_named_and_every_refusal_has_the_envelope(route: str) -> None:
    responses = OPERATIONS[route]["responses"]
    assert "default" not in responses
    assert all("X-Request-Id" in response["headers"] for response in responses.values())
    refusals = {int(status): response for status, response in responses.items() if int(status) >= 400}
    inference = route.split()[1].startswith("/v2")
    schema = "InferenceError" if inference else "Error"
    for response in refusals.values():
        assert response["content"] == {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
        assert ("X-Error-Code" in response["headers"]) == inference
    assert {400, 431, 500, 503} <= set(refusals)
    assert [status for status in map(int, responses) if status < 400] in ([200], [201], [204])
    assert ("Retry-After" in refusals.get(429, {}).get("headers", {})) == (429 in refusals)
    assert ("WWW-Authenticate" in refusals.get(401, {}).get("headers", {})) == (401 in refusals)


@every_operation
def test_who_may_call_says_which_refusals_there_are(route: str) -> None:
    operation = OPERATIONS[route]
    public = operation.get("security") == []
    statuses = {int(status) for status in operation["responses"]}
    assert ({401, 429} <= statuses) == (not public)
    assert (403 in statuses) == (operation["x-action"] in set(Action))
    assert operation["x-action"] in set(Action) or operation["x-action"].startswith("none: ")


@every_operation
def test_a_body_says_how_it_can_be_refused(route: str) -> None:
    operation = OPERATIONS[route]
    statuses = {int(status) for status in operation["responses"]}
    assert ({408, 413, 415, 422} <= statuses) == ("requestBody" in operation)
    if "requestBody" in operation:
        assert operation["requestBody"]["required"] is True


@every_operation
def test_every_parameter_says_what_it_may_be(route: str) -> None:
    operation = OPERATIONS[route]
    named = set(re.findall(r"{(\w+)}", route))
    assert {one["name"] for one in operation["parameters"] if one["in"] == "path"} == named
    for parameter in operation["parameters"]:
        schema = parameter["schema"]
        if schema["type"] == "integer":
            assert schema["minimum"] >= 0
            assert schema["maximum"] < 1 << 53
        else:
            assert "pattern" in schema or "maxLength" in schema
        if "pattern" in schema:
            assert schema["pattern"].startswith("^")
            assert schema["pattern"].endswith("$")
            re.compile(schema["pattern"])


@every_operation
def test_a_post_of_somebody_known_takes_an_idempotency_key(route: str) -> None:
    operation = OPERATIONS[route]
    keys = [one for one in operation["parameters"] if one["name"] == "Idempotency-Key"]
    # A prediction changes nothing: it can be repeated without one.
    known = operation.get("security") != [] and "/v2/" not in route
    assert bool(keys) == (route.startswith("POST") and known)
    assert all(one["schema"]["pattern"] == "^[!-~]{8,128}$" for one in keys)


def bodies() -> dict[str, dict[str, Any]]:
    found = {}
    for operation in OPERATIONS.values():
        content = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if content is not None:
            name = content["schema"]["$ref"].rpartition("/")[2]
            found[name] = DOCUMENT["components"]["schemas"][name]
    return found


@pytest.mark.parametrize("name", bodies())
def test_every_number_and_list_of_a_body_is_bounded(name: str) -> None:
    schema = bodies()[name]
    assert schema["additionalProperties"] is False
    for field, given in schema["properties"].items():
        for one in given.get("anyOf", [given]):
            if one.get("type") == "integer":
                assert {"minimum", "maximum"} <= set(one), field
            if one.get("type") == "array":
                assert "maxItems" in one, field
            if one.get("type") == "string" and field != "text":
                assert "maxLength" in one, field


def endpoint(**changes: Any) -> Endpoint:
    values: dict[str, Any] = {
        "method": "GET",
        "path": "/v1/things",
        "guard": Public("it is open"),
        "handler": lambda _call: None,
        "summary": "Do it",
    }
    return Endpoint(**(values | changes))


def test_a_status_beyond_what_a_shape_implies_is_declared() -> None:
    made = openapi.document([endpoint(refuses=(422,), status=204)], version="1")
    assert sorted(made["paths"]["/v1/things"]["get"]["responses"]) == ["204", "400", "422", "431", "500", "503"]


def test_a_parameter_that_nobody_described_cannot_be_documented() -> None:
    for changes in ({"path": "/v1/{what}"}, {"query": ("what",)}):
        with pytest.raises(KeyError):
            openapi.document([endpoint(**changes)], version="1")


def test_a_union_of_answers_is_any_of_them() -> None:
    made = openapi.document([endpoint(returns=dict[str, int] | list[int])], version="1")
    content = made["paths"]["/v1/things"]["get"]["responses"]["200"]["content"]
    assert len(content["application/json"]["schema"]["anyOf"]) == 2
