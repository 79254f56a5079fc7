"""Endpoints: none without an action or a reason; parameters, cursors and bodies are what they are declared to be."""

import base64
from typing import Any

import pytest

from fakes.core import ACME, FakeClock, operator_caller, tenant_caller
from fakes.edge import Edge
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import Caller
from modelkeep_platform.core.errors import ForbiddenError, MalformedError, UnauthenticatedError
from modelkeep_platform.core.ids import RequestId
from modelkeep_platform.http.management import bearer
from modelkeep_platform.http.routing import Authenticated, Call, Endpoint, Public, decimal, parse_body
from modelkeep_platform.http.wire.governance import NewGrant
from modelkeep_platform.http.wire.models import AliasTarget
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.pages import PageRequest


def endpoint(**changes: Any) -> Endpoint:
    values: dict[str, Any] = {
        "method": "GET",
        "path": "/v1/things",
        "guard": Action.MODEL_READ,
        "handler": lambda _call: {"done": True},
        "summary": "Do it",
        "returns": dict[str, bool],
    }
    return Endpoint(**(values | changes))


@pytest.mark.parametrize(
    "guard",
    [None, "model:read", "", True, Public(""), Public("  "), Authenticated("")],
    ids=["none", "text", "empty", "true", "public-without-reason", "public-blank", "authenticated-without-reason"],
)
def test_an_endpoint_without_an_action_or_a_reason_cannot_be_registered(guard: object) -> None:
    with pytest.raises(TypeError, match="GET /v1/things is registered without"):
        endpoint(guard=guard)


@pytest.mark.parametrize("guard", [Action.MODEL_READ, Public("it is no secret"), Authenticated("everyone may")])
def test_an_endpoint_with_one_can(guard: object) -> None:
    assert endpoint(guard=guard).guard == guard


def test_two_endpoints_of_one_method_and_path_are_not_served(database: Database, clock: FakeClock) -> None:
    with pytest.raises(ValueError, match="GET /v1/things is registered twice"):
        Edge(database, clock, [endpoint(), endpoint(guard=Action.MODEL_LIST)])


def call(caller: Caller | None = None, **query: str) -> Call:
    return Call(
        request_id=RequestId("req"), source="", caller=caller, path={}, query=query, headers={}, body=None, raw=b""
    )


def test_a_call_gives_its_caller_to_those_whom_it_is_for() -> None:
    tenant, operator = tenant_caller(), operator_caller()
    assert call(tenant).tenant_caller is tenant
    assert call(operator).operator is operator
    assert call(tenant).any_caller is tenant
    with pytest.raises(ForbiddenError) as forbidden:
        call(operator).tenant_caller  # noqa: B018
    assert forbidden.value.error_code == "operator_forbidden"
    with pytest.raises(ForbiddenError) as only:
        call(tenant).operator  # noqa: B018
    assert only.value.error_code == "operator_only"
    with pytest.raises(UnauthenticatedError):
        call().any_caller  # noqa: B018


def test_a_page_is_what_was_asked_for_within_bounds() -> None:
    assert call().page == PageRequest(limit=50, cursor=None)
    assert call(limit="200", cursor="YQ==").page == PageRequest(limit=200, cursor="YQ==")
    for limit in ("0", "201", "999999999999999"):
        with pytest.raises(MalformedError) as caught:
            call(limit=limit).page  # noqa: B018
        assert caught.value.error_code == "invalid_page"


@pytest.mark.parametrize("text", ["", "-1", "+1", "1.0", "1e3", " 1", "0x1", "²", "٣", "1_0", "1" * 16, "9" * 5000])
def test_what_is_not_a_decimal_number_is_refused(text: str) -> None:
    with pytest.raises(MalformedError) as caught:
        decimal(text, "limit")
    assert caught.value.error_code == "invalid_parameter"


def test_a_decimal_number_has_up_to_15_digits() -> None:
    assert decimal("9" * 15, "limit") == 10**15 - 1
    assert decimal("007", "limit") == 7
    assert call().integer("limit") is None


@pytest.mark.parametrize("cursor", ["%", "a", "é", "_w==", "=====", "YQ", "YQ==YQ==", "Y Q=", "YQ+/"])
def test_a_cursor_that_was_not_given_out_is_refused(cursor: str) -> None:
    with pytest.raises(MalformedError) as caught:
        call(cursor=cursor).page.after()
    assert caught.value.error_code == "invalid_page"


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({}, "missing required field `version`"),
        ({"version": "1"}, "expected `int`"),
        ({"version": True}, "expected `int`"),
        ({"version": 1.0}, "expected `int`"),
        ({"version": 0}, ">= 1"),
        ({"version": 10**9}, "<= 999999999"),
        ({"version": 1, "more": 1}, "unknown field `more`"),
        ([], "expected `object`"),
        (None, "expected `object`"),
    ],
)
def test_a_body_that_is_not_what_is_wanted_is_refused_by_its_place(body: object, place: str) -> None:
    with pytest.raises(MalformedError, match=place) as caught:
        parse_body(body, AliasTarget)
    assert caught.value.error_code == "invalid_body"
    assert "msgspec" not in caught.value.message


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**399], ids=["63", "minus", "400-digits"])
def test_an_integer_of_more_than_64_bits_is_refused_wherever_it_stands(value: int) -> None:
    for body in (value, [value], {"a": [{"b": value}]}):
        with pytest.raises(MalformedError, match="64 bits"):
            parse_body(body, Any)
    assert parse_body({"a": [2**63 - 1, -(2**63)]}, Any)


def test_words_of_a_body_are_bounded() -> None:
    good = {"kind": "model", "name": "m", "grantee": "g", "actions": ["model:read"]}
    assert isinstance(parse_body(good, NewGrant), NewGrant)
    for change in ({"name": "x" * 257}, {"actions": ["x"] * 65}, {"actions": ["x" * 65]}, {"expires_at": -1}):
        with pytest.raises(MalformedError):
            parse_body(good | change, NewGrant)


@pytest.mark.parametrize(
    "headers",
    [[], ["Bearer a", "Bearer a"], ["Basic a"], ["Bearer"], ["Bearer "], ["Bearer é"], ["bearer"]],
    ids=["none", "two", "basic", "bare", "empty", "not-ascii", "lower"],
)
def test_one_bearer_token_or_none(headers: list[str]) -> None:
    with pytest.raises(UnauthenticatedError) as caught:
        bearer(headers)
    assert caught.value.error_code == "token_missing"
    assert bearer(["bearer abc"]) == "abc"


@pytest.fixture
def edge(database: Database, clock: FakeClock) -> Edge:
    def shown(call: Call) -> dict[str, Any]:
        return {"path": dict(call.path), "query": dict(call.query), "source": call.source}

    edge = Edge(
        database,
        clock,
        [
            endpoint(handler=shown, returns=dict[str, Any], query=("limit", "cursor")),
            endpoint(path="/v1/things/{id}", handler=shown, returns=dict[str, Any]),
            endpoint(path="/v1/things/{id}", method="DELETE", returns=None, status=204),
            endpoint(path="/v1/things/check", method="POST", body=dict[str, int], handler=lambda call: call.body),
            endpoint(path="/v1/open", guard=Public("it is no secret")),
            endpoint(
                path="/v1/raw", method="PUT", body=bytes, limit_bytes=4, handler=lambda call: {"n": len(call.raw)}
            ),
        ],
    )
    edge.tokens.callers["t"] = tenant_caller(ACME)
    return edge


def test_a_query_is_given_as_declared(edge: Edge) -> None:
    answer = edge.call("GET", "/v1/things", token="t", query=b"limit=3&cursor=a%20b")
    assert answer.json() == {"path": {}, "query": {"limit": "3", "cursor": "a b"}, "source": "192.0.2.7"}
    assert edge.call("GET", "/v1/things", token="t", client=None).json()["source"] == ""


@pytest.mark.parametrize(
    "query", [b"limt=3", b"limit=3&limit=4", b"=", b"limit[]=3", b"cursor=" + b"a" * 513, b"%00=1"]
)
def test_a_query_that_is_not_declared_is_refused(edge: Edge, query: bytes) -> None:
    answer = edge.call("GET", "/v1/things", token="t", query=query)
    assert (answer.status, answer.code) == (400, "invalid_parameter")


def test_a_literal_path_is_not_taken_for_an_id(edge: Edge) -> None:
    assert edge.call("POST", "/v1/things/check", token="t", body=[b'{"a":1}']).json() == {"a": 1}
    assert edge.call("GET", "/v1/things/check", token="t").json()["path"] == {"id": "check"}


def test_each_method_of_a_path_has_its_endpoint(edge: Edge) -> None:
    assert edge.call("GET", "/v1/things/7", token="t").json()["path"] == {"id": "7"}
    deleted = edge.call("DELETE", "/v1/things/7", token="t")
    assert (deleted.status, deleted.body) == (204, b"")
    refused = edge.call("PATCH", "/v1/things/7", token="t")
    assert (refused.status, refused.code, refused.headers["allow"]) == (405, "method_not_allowed", "DELETE, GET, HEAD")


def test_head_is_get_without_a_body_of_its_own_handler(edge: Edge) -> None:
    assert edge.call("HEAD", "/v1/things/7", token="t").status == 200


def test_raw_bodies_are_given_as_they_are(edge: Edge) -> None:
    assert edge.call("PUT", "/v1/raw", token="t", body=[b"ab", b"cd"]).json() == {"n": 4}
    assert edge.call("PUT", "/v1/raw", token="t", body=[b"ab", b"cde"]).status == 413


def test_a_public_endpoint_asks_for_no_token_and_any_other_does(edge: Edge) -> None:
    assert edge.call("GET", "/v1/open").json() == {"done": True}
    assert edge.call("GET", "/v1/open", token="unknown").json() == {"done": True}
    for token in (None, "unknown"):
        refused = edge.call("GET", "/v1/things", token=token)
        assert refused.status == 401
        assert refused.headers["www-authenticate"].endswith('/.well-known/oauth-protected-resource"')


def test_a_cursor_survives_its_way_over_the_wire() -> None:
    for key in ("a", "ä" * 30, "0" * 18):
        cursor = base64.urlsafe_b64encode(key.encode()).decode()
        assert call(cursor=cursor).page.after() == key
