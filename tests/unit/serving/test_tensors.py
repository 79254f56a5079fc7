"""Inputs against the graph, and a worker's answer cut into each request's outputs."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.rooms import small_graph
from fakes.serving import rows, servable
from modelkeep_platform.serving.tensors import InputError, OutputError, Tensor, batch_rows, check_inputs, cut_outputs
from modelkeep_platform.workers.errors import FrameError
from modelkeep_platform.workers.frames import Frame

GRAPH = servable().graph


def two_outputs() -> dict[str, Any]:
    graph = small_graph()
    return {**graph, "outputs": [*graph["outputs"], {**graph["outputs"][0], "name": "z"}]}


def answer(*outputs: Any, data: bytes) -> Frame:
    return Frame(kind="answer", fields={"outputs": list(outputs)}, buffers=[data])


@pytest.mark.parametrize(("dtype", "shape", "size"), [("float32", (2, 2), 15), ("int64", (3,), 25), ("bool", (), 0)])
def test_a_tensor_holds_as_many_bytes_as_its_shape_says(dtype: str, shape: tuple[int, ...], size: int) -> None:
    with pytest.raises(InputError):
        Tensor(dtype, shape, bytes(size))


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        pytest.param({}, "`x` is missing", id="missing"),
        pytest.param({**rows(1), "z": rows(1)["x"]}, "does not have", id="one more"),
        pytest.param({"x": Tensor("float64", (1, 2), bytes(16))}, "float64 [1, 2] was sent", id="dtype"),
        pytest.param({"x": Tensor("float32", (1, 3), bytes(12))}, "float32 [1, 3] was sent", id="shape"),
        pytest.param({"x": Tensor("float32", (2,), bytes(8))}, "float32 [2] was sent", id="rank"),
        pytest.param({"x": Tensor("float32", (0, 2), b"")}, "float32 [0, 2] was sent", id="no rows"),
    ],
)
def test_inputs_that_are_not_the_models_are_refused(inputs: dict[str, Tensor], said: str) -> None:
    with pytest.raises(InputError) as caught:
        check_inputs(GRAPH, inputs)
    assert caught.value.error_code == "invalid_input"
    assert said in str(caught.value)


def test_rows_count_only_where_every_first_dimension_varies() -> None:
    check_inputs(GRAPH, rows(1, 2))
    assert batch_rows(GRAPH, rows(1, 2)) == 2
    fixed = small_graph()
    fixed["outputs"][0]["shape"] = [1, 2]
    assert batch_rows(servable(graph=fixed).graph, rows(1)) is None


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_each_request_gets_its_own_rows_of_every_output(counts: list[int]) -> None:
    graph = servable(graph=two_outputs()).graph
    total = sum(counts)
    first, second = bytes(range(8 * total)), bytes(255 - n for n in range(8 * total))
    described = ("float32", [total, 2], 8 * total)
    results = cut_outputs(graph, answer(described, described, data=first + second), counts)
    assert [result["y"].shape for result in results] == [(count, 2) for count in counts]
    assert b"".join(bytes(result["y"].data) for result in results) == first
    assert b"".join(bytes(result["z"].data) for result in results) == second


def test_one_request_takes_whatever_number_of_rows_there_is() -> None:
    (result,) = cut_outputs(GRAPH, answer(("float32", [3, 2], 24), data=bytes(24)), None)
    assert result["y"].shape == (3, 2)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["float32", "int64", "", "float16"]),
            st.lists(st.integers(-2, 3), max_size=3),
            st.integers(-1, 30),
        ),
        max_size=3,
    ),
    st.binary(max_size=30),
    st.none() | st.lists(st.integers(1, 3), min_size=2, max_size=3),
)
def test_any_answer_is_cut_or_refused(outputs: list[Any], data: bytes, counts: list[int] | None) -> None:
    try:
        results = cut_outputs(GRAPH, answer(*outputs, data=data), counts)
    except (FrameError, OutputError):
        return
    assert b"".join(bytes(result["y"].data) for result in results) == data
