"""Predictions: single rows, batches, several inputs, numpy in and out, and what is refused before it is sent."""

import json
import math
from typing import Any

import numpy as np
import pytest

from fakes.sdk import FakeTime
from fakes.server import FakePlatform, answer_json, refusal
from modelkeep._core.flows import Sync
from modelkeep.client import Nouns
from modelkeep.errors import ConfigurationError, ForbiddenError, InvalidRequestError, NotFoundError, ProtocolError


@pytest.fixture(autouse=True)
def model(platform: FakePlatform) -> None:
    platform.add_model("m")


def infer_bodies(platform: FakePlatform, model: str = "m") -> list[Any]:
    return [json.loads(request.content) for request in platform.sent("POST", f"/v2/models/{model}/infer")]


def test_a_batch_of_lists_gives_lists(client: Nouns[Sync], platform: FakePlatform) -> None:
    assert client.predict("m", [[1, 2, 3], [4, 5, 6.5]]) == [[2.0, 4.0, 6.0], [8.0, 10.0, 13.0]]
    (sent,) = infer_bodies(platform)
    assert sent["inputs"] == [
        {"name": "x", "shape": [2, 3], "datatype": "FP32", "data": [1.0, 2.0, 3.0, 4.0, 5.0, 6.5]}
    ]


def test_a_single_row_gives_a_row(client: Nouns[Sync]) -> None:
    assert client.predict("m", [1, 2, 3]) == [2.0, 4.0, 6.0]


def test_numpy_in_gives_numpy_out(client: Nouns[Sync]) -> None:
    batch = client.predict("m", np.array([[1, 2, 3]], dtype=np.float32))
    assert isinstance(batch, np.ndarray)
    assert (batch.dtype, batch.shape) == (np.dtype("float32"), (1, 3))
    row = client.predict("m", np.array([1, 2, 3], dtype=np.float64))
    np.testing.assert_array_equal(row, [2, 4, 6])


def test_a_mapping_names_the_inputs(client: Nouns[Sync]) -> None:
    assert client.predict("m", {"x": [[1, 2, 3]]}) == [[2.0, 4.0, 6.0]]


def test_versions_and_aliases_stand_in_the_path(client: Nouns[Sync], platform: FakePlatform) -> None:
    client.predict("m", [1, 2, 3], version=2)
    client.predict("m", [1, 2, 3], version="production")
    assert len(platform.sent("POST", "/v2/models/m/versions/2/infer")) == 1
    assert len(platform.sent("POST", "/v2/models/m/versions/production/infer")) == 1


def test_metadata_is_read_once(client: Nouns[Sync], platform: FakePlatform, time: FakeTime) -> None:
    for _ in range(3):
        client.predict("m", [1, 2, 3])
    assert len(platform.sent("GET", "/v2/models/m")) == 1
    time.now += 61
    client.predict("m", [1, 2, 3])
    assert len(platform.sent("GET", "/v2/models/m")) == 2


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([[1, 2]], r"the shape \[1, 2\]"),
        ([[1, 2, 3], [4, 5]], "different lengths"),
        ([[[1, 2, 3]]], "shape"),
        ([1, 2, math.nan], "`nan` at position 2"),
        ([1, 2, math.inf], "finite"),
        ([1, 2, "3"], "not a number"),
        ({"y": [1, 2, 3]}, "no input `y`"),
        ({}, "`x` is missing"),
        (np.array([1, np.nan, 3]), "finite"),
    ],
    ids=["width", "ragged", "rank", "nan", "inf", "text", "unknown", "missing", "numpy-nan"],
)
def test_inputs_that_do_not_fit_are_not_sent(
    client: Nouns[Sync], platform: FakePlatform, inputs: object, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        client.predict("m", inputs)
    assert infer_bodies(platform) == []


def test_whole_numbers_are_wanted_where_the_model_takes_them(client: Nouns[Sync], platform: FakePlatform) -> None:
    platform.models["m"]["metadata"]["inputs"][0]["datatype"] = "INT64"
    assert client.predict("m", [1.0, 2.0, 3.0]) == [2, 4, 6]
    with pytest.raises(ConfigurationError, match="whole numbers"):
        client.predict("m", [1.5, 2, 3])


def test_several_inputs_and_outputs(client: Nouns[Sync], platform: FakePlatform) -> None:
    tensors = [{"name": name, "datatype": "FP64", "shape": [-1, 1]} for name in ("a", "b")]
    platform.models["m"]["metadata"]["inputs"] = tensors

    def answer(request: Any) -> Any:
        if request.method != "POST" or not request.url.path.endswith("/infer"):
            return None
        body = json.loads(request.content)
        outputs = [
            {"name": f"o-{one['name']}", **{k: one[k] for k in ("datatype", "shape", "data")}} for one in body["inputs"]
        ]
        return answer_json({"model_name": "m", "model_version": "1", "id": body["id"], "outputs": outputs})

    platform.before.append(answer)
    assert client.predict("m", {"a": [[1]], "b": [[2]]}) == {"o-a": [[1.0]], "o-b": [[2.0]]}
    with pytest.raises(ConfigurationError, match="several inputs"):
        client.predict("m", [[1]])
    with pytest.raises(ConfigurationError, match="single rows"):
        client.predict("m", {"a": [1], "b": [[2]]})


def test_who_may_only_predict_is_not_stopped_by_metadata(client: Nouns[Sync], platform: FakePlatform) -> None:
    platform.add_model("acme~m")

    def hidden(request: Any) -> Any:
        if request.method == "GET" and request.url.path.startswith("/v2/"):
            return answer_json({"error": "`model:read` is not granted"}, status=403)
        return None

    platform.before.append(hidden)
    result = client.predict("acme~m", np.array([[1, 2]], dtype=np.float64))
    np.testing.assert_array_equal(result, [[2, 4]])
    (sent,) = infer_bodies(platform, "acme~m")
    assert (sent["inputs"][0]["name"], sent["inputs"][0]["datatype"]) == ("input", "FP64")


def test_a_refusal_of_the_data_plane_carries_its_reason(client: Nouns[Sync], platform: FakePlatform) -> None:
    platform.before.append(
        lambda request: (
            answer_json(
                {"error": "`model:predict` is denied: policy `only` forbids it"},
                status=403,
                headers={"x-error-code": "forbidden"},
            )
            if request.method == "POST" and request.url.path.startswith("/v2/")
            else None
        )
    )
    with pytest.raises(ForbiddenError) as caught:
        client.predict("m", [1, 2, 3])
    assert caught.value.reasons == ("`model:predict` is denied: policy `only` forbids it",)
    assert (caught.value.code, caught.value.request_id) == ("forbidden", "req-1")


def test_a_model_that_is_not_there(client: Nouns[Sync]) -> None:
    with pytest.raises(NotFoundError) as caught:
        client.predict("never", [1])
    assert (caught.value.status, caught.value.code) == (404, "not_found")


def test_inputs_that_changed_are_looked_up_again(client: Nouns[Sync], platform: FakePlatform) -> None:
    client.predict("m", [1, 2, 3])
    platform.models["m"]["metadata"]["inputs"][0]["name"] = "renamed"

    def strict(request: Any) -> Any:
        if request.method == "POST" and b'"name":"x"' in request.content:
            return refusal(400, "invalid_input")
        return None

    platform.before.append(strict)
    assert client.predict("m", [1, 2, 3]) == [2.0, 4.0, 6.0]
    assert len(platform.sent("GET", "/v2/models/m")) == 2


def test_a_refusal_is_passed_on_when_nothing_changed(client: Nouns[Sync], platform: FakePlatform) -> None:
    client.predict("m", [1, 2, 3])
    platform.before.append(lambda request: refusal(422, "invalid_input") if request.method == "POST" else None)
    with pytest.raises(InvalidRequestError):
        client.predict("m", [1, 2, 3])


@pytest.mark.parametrize(
    "change",
    [
        {"id": "another"},
        {"model_name": "another"},
        {"outputs": []},
        {"outputs": [{"name": "o", "datatype": "FP32", "shape": [1, 2], "data": [1, 2, 3]}]},
        {"outputs": [{"name": "o", "datatype": "FP32", "shape": [1, -1], "data": [1]}]},
        {"outputs": [{"name": "o", "datatype": "BYTES", "shape": [1], "data": ["x"]}]},
        {"outputs": [{"name": "o", "datatype": "FP32", "shape": [1], "data": ["x"]}]},
        {"outputs": [{"name": "o", "datatype": "FP32", "shape": [2], "data": [1, 2]}]},
        {"outputs": [{"name": "o", "datatype": "FP32", "shape": [1], "data": [1]}] * 2},
    ],
    ids=["id", "model", "none", "size", "negative", "bytes", "text", "rows", "twice"],
)
def test_an_answer_that_cannot_be_is_refused(
    client: Nouns[Sync], platform: FakePlatform, change: dict[str, Any]
) -> None:
    def lie(request: Any, answer: Any) -> Any:
        if request.method == "POST" and request.url.path.endswith("/infer"):
            return answer_json({**json.loads(answer.content), **change})
        return answer

    platform.after.append(lie)
    with pytest.raises(ProtocolError):
        client.predict("m", [1, 2, 3])


def test_nested_output_data_and_null(client: Nouns[Sync], platform: FakePlatform) -> None:
    def nest(request: Any, answer: Any) -> Any:
        if request.method == "POST" and request.url.path.endswith("/infer"):
            output = {"name": "o", "datatype": "FP32", "shape": [2, 2], "data": [[1, None], [3, 4]]}
            return answer_json({**json.loads(answer.content), "outputs": [output]})
        return answer

    platform.after.append(nest)
    found = client.predict("m", [[1, 2, 3]])
    assert found[1] == [3, 4]
    assert math.isnan(found[0][1])
