"""One shape for every error, with the request's id, and nothing of the platform's insides in it."""

import logging
import re

import pytest

from fakes.core import FakeClock, tenant_caller
from fakes.edge import Edge
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.errors import (
    ForbiddenError,
    IntegrityError,
    ModelkeepError,
    NotFoundError,
    RateLimitedError,
    UnavailableError,
    UnprocessableError,
)
from modelkeep_platform.http.routing import Call, Endpoint
from modelkeep_platform.storage.database import Database

LEAKS = re.compile(r"Traceback|File \"|\.py|/srv/|secret|sqlalchemy|msgspec|KeyError", re.IGNORECASE)


class Failing:
    error: Exception = NotFoundError("")

    def __call__(self, _call: Call) -> object:
        raise self.error


@pytest.fixture
def failing() -> Failing:
    return Failing()


@pytest.fixture
def edge(database: Database, clock: FakeClock, failing: Failing) -> Edge:
    edge = Edge(
        database,
        clock,
        [
            Endpoint(
                method="GET",
                path="/v1/things/{id}",
                guard=Action.MODEL_READ,
                handler=failing,
                summary="Fail",
                returns=dict[str, str],
            )
        ],
    )
    edge.tokens.callers["t"] = tenant_caller()
    edge.versions.known["m"] = NotFoundError("there is no such object, or you may not see it")
    return edge


ERRORS: list[tuple[Exception, int, str]] = [
    (NotFoundError("there is no such object"), 404, "not_found"),
    (ForbiddenError("denied", details={"reasons": ["r"]}), 403, "forbidden"),
    (UnprocessableError("no", code="invalid_name"), 422, "invalid_name"),
    (RateLimitedError("wait", retry_after_s=7), 429, "rate_limited"),
    (UnavailableError("later"), 503, "unavailable"),
    (IntegrityError("damaged"), 500, "integrity"),
    (KeyError("/srv/data/secret"), 500, "internal"),
    (RuntimeError("Traceback File"), 500, "internal"),
]


@pytest.mark.parametrize(("error", "status", "code"), ERRORS, ids=[code for _, _, code in ERRORS[:-1]] + ["runtime"])
def test_every_error_has_the_one_envelope(
    edge: Edge, failing: Failing, error: Exception, status: int, code: str
) -> None:
    failing.error = error
    answer = edge.call("GET", "/v1/things/1", token="t")
    assert answer.status == status
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "request_id", "details"}
    assert (body["error"]["code"], body["error"]["request_id"]) == (code, answer.headers["x-request-id"])
    assert body["error"]["details"] == (dict(error.details) if isinstance(error, ModelkeepError) else {})
    assert not LEAKS.search(answer.body.decode())
    assert answer.headers.get("retry-after") == ("7" if status == 429 else None)


def test_what_was_unexpected_is_in_the_servers_log_under_the_request_id(
    edge: Edge, failing: Failing, caplog: pytest.LogCaptureFixture
) -> None:
    failing.error = KeyError("/srv/data/secret")
    with caplog.at_level(logging.ERROR):
        answer = edge.call("GET", "/v1/things/1", token="t")
    (record,) = caplog.records
    assert vars(record)["fields"] == {"request_id": answer.headers["x-request-id"], "code": "internal"}
    assert record.exc_info is not None


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "no_such_path"),
        ("GET", "/v1", 404, "no_such_path"),
        ("GET", "/v1/things/", 404, "no_such_path"),
        ("GET", "/v1/things/1/", 404, "no_such_path"),
        ("GET", "/v1/things/1/2", 404, "no_such_path"),
        ("GET", "//v1/things/1", 404, "no_such_path"),
        ("GET", "/v3", 404, "no_such_path"),
        ("GET", "/v2x", 404, "no_such_path"),
        ("DELETE", "/v1/things/1", 405, "method_not_allowed"),
        ("BREW", "/v1/things/1", 405, "method_not_allowed"),
    ],
)
def test_unknown_paths_and_methods_have_it_too(edge: Edge, method: str, path: str, status: int, code: str) -> None:
    answer = edge.call(method, path, token="t", headers=[("host", "evil.test")])
    assert (answer.status, answer.code) == (status, code)
    assert set(answer.json()["error"]) == {"code", "message", "request_id", "details"}
    assert "location" not in answer.headers, "nothing redirects, least of all to a host that the client named"
    assert b"evil.test" not in answer.body


@pytest.mark.parametrize(
    ("method", "path", "token", "status", "code"),
    [
        ("GET", "/v2/models/m", "t", 404, "not_found"),
        ("GET", "/v2/models/m", None, 401, "token_missing"),
        ("GET", "/v2/", None, 404, "no_such_path"),
        ("GET", "/v2/models/m/versions", "t", 404, "no_such_path"),
        ("GET", "/v2/models/m/infer/x", "t", 404, "no_such_path"),
        ("GET", "/v2/models/m/infer", "t", 405, "method_not_allowed"),
        ("POST", "/v2/health/live", None, 405, "method_not_allowed"),
        ("POST", "/v2", None, 405, "method_not_allowed"),
    ],
)
def test_the_inference_protocol_has_its_own_one_shape(
    edge: Edge, method: str, path: str, token: str | None, status: int, code: str
) -> None:
    answer = edge.call(method, path, token=token)
    assert (answer.status, answer.headers["x-error-code"]) == (status, code)
    assert set(answer.json()) == {"error"}
    assert isinstance(answer.json()["error"], str)
    assert ("www-authenticate" in answer.headers) == (status == 401)
    assert ("allow" in answer.headers) == (status == 405)


def test_every_answer_is_named_and_kept_by_nobody(edge: Edge) -> None:
    paths = ["/v1/things/1", "/v1/nothing", "/v2", "/v2/health/live", "/v2/models/m"]
    answers = [edge.call("GET", path, token="t") for path in paths]
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(paths)
    for answer in answers:
        assert re.fullmatch(r"req_[a-z2-7]{26}", answer.headers["x-request-id"])
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_policys_refusals_are_not_noted_twice(edge: Edge, failing: Failing) -> None:
    for error in (NotFoundError("no"), ForbiddenError("no", details={"reasons": ["r"]}), UnavailableError("later")):
        failing.error = error
        edge.call("GET", "/v1/things/1", token="t")
    assert edge.noted.callers == []
    failing.error = ForbiddenError("only the operator", code="operator_only")
    edge.call("GET", "/v1/things/1", token="t")
    assert edge.noted.callers == [("model:read", "operator_only", "GET /v1/things/{id}")]


def test_what_does_not_authenticate_is_noted_as_failed(edge: Edge, failing: Failing) -> None:
    failing.error = IntegrityError("the sealed bytes do not open", code="sealed_invalid")
    answer = edge.call("GET", "/v1/things/1", token="t")
    assert (answer.status, answer.code) == (500, "sealed_invalid")
    assert edge.noted.callers == [("model:read", "sealed_invalid", "GET /v1/things/{id}")]
    assert edge.noted.outcomes == ["failed"]


def test_a_refusal_that_cannot_be_noted_says_that_the_log_is_out_of_order(edge: Edge, failing: Failing) -> None:
    failing.error = UnprocessableError("no")
    edge.noted.broken = UnavailableError("the audit log cannot take entries; try again", code="audit_unavailable")
    answer = edge.call("GET", "/v1/things/1", token="t")
    assert (answer.status, answer.code) == (503, "audit_unavailable")
