"""Every operation a graph may contain has its place in private training: a rule, a refusal, or records kept apart."""

from typing import Any

import pytest

from modelkeep_platform.core.errors import UnprocessableError
from modelkeep_platform.models.graph.ops import OPS, PARAMETRISED
from modelkeep_platform.privacy.ops import ALTERNATIVES, PRIVATE_LAYERS, check_private_ops

# Operation without parameters -> shapes of its inputs (after the batch) and attributes that keep records apart.
APART: dict[str, tuple[list[tuple[int, ...]], dict[str, Any]]] = {
    "max_pool1d": ([(3, 8)], {"kernel_size": 2, "stride": 2, "padding": 0, "dilation": 1}),
    "avg_pool1d": ([(3, 8)], {"kernel_size": 2, "stride": 2, "padding": 0}),
    "max_pool2d": ([(3, 8, 8)], {"kernel_size": 2, "stride": 2, "padding": 0, "dilation": 1}),
    "avg_pool2d": ([(3, 8, 8)], {"kernel_size": [2, 2], "stride": [2, 2], "padding": [0, 0]}),
    "adaptive_avg_pool1d": ([(3, 8)], {"output_size": 1}),
    "adaptive_avg_pool2d": ([(3, 9, 8)], {"output_size": [2, 2]}),
    "relu": ([(5,)], {}),
    "gelu": ([(5,)], {"approximate": "tanh"}),
    "silu": ([(5,)], {}),
    "tanh": ([(5,)], {}),
    "sigmoid": ([(5,)], {}),
    "softplus": ([(5,)], {}),
    "elu": ([(5,)], {"alpha": 1.0}),
    "leaky_relu": ([(5,)], {"negative_slope": 0.1}),
    "softmax": ([(5,)], {"dim": -1}),
    "log_softmax": ([(5,)], {"dim": 1}),
    "identity": ([(5,)], {}),
    "dropout": ([(5,)], {"p": 0.5}),
    "affine": ([(3,)], {"scale": [1.0, 2.0, 3.0], "shift": [0.0, 0.0, 0.0]}),
    "add": ([(5,), (5,)], {}),
    "sub": ([(5,), (5,)], {}),
    "mul": ([(5,)], {"scalar": 2.0}),
    "div": ([(5,)], {"scalar": 2.0, "reverse": True}),
    "matmul": ([(2, 3, 4), (2, 4, 5)], {}),
    "cat": ([(3, 4), (2, 4)], {"dim": 1}),
    "flatten": ([(3, 4)], {"start_dim": 1, "end_dim": -1}),
    "reshape": ([(12,)], {"shape": [-1, 3, 4]}),
    "permute": ([(3, 4)], {"dims": [0, 2, 1]}),
    "transpose": ([(3, 4)], {"dim0": 1, "dim1": 2}),
    "squeeze": ([(1, 3)], {"dim": 1}),
    "unsqueeze": ([(3,)], {"dim": 1}),
    "mean": ([(3, 4)], {"dim": [1, 2], "keepdim": False}),
    "sum": ([(3, 4)], {"dim": 1, "keepdim": True}),
    "select": ([(3, 4)], {"dim": 1, "index": 0}),
}

# The same operations where they mix records.
MIXED: dict[str, tuple[list[tuple[int, ...]], dict[str, Any]]] = {
    "softmax": ([(5,)], {"dim": 0}),
    "log_softmax": ([(5,)], {"dim": -2}),
    "matmul": ([(5,), (5,)], {}),
    "cat": ([(5,), (5,)], {"dim": 0}),
    "flatten": ([(3, 4)], {"start_dim": 0, "end_dim": -1}),
    "reshape": ([(6,)], {"shape": [3, -1]}),
    "permute": ([(3, 4)], {"dims": [1, 0, 2]}),
    "transpose": ([(3, 4)], {"dim0": 0, "dim1": 1}),
    "unsqueeze": ([(3,)], {"dim": 0}),
    "mean": ([(3, 4)], {"dim": [0], "keepdim": True}),
    "sum": ([(3, 4)], {"dim": 0, "keepdim": False}),
    "select": ([(3, 4)], {"dim": 0, "index": 0}),
}


def test_every_operation_of_the_graph_has_its_place() -> None:
    placed = PRIVATE_LAYERS | (set(ALTERNATIVES) & set(OPS)) | set(APART)
    assert placed == set(OPS)
    assert not PARAMETRISED - PRIVATE_LAYERS - set(ALTERNATIVES)


@pytest.mark.parametrize("operation", sorted(PARAMETRISED - PRIVATE_LAYERS))
def test_a_layer_without_a_rule_is_refused_before_a_worker_starts(operation: str) -> None:
    with pytest.raises(UnprocessableError) as raised:
        check_private_ops([("node", operation)])
    assert raised.value.error_code == "layer_not_private"


def follow(operation: str, shapes: list[tuple[int, ...]], attrs: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    from modelkeep_platform.models.graph import torch_build
    from modelkeep_platform.privacy.engine_batch import check_separate

    class One(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, *inputs: Any) -> Any:
            if operation in torch_build._LAYERS:
                return torch_build._LAYERS[operation](attrs)(*inputs)
            return torch_build._FUNCTIONS[operation](list(inputs), attrs)

    found = One()(
        *[torch.randn(shape[0] if operation == "matmul" and len(shape) == 1 else 4, *shape) for shape in shapes]
    )
    assert found is not None
    check_separate(One(), [torch.zeros(4, *shape) for shape in shapes])


@pytest.mark.torch
@pytest.mark.parametrize("operation", APART)
def test_an_operation_that_keeps_records_apart_is_followed(operation: str) -> None:
    follow(operation, *APART[operation])


@pytest.mark.torch
@pytest.mark.parametrize("operation", MIXED)
def test_an_operation_that_mixes_records_is_refused(operation: str) -> None:
    with pytest.raises(UnprocessableError) as raised:
        follow(operation, *MIXED[operation])
    assert raised.value.error_code == "batch_coupled"
