"""Every operation, built from a graph, computes what the torch layer or function of its name computes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fakes.graphs import EXAMPLES, Shape, document, encoded, example, filled, node
from modelkeep_platform.models.graph import parse
from modelkeep_platform.models.graph.ops import OPS, PARAMETRISED
from modelkeep_platform.models.graph.shapes import infer

torch = pytest.importorskip("torch")
functional = torch.nn.functional
pytestmark = pytest.mark.torch

MORE: list[tuple[str, dict[str, Any], list[Shape]]] = [
    ("linear", {"in_features": 3, "out_features": 2, "bias": False}, [(5, 3)]),
    ("conv1d", {"in_channels": 2, "out_channels": 4, "kernel_size": [4], "stride": [3], "padding": [2]}, [(5, 2, 9)]),
    (
        "conv2d",
        {"in_channels": 2, "out_channels": 4, "kernel_size": 2, "dilation": [2, 1], "groups": 2},
        [(5, 2, 9, 8)],
    ),
    ("max_pool2d", {"kernel_size": 3, "stride": [1, 2], "padding": 1, "dilation": 2}, [(5, 2, 9, 8)]),
    ("avg_pool2d", {"kernel_size": [3, 2], "stride": 1, "padding": [1, 0]}, [(5, 2, 9, 8)]),
    ("batch_norm1d", {"num_features": 2, "affine": False}, [(5, 2)]),
    ("group_norm", {"num_groups": 1, "num_channels": 4, "affine": False}, [(5, 4, 9)]),
    ("layer_norm", {"normalized_shape": 9, "eps": 0.1, "bias": False}, [(5, 2, 9)]),
    ("layer_norm", {"normalized_shape": 9, "affine": False}, [(5, 2, 9)]),
    ("rnn", {"input_size": 4, "hidden_size": 3}, [(5, 6, 4)]),
    ("lstm", {"input_size": 4, "hidden_size": 3, "batch_first": False, "bias": False}, [(5, 6, 4)]),
    ("gru", {"input_size": 4, "hidden_size": 3}, [(6, 4)]),
    ("multihead_attention", {"embed_dim": 4, "num_heads": 2, "bias": False}, [(5, 6, 4), (5, 7, 4), (5, 7, 4)]),
    ("multihead_attention", {"embed_dim": 4, "num_heads": 2, "batch_first": False, "causal": True}, [(5, 6, 4)]),
    ("transformer_encoder_layer", {"d_model": 4, "nhead": 1, "dim_feedforward": 3, "causal": True}, [(5, 6, 4)]),
    (
        "transformer_encoder_layer",
        {"d_model": 4, "nhead": 2, "dim_feedforward": 3, "batch_first": False, "causal": True, "layer_norm_eps": 0.1},
        [(5, 6, 4)],
    ),
    ("transformer_encoder", {"d_model": 4, "nhead": 1, "dim_feedforward": 3, "num_layers": 1}, [(5, 6, 4)]),
    ("gelu", {}, [(5, 3)]),
    ("affine", {"scale": [2.0], "shift": [-1.0]}, [(5, 3)]),
    ("add", {"scalar": 1.5}, [(5, 3)]),
    ("sub", {}, [(5, 3), (5, 3)]),
    ("sub", {"scalar": 2.0}, [(5, 3)]),
    ("sub", {"reverse": True}, [(5, 3), (5, 3)]),
    ("mul", {}, [(5, 3), (5, 3)]),
    ("div", {"scalar": 2.0}, [(5, 3)]),
    ("div", {"scalar": 2.0, "reverse": True}, [(5, 3)]),
    ("flatten", {"start_dim": 0, "end_dim": 1}, [(5, 2, 3)]),
    ("reshape", {"shape": 30}, [(5, 2, 3)]),
    ("permute", {"dims": 0}, [(5,)]),
    ("squeeze", {"dim": 1}, [(5, 3)]),
    ("mean", {"dim": -1}, [(5, 2, 3)]),
    ("sum", {"dim": [0, 2], "keepdim": True}, [(5, 2, 3)]),
]
CASES = [*((op, *EXAMPLES[op]) for op in OPS), *MORE]


def layer(op: str, attrs: dict[str, Any]) -> Any:
    """Make the torch layer that an operation with parameters stands for, by hand."""
    nn = torch.nn
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in attrs.items()}
    causal = given.pop("causal", False)
    if op == "layer_norm":
        given["elementwise_affine"] = given.pop("affine", True)
    if op == "transformer_encoder":
        layers = given.pop("num_layers")
        one = nn.TransformerEncoderLayer(**{"batch_first": True, **given})
        made: Any = nn.TransformerEncoder(one, layers, enable_nested_tensor=False)
    else:
        names = {
            "linear": nn.Linear,
            "conv1d": nn.Conv1d,
            "conv2d": nn.Conv2d,
            "embedding": nn.Embedding,
            "batch_norm1d": nn.BatchNorm1d,
            "batch_norm2d": nn.BatchNorm2d,
            "group_norm": nn.GroupNorm,
            "layer_norm": nn.LayerNorm,
            "rnn": nn.RNN,
            "lstm": nn.LSTM,
            "gru": nn.GRU,
            "multihead_attention": nn.MultiheadAttention,
            "transformer_encoder_layer": nn.TransformerEncoderLayer,
        }
        sequences = {"rnn", "lstm", "gru", "multihead_attention", "transformer_encoder_layer"}
        made = names[op](**({"batch_first": True, **given} if op in sequences else given))
    made.causal, made.steps_first = causal, not given.get("batch_first", True)
    return made.eval()


def of_layer(op: str, module: Any, read: list[Any]) -> Any:
    """Compute what a torch layer gives."""
    length = read[0].shape[0 if module.steps_first else 1] if read[0].dim() > 1 else 0
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1) if module.causal else None
    if op == "multihead_attention":
        query, key, value = read * 3 if len(read) == 1 else read
        return module(query, key, value, attn_mask=hidden)[0]
    if op in {"rnn", "lstm", "gru"}:
        return module(read[0])[0]
    if op.startswith("transformer"):
        return module(read[0], hidden)
    return module(read[0])


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "max_pool1d": lambda x, **a: torch.nn.MaxPool1d(**a)(x),
    "max_pool2d": lambda x, **a: torch.nn.MaxPool2d(**a)(x),
    "avg_pool1d": lambda x, **a: torch.nn.AvgPool1d(**a)(x),
    "avg_pool2d": lambda x, **a: torch.nn.AvgPool2d(**a)(x),
    "adaptive_avg_pool1d": lambda x, output_size: torch.nn.AdaptiveAvgPool1d(output_size)(x),
    "adaptive_avg_pool2d": lambda x, output_size: torch.nn.AdaptiveAvgPool2d(output_size)(x),
    "dropout": lambda x, p: x,
    "relu": lambda x: x.clamp(min=0),
    "gelu": lambda x, approximate="none": torch.nn.GELU(approximate)(x),
    "silu": lambda x: x * torch.sigmoid(x),
    "tanh": lambda x: 2 / (1 + torch.exp(-2 * x)) - 1,
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
    "softplus": lambda x: torch.log1p(torch.exp(x)),
    "elu": lambda x, alpha: torch.where(x > 0, x, alpha * torch.expm1(x)),
    "leaky_relu": lambda x, negative_slope: torch.where(x > 0, x, negative_slope * x),
    "softmax": lambda x, dim: torch.exp(x) / torch.exp(x).sum(dim, keepdim=True),
    "log_softmax": lambda x, dim: x - torch.exp(x).sum(dim, keepdim=True).log(),
    "identity": lambda x: x,
    "affine": lambda x, scale, shift: x * torch.tensor(scale) + torch.tensor(shift),
    "add": lambda x, y=None, scalar=None: torch.add(x, scalar if y is None else y),
    "sub": lambda x, y=None, scalar=None, reverse=False: (
        (scalar if y is None else y) - x if reverse else x - (scalar if y is None else y)
    ),
    "mul": lambda x, y=None, scalar=None: torch.mul(x, scalar if y is None else y),
    "div": lambda x, y=None, scalar=None, reverse=False: (
        (scalar if y is None else y) / x if reverse else x / (scalar if y is None else y)
    ),
    "matmul": lambda x, y: torch.einsum("bij,jk->bik", x, y),
    "cat": lambda *x, dim: torch.concatenate(x, dim),
    "flatten": lambda x, start_dim=1, end_dim=-1: torch.nn.Flatten(start_dim, end_dim)(x),
    "reshape": lambda x, shape: torch.reshape(x, shape if isinstance(shape, tuple) else (shape,)),
    "permute": lambda x, dims: torch.permute(x, dims if isinstance(dims, tuple) else (dims,)),
    "transpose": lambda x, dim0, dim1: torch.from_numpy(np.swapaxes(x.numpy(), dim0, dim1)),
    "squeeze": torch.squeeze,
    "unsqueeze": torch.unsqueeze,
    "mean": lambda x, dim, keepdim=False: torch.mean(x, dim, keepdim=keepdim),
    "sum": lambda x, dim, keepdim=False: torch.sum(x, dim, keepdim=keepdim),
    "select": torch.select,
}


def built(described: object) -> Any:
    from modelkeep_platform.models.graph.torch_build import build

    return build(parse(encoded(described))).eval()


def graph_of(op: str, attrs: dict[str, Any], shapes: list[Shape]) -> Any:
    described = node(op, attrs, *[f"x{at}" for at in range(len(shapes))])
    output = infer(op, filled(op, attrs), shapes)
    return document([described], shapes, output, dtype="int64" if op == "embedding" else "float32")


def random_inputs(op: str, attrs: dict[str, Any], shapes: list[Shape]) -> list[Any]:
    generator = torch.Generator().manual_seed(7)
    if op == "embedding":
        return [torch.randint(0, attrs["num_embeddings"], shape, generator=generator) for shape in shapes]
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize(("op", "attrs", "shapes"), CASES)
def test_an_operation_computes_what_torch_computes(op: str, attrs: dict[str, Any], shapes: list[Shape]) -> None:
    read = random_inputs(op, attrs, shapes)
    module = built(graph_of(op, attrs, shapes))
    with torch.no_grad():
        if op in PARAMETRISED:
            reference = layer(op, attrs)
            for at, value in enumerate(reference.state_dict().values()):
                if value.is_floating_point():
                    # Spread, and never the same twice: exchanged or forgotten parameters show.
                    value.copy_(torch.linspace(0.1, 0.9 + at / 10, value.numel()).reshape(value.shape))
                else:
                    value.fill_(3)
            module.load_named({f"n.{role}": value for role, value in reference.state_dict().items()})
            wanted = of_layer(op, reference, read)
        else:
            given = {name: tuple(value) if isinstance(value, list) else value for name, value in attrs.items()}
            wanted = FUNCTIONS[op](*read, **given)
        got = module(*read)
    assert got.shape == wanted.shape
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)


def test_every_operation_has_a_reference_of_its_own() -> None:
    assert set(FUNCTIONS) == set(OPS) - PARAMETRISED


@pytest.mark.parametrize("op", sorted(PARAMETRISED))
def test_weights_come_out_as_they_went_in_under_the_names_of_the_graph(op: str) -> None:
    graph = parse(encoded(example(op)))
    module = built(example(op))
    went = {
        name: torch.full(shape, 2) if dtype == "int64" else torch.rand(shape) + 0.1
        for name, (dtype, shape) in graph.parameters().items()
    }
    module.load_named(went)
    came = module.named_weights()
    assert set(came) == set(went)
    for name, value in came.items():
        assert torch.equal(value, went[name])
        assert str(value.dtype) == f"torch.{graph.parameters()[name][0]}"
        assert value.is_contiguous()
        assert not value.requires_grad


def test_weights_that_are_missing_or_of_another_shape_are_refused() -> None:
    module = built(example("linear"))
    with pytest.raises(ValueError, match=r"no tensor n\.weight of the right shape"):
        module.load_named({"n.bias": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"no tensor n\.weight of the right shape"):
        module.load_named({"n.weight": torch.zeros(3, 2), "n.bias": torch.zeros(2)})


def test_several_inputs_and_outputs_keep_their_order() -> None:
    described = document(
        [node("sub", {}, "x0", "x1", name="a"), node("mul", {"scalar": 2.0}, "x0", name="b")],
        [(-1, 2), (-1, 2)],
        (-1, 2),
    )
    described["outputs"] = [
        {"name": name, "dtype": "float32", "shape": [-1, 2], "node": source}
        for name, source in [("last", "b"), ("first", "a"), ("input", "x1")]
    ]
    one, other = torch.ones(3, 2), torch.full((3, 2), 5.0)
    last, first, given = built(described)(one, other)
    assert (last[0, 0], first[0, 0], given[0, 0]) == (2.0, -4.0, 5.0)


def test_a_value_is_let_go_after_its_last_use_and_not_before() -> None:
    nodes = [
        node("mul", {"scalar": 2.0}, "x0", name="a"),
        node("add", {}, "a", "a", name="b"),
        node("add", {}, "a", "b", name="c"),
        node("add", {}, "x0", "c", name="d"),
    ]
    module = built(document(nodes, [(-1, 1)], (-1, 1)))
    assert [sorted(names) for names in module._free_after] == [[], [], ["a", "b"], ["c", "x0"]]
    assert module(torch.ones(1, 1)).item() == 1 + 2 + 4


def test_in_training_dropout_drops_and_in_use_it_does_not() -> None:
    module = built(example("dropout"))
    assert torch.equal(module(torch.ones(5, 3)), torch.ones(5, 3))
    torch.manual_seed(1)
    assert not torch.equal(module.train()(torch.ones(5, 3)), torch.ones(5, 3))


def test_affine_of_whole_numbers_gives_floats() -> None:
    module = built(document([node("affine", {"scale": [0.5], "shift": [1]}, "x0")], [(-1, 1)], (-1, 1), dtype="uint8"))
    assert module(torch.tensor([[3]], dtype=torch.uint8)).tolist() == [[2.5]]


def test_a_scalar_that_no_integer_of_torch_holds_is_a_number_all_the_same() -> None:
    module = built(document([node("mul", {"scalar": 10**25}, "x0")], [(-1, 1)], (-1, 1)))
    assert module(torch.ones(1, 1)).item() == pytest.approx(1e25)


def test_causal_steps_do_not_see_what_comes_after() -> None:
    for op in ("multihead_attention", "transformer_encoder"):
        module = built(example(op))
        before = torch.randn(5, 6, 4)
        after = before.clone()
        after[:, 3:] += 1.0
        with torch.no_grad():
            torch.testing.assert_close(module(before)[:, :3], module(after)[:, :3])
            assert not torch.allclose(module(before)[:, 3:], module(after)[:, 3:])
