"""The data plane: what is remembered and how long, what is recorded before it is answered, large and packed bodies."""

import gzip
import json
from typing import Any

import pytest

from fakes.access import INITECH
from fakes.core import ACME, GLOBEX, FakeClock, operator_caller, tenant_caller
from fakes.edge import Answer, Edge
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import TenantCaller
from modelkeep_platform.core.decisions import Decision
from modelkeep_platform.core.errors import NotFoundError, UnavailableError, UnprocessableError
from modelkeep_platform.core.events import Event, Outcome
from modelkeep_platform.core.ids import ObjectId, TenantId
from modelkeep_platform.core.refs import Kind, ResourceRef
from modelkeep_platform.models.graph.format import parse
from modelkeep_platform.models.values import ServableVersion
from modelkeep_platform.storage.database import Database
from services.house import GRAPH

BODY = json.dumps({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}).encode()
GRAPH_BYTES = json.dumps(GRAPH).encode()


def servable(owner: TenantId = ACME, *, grant: str | None = None, expires_at: int | None = None) -> ServableVersion:
    ref = ResourceRef(owner=owner, kind=Kind.MODEL, object_id=ObjectId("mdl_1"))
    decision = Decision(
        allow=True,
        action=Action.MODEL_PREDICT,
        ref=ref,
        caller_tenant=ACME,
        grant_id=None if grant is None else ObjectId(grant),
        expires_at=expires_at,
    )
    return ServableVersion(
        ref=ref,
        name="m",
        version=3,
        alias="",
        graph=parse(GRAPH_BYTES),
        weights_bytes=24,
        decision=decision,
    )


class Counting(dict[str, Any]):
    """Counts how often a version was looked up."""

    looked = 0

    def __getitem__(self, name: str) -> Any:
        self.looked += 1
        return super().__getitem__(name)


@pytest.fixture
def edge(database: Database, clock: FakeClock) -> Edge:
    edge = Edge(database, clock, [])
    edge.tokens.callers |= {"a": tenant_caller(ACME), "b": tenant_caller(ACME, name="bob"), "op": operator_caller()}
    edge.versions.known = Counting({"m": servable(), "globex~m": servable(GLOBEX, grant="grt_1")})
    return edge


def infer(
    edge: Edge, path: str = "/v2/models/m/infer", *, token: str = "a", body: bytes = BODY, **options: Any
) -> Answer:
    return edge.call("POST", path, token=token, body=[body], **options)


def looked(edge: Edge) -> int:
    assert isinstance(edge.versions.known, Counting)
    return edge.versions.known.looked


def test_a_prediction_is_answered_and_recorded(edge: Edge) -> None:
    answer = infer(edge)
    assert answer.status == 200
    assert answer.json() == {
        "model_name": "m",
        "model_version": "3",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}],
    }
    (event,) = edge.recorder.events
    assert (event.tenant, event.action, event.outcome) == (ACME, Action.MODEL_PREDICT, Outcome.DONE)
    assert event.facts == {"version": 3}
    assert event.decision is not None
    assert edge.noted.callers == []


def test_a_prediction_whose_entry_is_not_taken_is_not_answered(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_event: Event) -> None:
        raise UnavailableError("the audit log cannot take entries; try again", code="audit_unavailable")

    monkeypatch.setattr(edge.recorder, "record_soon", full)
    answer = infer(edge)
    assert (answer.status, answer.code) == (503, "audit_unavailable")
    assert b"outputs" not in answer.body


def test_a_version_is_looked_up_once_for_each_caller_and_use(edge: Edge) -> None:
    for _ in range(3):
        assert infer(edge).status == 200
    assert looked(edge) == 1
    infer(edge, token="b")
    assert looked(edge) == 2, "another principal has a decision of its own"
    infer(edge, "/v2/models/m/versions/3/infer")
    assert looked(edge) == 3


def test_what_is_remembered_ends_with_the_epoch(edge: Edge) -> None:
    infer(edge)
    edge.epoch.refresh()
    edge.versions.known["m"] = NotFoundError("there is no such object, or you may not see it")
    assert infer(edge).status == 404
    assert looked(edge) == 2


def test_roles_are_part_of_what_is_remembered(edge: Edge) -> None:
    infer(edge)
    demoted = edge.tokens.callers["a"]
    assert isinstance(demoted, TenantCaller)
    edge.tokens.callers["a"] = TenantCaller(
        tenant=demoted.tenant,
        principal=demoted.principal,
        principal_kind=demoted.principal_kind,
        name=demoted.name,
        roles=frozenset(),
        token_id=demoted.token_id,
        request_id=demoted.request_id,
    )
    infer(edge)
    assert looked(edge) == 2


def test_a_granted_version_is_looked_up_once_for_each_caller(edge: Edge) -> None:
    for _ in range(3):
        assert infer(edge, "/v2/models/globex~m/infer").status == 200
    assert looked(edge) == 1
    assert {event.tenant for event in edge.recorder.events} == {GLOBEX}
    edge.tokens.callers["c"] = tenant_caller(INITECH)
    infer(edge, "/v2/models/globex~m/infer", token="c")
    assert looked(edge) == 2, "another tenant's grant is another one"


def test_a_granted_version_is_remembered_until_its_grant_ends(edge: Edge, clock: FakeClock) -> None:
    edge.versions.known["globex~m"] = servable(GLOBEX, grant="grt_1", expires_at=clock.now_s() + 10)
    infer(edge, "/v2/models/globex~m/infer")
    clock.advance(9)
    assert infer(edge, "/v2/models/globex~m/infer").status == 200
    assert looked(edge) == 1
    edge.versions.known["globex~m"] = NotFoundError("there is no such object, or you may not see it")
    clock.advance(1)
    assert infer(edge, "/v2/models/globex~m/infer").status == 404
    assert looked(edge) == 2


def test_a_granted_version_is_not_remembered_past_the_epoch(edge: Edge) -> None:
    infer(edge, "/v2/models/globex~m/infer")
    edge.epoch.refresh()
    edge.versions.known["globex~m"] = NotFoundError("there is no such object, or you may not see it")
    assert infer(edge, "/v2/models/globex~m/infer").status == 404


def test_an_operator_has_no_access_and_that_is_noted(edge: Edge) -> None:
    answer = infer(edge, token="op")
    assert (answer.status, answer.code) == (403, "operator_forbidden")
    assert looked(edge) == 0
    ((action, code, _),) = edge.noted.callers
    assert (action, code) == ("model:predict", "operator_forbidden")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (UnprocessableError("no", code="inference_failed"), 422, "inference_failed"),
        (RuntimeError("a secret"), 500, "internal"),
    ],
)
def test_a_failed_prediction_is_recorded_once(edge: Edge, error: Exception, status: int, code: str) -> None:
    edge.serving.error = error
    answer = infer(edge)
    assert (answer.status, answer.code) == (status, code)
    assert b"secret" not in answer.body
    (event,) = edge.recorder.events
    assert (event.outcome, event.facts) == (Outcome.FAILED, {"version": 3, "error": code})
    assert edge.noted.callers == []


def test_a_packed_body_is_unpacked_small_and_large(edge: Edge) -> None:
    rows = 20_000
    data = [float(number % 7919) for number in range(2 * rows)]
    large = json.dumps({"inputs": [{"name": "x", "shape": [rows, 2], "datatype": "FP32", "data": data}]}).encode()
    for body in (BODY, large):
        answer = infer(edge, body=gzip.compress(body), headers=[("content-encoding", "gzip")])
        assert answer.status == 200
        assert answer.json()["outputs"][0]["data"] == json.loads(body)["inputs"][0]["data"]
        assert infer(edge, body=body).body == answer.body


def test_a_model_says_what_it_takes(edge: Edge) -> None:
    answer = edge.call("GET", "/v2/models/m/versions/3", token="a").json()
    assert answer["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]
    assert answer["versions"] == ["3"]
    assert edge.call("GET", "/v2/models/m/ready", token="a").json() == {"name": "m", "ready": True}


def test_what_is_remembered_is_bounded_and_what_was_used_longest_ago_goes(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane: Any = edge.app._data_plane
    monkeypatch.setattr(plane._known, "_size", 2)
    for version in ("1", "2", "1", "3", "1"):
        infer(edge, f"/v2/models/m/versions/{version}/infer")
    assert looked(edge) == 3
