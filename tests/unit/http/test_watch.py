"""What is said of a request when it is over: template, ids, status and code; never its path, query or headers."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from fakes.core import ACME, tenant_caller
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import TenantCaller
from modelkeep_platform.http.connection import Connections
from modelkeep_platform.http.refusals import CALLER
from modelkeep_platform.http.watch import CODE, INFER, STATUS, Watch, matched
from modelkeep_platform.telemetry.metrics import Metrics


class Watched:
    """A watch, what it counted and what it said."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.metrics = Metrics()
        self.watch = Watch(self.metrics)
        self._caplog = caplog

    def saw(self, *, caller: TenantCaller | None = None, status: int | None = 200, **more: Any) -> dict[str, Any]:
        scope: dict[str, Any] = {"request_id": "req_1", "method": "GET", "path": "/secret", "query_string": b"secret"}
        scope |= more.pop("scope", {})
        route = more.pop("route", None)
        if route is not None:
            matched(scope, *route)
        if caller is not None:
            scope[CALLER] = caller
        if status is not None:
            scope[STATUS] = status
        if "code" in more:
            scope[CODE] = more["code"]
        self._caplog.clear()
        self.watch.saw(scope, 0.0123456)
        (record,) = self._caplog.records
        assert record.getMessage() == "request"
        found: dict[str, Any] = vars(record)["fields"]
        return found

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@pytest.fixture
def watched(caplog: pytest.LogCaptureFixture) -> Iterator[Watched]:
    with caplog.at_level(logging.INFO):
        yield Watched(caplog)


def test_a_line_of_a_known_callers_request(watched: Watched) -> None:
    caller = tenant_caller()
    assert watched.saw(caller=caller, route=("GET /v1/models/{name}", Action.MODEL_READ)) == {
        "request_id": "req_1",
        "tenant": ACME,
        "principal": caller.principal,
        "action": "model:read",
        "route": "GET /v1/models/{name}",
        "status": 200,
        "duration_ms": 12.35,
        "code": "",
    }
    assert watched.value("modelkeep_tenant_requests_total", tenant=ACME) == 1


@pytest.mark.parametrize(
    ("scope", "route"),
    [
        pytest.param({}, "unmatched", id="nothing matched"),
        pytest.param({"endpoint": 1, "path_params": {}}, "GET /secret", id="a page without parameters"),
        pytest.param({"endpoint": 1, "path_params": {"name": "x"}}, "unmatched", id="a path with parameters"),
        pytest.param({"endpoint": 1, "method": "SECRET"}, "OTHER /secret", id="a method nobody knows"),
    ],
)
def test_a_route_is_a_template_whatever_was_asked(watched: Watched, scope: dict[str, Any], route: str) -> None:
    assert watched.saw(scope=scope, status=404)["route"] == route


def test_a_connection_that_broke_before_an_answer_has_no_status(watched: Watched) -> None:
    assert watched.saw(status=None)["status"] == 0
    assert watched.value("modelkeep_strangers_refused_total", status="0") == 0


@pytest.mark.parametrize(
    ("status", "outcome"), [(200, "done"), (422, "refused"), (429, "refused"), (503, "failed"), (None, "failed")]
)
def test_predictions_are_counted_by_outcome(watched: Watched, status: int | None, outcome: str) -> None:
    watched.saw(caller=tenant_caller(), route=(INFER, Action.MODEL_PREDICT), status=status)
    assert watched.value("modelkeep_predictions_total", outcome=outcome) == 1


def test_limits_and_strangers_are_counted(watched: Watched) -> None:
    watched.saw(caller=tenant_caller(), status=409, code="storage_exhausted")
    watched.saw(caller=tenant_caller(), status=403, code="forbidden")
    watched.saw(status=401, code="token_invalid")
    assert watched.value("modelkeep_limited_total", code="storage_exhausted") == 1
    assert watched.value("modelkeep_limited_total", code="forbidden") == 0
    assert watched.value("modelkeep_strangers_refused_total", status="401") == 1
    assert watched.value("modelkeep_strangers_refused_total", status="403") == 0


# --- connections ------------------------------------------------------------------------------------


def test_connections_are_bounded_by_address_and_together() -> None:
    refused: list[str] = []
    bounds = Connections(most=3, of_source=2, refused=refused.append)
    assert [bounds.enter("a") for _ in range(3)] == [True, True, False]
    assert [bounds.enter("b"), bounds.enter("b"), bounds.enter("c")] == [True, False, False]
    assert refused == ["source", "all", "all"]
    bounds.leave("a")
    assert bounds.enter("c")
    assert bounds.open == 3


def test_no_bound_for_an_address_is_none() -> None:
    bounds = Connections(most=100)
    assert all(bounds.enter("proxy") for _ in range(100))
    for _ in range(100):
        bounds.leave("proxy")
    assert (bounds.open, bounds._sources) == (0, {})
