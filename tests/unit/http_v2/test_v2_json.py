import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from modelkeep_platform.core.errors import CallerError, MalformedError, UnprocessableError
from modelkeep_platform.http.v2_json import DTYPES, InferRequest, check_outputs, encode_answer, parse_request
from modelkeep_platform.serving.tensors import Tensor


def body(**changes: Any) -> bytes:
    tensor = {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1, 2.5, 3, 4]}
    return json.dumps({"inputs": [{**tensor, **changes}]}).encode()


def with_data(text: str, datatype: str = "FP32", shape: str = "[1]") -> bytes:
    return f'{{"inputs":[{{"name":"x","shape":{shape},"datatype":"{datatype}","data":{text}}}]}}'.encode()


@pytest.mark.parametrize("data", [[1, 2.5, 3, 4], [[1, 2.5], [3, 4]]], ids=["flat", "nested"])
def test_flat_and_nested_data_are_the_same_tensor(data: list[Any]) -> None:
    tensor = parse_request(body(data=data)).inputs["x"]
    assert tensor == Tensor("float32", (2, 2), np.array([1, 2.5, 3, 4], "<f4").tobytes())


@pytest.mark.parametrize(
    ("datatype", "data", "expected"),
    [
        ("BOOL", "[true,false]", b"\1\0"),
        ("UINT8", "[0,255]", b"\0\xff"),
        ("INT32", "[-1,2147483647]", b"\xff\xff\xff\xff\xff\xff\xff\x7f"),
        ("INT64", "[-9223372036854775808,1]", b"\0\0\0\0\0\0\0\x80\1\0\0\0\0\0\0\0"),
        ("FP32", "[1,-0.5]", b"\0\0\x80?\0\0\0\xbf"),
        ("FP64", "[1,-0.5]", b"\0\0\0\0\0\0\xf0?\0\0\0\0\0\0\xe0\xbf"),
    ],
)
def test_every_datatype_becomes_little_endian_bytes(datatype: str, data: str, expected: bytes) -> None:
    tensor = parse_request(with_data(data, datatype, "[2]")).inputs["x"]
    assert tensor == Tensor(DTYPES[datatype], (2,), expected)


def test_a_scalar_and_white_space_are_taken() -> None:
    raw = b' { "inputs" : [ { "name":"x","shape": [ ],"datatype":"INT64","data":\n[\t7 ] , "parameters":{} } ] } '
    assert parse_request(raw).inputs["x"] == Tensor("int64", (), (7).to_bytes(8, "little"))


def test_id_outputs_and_time_out_are_read() -> None:
    asked = {"id": "r1", "parameters": {"timeout_ms": 1500}, "outputs": [{"name": "b"}, {"name": "a"}]}
    request = parse_request(json.dumps({**json.loads(body()), **asked}).encode())
    assert (request.id, request.timeout_s, request.outputs) == ("r1", 1.5, ("b", "a"))
    assert parse_request(body()).timeout_s == 30.0


@given(
    npst.arrays(
        np.float64, npst.array_shapes(max_dims=4, max_side=4), elements=st.floats(allow_nan=False, allow_infinity=False)
    )
)
def test_doubles_pass_unchanged(array: "np.ndarray[Any, Any]") -> None:
    tensor = parse_request(body(shape=list(array.shape), datatype="FP64", data=array.tolist())).inputs["x"]
    assert tensor.data == array.astype("<f8").tobytes()


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        pytest.param(b"", "invalid_json", id="empty"),
        pytest.param(b"{", "invalid_json", id="cut"),
        pytest.param(body() + b"x", "invalid_json", id="trailing"),
        pytest.param(b"\xef\xbb\xbf" + body(), "invalid_json", id="byte-order-mark"),
        pytest.param(b'{"inputs":[], "id":"\xff"}', "invalid_json", id="not-utf-8"),
        pytest.param(b"[]", "invalid_body", id="array"),
        pytest.param(b"{}", "invalid_body", id="no-inputs"),
        pytest.param(b'{"inputs":[],"more":1}', "invalid_body", id="unknown-field"),
        pytest.param(b'{"inputs":[],"id":"' + b"a" * 257 + b'"}', "invalid_body", id="long-id"),
        pytest.param(b'{"inputs":[],"inputs":[]}', "invalid_json", id="inputs-twice"),
        pytest.param(body()[:-3] + b',"shape":[4]}]}', "invalid_json", id="shape-twice"),
        pytest.param(body()[:-3] + b',"data":[1,2,3,4]}]}', "invalid_json", id="data-twice"),
        pytest.param(b'{"inputs":[],"parameters":{"a":1,"\\u0061":2}}', "invalid_json", id="escaped-name-twice"),
        pytest.param(
            b'{"inputs":[],"parameters":{"a":' + b"[" * 99 + b"]" * 99 + b"}}", "invalid_json", id="deep-parameters"
        ),
        pytest.param(
            b'{"inputs":[],"parameters":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}", "invalid_json", id="bomb"
        ),
        pytest.param(with_data("[" * 9 + "1" + "]" * 9), "invalid_tensor", id="deep-data"),
        pytest.param(with_data("[" * 100_000 + "]" * 100_000), "invalid_json", id="data-bomb"),
        pytest.param(with_data("1"), "invalid_tensor", id="number"),
        pytest.param(with_data("null"), "invalid_tensor", id="null"),
        pytest.param(with_data('{"a":1}'), "invalid_tensor", id="object"),
        pytest.param(with_data('["1"]'), "invalid_tensor", id="text"),
        pytest.param(with_data("[true]"), "invalid_tensor", id="bool-as-float"),
        pytest.param(with_data("[1]", "BOOL"), "invalid_tensor", id="number-as-bool"),
        pytest.param(with_data("[1.0]", "INT64"), "invalid_tensor", id="float-as-int"),
        pytest.param(with_data("[256]", "UINT8"), "invalid_tensor", id="uint8-overflow"),
        pytest.param(with_data("[-1]", "UINT8"), "invalid_tensor", id="uint8-negative"),
        pytest.param(with_data("[9223372036854775808]", "INT64"), "invalid_tensor", id="int64-overflow"),
        pytest.param(with_data("[1e39]"), "invalid_tensor", id="fp32-overflow"),
        pytest.param(with_data("[1e999]", "FP64"), "invalid_tensor", id="fp64-overflow"),
        pytest.param(with_data("[NaN]"), "invalid_json", id="nan"),
        pytest.param(with_data("[Infinity]"), "invalid_json", id="infinity"),
        pytest.param(with_data("[[1],[2,3]]", shape="[3]"), "invalid_tensor", id="ragged"),
        pytest.param(with_data("[[1],2]", shape="[2]"), "invalid_tensor", id="mixed-depth"),
        pytest.param(with_data("[1,2]"), "invalid_tensor", id="too-many"),
        pytest.param(with_data("[]"), "invalid_tensor", id="too-few"),
        pytest.param(with_data("[[1,2],[3,4]]", shape="[4]"), "invalid_tensor", id="other-nesting"),
        pytest.param(with_data("[1]", shape="[-1]"), "invalid_tensor", id="negative-dimension"),
        pytest.param(with_data("[1]", shape="[-1,-1]"), "invalid_tensor", id="negative-pair"),
        pytest.param(with_data("[1]", shape="[" + "9" * 400 + "]"), "invalid_tensor", id="huge-dimension"),
        pytest.param(with_data("[1]", shape="[4294967296,4294967296]"), "invalid_tensor", id="overflowing-shape"),
        pytest.param(with_data("[1]", shape="[1,1,1,1,1,1,1,1,1]"), "invalid_tensor", id="rank"),
        pytest.param(with_data("[1]", shape="[1.0]"), "invalid_body", id="float-dimension"),
        pytest.param(with_data("[1]", shape="[true]"), "invalid_body", id="bool-dimension"),
        pytest.param(b'{"inputs":[' + body()[11:-2] + (b"," + body()[11:-2]) * 64 + b"]}", "invalid_body", id="many"),
    ],
)
def test_what_is_not_a_request_is_malformed(raw: bytes, code: str) -> None:
    with pytest.raises(MalformedError) as caught:
        parse_request(raw)
    assert caught.value.error_code == code


@pytest.mark.parametrize("datatype", ["BYTES", "FP16", "BF16", "INT8", "fp32", ""])
def test_other_datatypes_are_refused_with_those_that_are_taken(datatype: str) -> None:
    with pytest.raises(UnprocessableError) as caught:
        parse_request(body(datatype=datatype))
    assert caught.value.error_code == "unsupported_datatype"
    assert "FP32" in caught.value.message


@pytest.mark.parametrize("timeout", [0, -1, 1.5, True, "5", 300_001])
def test_a_time_out_out_of_range_is_refused(timeout: object) -> None:
    raw = json.dumps({**json.loads(body()), "parameters": {"timeout_ms": timeout}}).encode()
    with pytest.raises(UnprocessableError) as caught:
        parse_request(raw)
    assert caught.value.error_code == "invalid_timeout"


@pytest.mark.parametrize(
    "changes", [{"outputs": [{"name": "a"}, {"name": "a"}]}, {"inputs": json.loads(body())["inputs"] * 2}]
)
def test_a_name_given_twice_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UnprocessableError) as caught:
        parse_request(json.dumps({**json.loads(body()), **changes}).encode())
    assert caught.value.error_code == "invalid_input"


@given(st.binary(max_size=300) | st.text(alphabet='[]{}:,"0123456789.eE-+ntrufalsINp', max_size=80).map(str.encode))
def test_any_bytes_are_refused_in_the_callers_words(raw: bytes) -> None:
    for text in (raw, b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":' + raw + b"}]}"):
        try:
            parse_request(text)
        except CallerError:
            continue


ASKED = InferRequest(inputs={}, outputs=(), id="", timeout_s=1.0)
OUTPUTS = {
    "a": Tensor("float32", (2,), np.array([1.5, -2], "<f4").tobytes()),
    "b": Tensor("bool", (1,), memoryview(b"\1")),
}


def test_an_answer_has_all_outputs_in_the_models_order() -> None:
    raw = encode_answer(model="m", version=3, request=ASKED, outputs=OUTPUTS, names=("b", "a"))
    assert raw == (
        b'{"model_name":"m","model_version":"3","outputs":['
        b'{"name":"b","datatype":"BOOL","shape":[1],"data":[true]},'
        b'{"name":"a","datatype":"FP32","shape":[2],"data":[1.5,-2.0]}]}'
    )


def test_an_answer_echoes_the_id_and_holds_what_was_asked_for() -> None:
    asked = InferRequest(inputs={}, outputs=("a",), id='"7"', timeout_s=1.0)
    answer = json.loads(encode_answer(model="m", version=3, request=asked, outputs=OUTPUTS, names=("b", "a")))
    assert answer["id"] == '"7"'
    assert [output["name"] for output in answer["outputs"]] == ["a"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_answer_that_is_not_finite_is_refused(value: float) -> None:
    outputs = {"a": Tensor("float64", (1,), np.array([value], "<f8").tobytes())}
    with pytest.raises(UnprocessableError) as caught:
        encode_answer(model="m", version=3, request=ASKED, outputs=outputs, names=("a",))
    assert caught.value.error_code == "inference_failed"


def test_an_unknown_output_is_refused_by_name() -> None:
    asked = InferRequest(inputs={}, outputs=("c",), id="", timeout_s=1.0)
    with pytest.raises(UnprocessableError, match="no output `c`; it has a, b") as caught:
        check_outputs(asked, ("a", "b"))
    assert caught.value.error_code == "invalid_output"


@pytest.mark.parametrize("count", [1, 63, 64, 1_000])
@pytest.mark.parametrize("number", ["1e39", "-1e39"])
def test_one_number_outside_the_datatype_among_many_is_refused(count: int, number: str) -> None:
    text = "[" + ",".join(["1.5"] * (count - 1) + [number]) + "]"
    with pytest.raises(MalformedError, match="outside FP32"):
        parse_request(with_data(text, shape=f"[{count}]"))
    assert parse_request(with_data(text, "FP64", shape=f"[{count}]")).inputs["x"].shape == (count,)


@pytest.mark.parametrize("count", [1, 63, 64, 1_000])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_one_number_that_json_cannot_carry_fails_the_answer(count: int, number: float) -> None:
    array = np.ones(count, "<f4")
    array[-1] = number
    request = InferRequest(inputs={}, outputs=(), id="", timeout_s=1.0)
    with pytest.raises(UnprocessableError, match="NaN or infinity"):
        encode_answer(
            model="m",
            version=1,
            request=request,
            outputs={"y": Tensor("float32", (count,), array.tobytes())},
            names=("y",),
        )
