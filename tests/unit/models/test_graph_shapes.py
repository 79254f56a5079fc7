"""Shapes are what torch gives, a graph that cannot be is refused by naming the node, and so is an enormous tensor."""

import itertools
from typing import Any

import pytest

from fakes.graphs import EXAMPLES, Shape, document, encoded, filled, node
from modelkeep_platform.models.graph import parse
from modelkeep_platform.models.graph.format import InvalidGraphError
from modelkeep_platform.models.graph.ops import OPS
from modelkeep_platform.models.graph.shapes import MAX_VALUES, _DoesNotFitError, infer

MORE: list[tuple[str, dict[str, Any], list[Shape]]] = [
    ("linear", {"in_features": 3, "out_features": 2}, [(3,)]),
    ("conv1d", {"in_channels": 2, "out_channels": 4, "kernel_size": [4], "stride": [3]}, [(2, 9)]),
    ("conv2d", {"in_channels": 2, "out_channels": 4, "kernel_size": 2, "padding": [2, 0]}, [(2, 9, 7)]),
    ("conv2d", {"in_channels": 2, "out_channels": 4, "kernel_size": [9, 7]}, [(1, 2, 9, 7)]),
    ("max_pool1d", {"kernel_size": 3, "stride": 1}, [(2, 9)]),
    ("max_pool2d", {"kernel_size": 3, "padding": 1, "dilation": [2, 3]}, [(2, 9, 8)]),
    ("avg_pool1d", {"kernel_size": 9}, [(5, 2, 9)]),
    ("avg_pool2d", {"kernel_size": [2, 3], "stride": [3, 1], "padding": [1, 0]}, [(2, 9, 8)]),
    ("adaptive_avg_pool2d", {"output_size": 20}, [(2, 9, 8)]),
    ("batch_norm1d", {"num_features": 2}, [(5, 2)]),
    ("group_norm", {"num_groups": 1, "num_channels": 4}, [(5, 4)]),
    ("layer_norm", {"normalized_shape": 9}, [(9,)]),
    ("embedding", {"num_embeddings": 7, "embedding_dim": 3}, [()]),
    ("rnn", {"input_size": 4, "hidden_size": 3}, [(6, 4)]),
    ("gru", {"input_size": 4, "hidden_size": 3, "bidirectional": True}, [(6, 4)]),
    ("multihead_attention", {"embed_dim": 4, "num_heads": 2}, [(6, 4)]),
    ("multihead_attention", {"embed_dim": 4, "num_heads": 1}, [(5, 6, 4), (5, 7, 4), (5, 7, 4)]),
    ("multihead_attention", {"embed_dim": 4, "num_heads": 1, "batch_first": False}, [(6, 5, 4), (7, 5, 4), (7, 5, 4)]),
    ("multihead_attention", {"embed_dim": 4, "num_heads": 1, "causal": True, "batch_first": False}, [(6, 5, 4)] * 3),
    ("transformer_encoder_layer", {"d_model": 4, "nhead": 2, "dim_feedforward": 6}, [(6, 4)]),
    ("affine", {"scale": [2.0], "shift": [1.0]}, [()]),
    ("affine", {"scale": [2.0, 3.0], "shift": [1.0, 1.0]}, [(5, 1)]),
    ("add", {}, [(5, 1, 3), (4, 1)]),
    ("sub", {}, [(), (4, 1)]),
    ("matmul", {}, [(3,), (3,)]),
    ("matmul", {}, [(3,), (3, 4)]),
    ("matmul", {}, [(2, 3), (3,)]),
    ("matmul", {}, [(5, 1, 2, 3), (6, 3, 4)]),
    ("matmul", {}, [(5, 2, 3), (3,)]),
    ("cat", {"dim": -2}, [(5, 2), (1, 2)]),
    ("flatten", {"start_dim": 0, "end_dim": 1}, [(5, 2, 3)]),
    ("flatten", {"start_dim": -1, "end_dim": -1}, [(5, 2, 3)]),
    ("flatten", {"start_dim": 0}, [()]),
    ("reshape", {"shape": 30}, [(5, 2, 3)]),
    ("reshape", {"shape": [1, 1]}, [()]),
    ("permute", {"dims": [-1, 0, 1]}, [(5, 2, 3)]),
    ("permute", {"dims": 0}, [(5,)]),
    ("transpose", {"dim0": 0, "dim1": -1}, [()]),
    ("squeeze", {"dim": -1}, [(5, 3)]),
    ("squeeze", {"dim": 0}, [()]),
    ("unsqueeze", {"dim": 2}, [(5, 3)]),
    ("unsqueeze", {"dim": 0}, [()]),
    ("mean", {"dim": -1}, [(5, 3)]),
    ("sum", {"dim": [0, 1]}, [(5, 3)]),
    ("sum", {"dim": 0}, [()]),
    ("select", {"dim": 0, "index": 4}, [(5, 3)]),
    ("softmax", {"dim": 0}, [()]),
    ("dropout", {"p": 0.0}, [()]),
]
CASES = [*((op, *EXAMPLES[op]) for op in OPS), *MORE]

# Operation, attributes, shapes, why; torch refuses every one of them.
WRONG: list[tuple[str, dict[str, Any], list[Shape], str]] = [
    ("linear", {"in_features": 3, "out_features": 2}, [(5, 4)], "it reads 4 where `in_features` is 3"),
    ("linear", {"in_features": 3, "out_features": 2}, [()], "it reads 0 dimensions and takes 1 to 8"),
    ("conv1d", {"in_channels": 2, "out_channels": 1, "kernel_size": 3}, [(5, 3, 9)], "it reads 3 where `in_channels`"),
    (
        "conv1d",
        {"in_channels": 2, "out_channels": 1, "kernel_size": 3},
        [(5,)],
        "it reads 1 dimensions and takes 2 to 3",
    ),
    (
        "conv1d",
        {"in_channels": 2, "out_channels": 1, "kernel_size": 3, "dilation": 5},
        [(5, 2, 9)],
        "its kernel is larger",
    ),
    (
        "conv2d",
        {"in_channels": 2, "out_channels": 1, "kernel_size": 3},
        [(2, 2, 9)],
        "its kernel is larger than what it",
    ),
    ("max_pool1d", {"kernel_size": 10}, [(5, 2, 9)], "its kernel is larger than what it reads, 9 with padding 0"),
    ("max_pool2d", {"kernel_size": 2}, [(9, 9)], "it reads 2 dimensions and takes 3 to 4"),
    ("avg_pool2d", {"kernel_size": [2, 9]}, [(2, 8, 8)], "its kernel is larger"),
    ("adaptive_avg_pool1d", {"output_size": 2}, [(9,)], "it reads 1 dimensions and takes 2 to 3"),
    ("batch_norm1d", {"num_features": 2}, [(5, 3)], "it reads 3 where `num_features` is 2"),
    ("batch_norm1d", {"num_features": 2}, [(5, 2, 3, 3)], "it reads 4 dimensions and takes 2 to 3"),
    ("batch_norm2d", {"num_features": 2}, [(5, 2, 3)], "it reads 3 dimensions and takes 4"),
    ("group_norm", {"num_groups": 2, "num_channels": 4}, [(5, 6)], "it reads 6 where `num_channels` is 4"),
    ("layer_norm", {"normalized_shape": [2, 9]}, [(2, 8)], "it reads 8 where `normalized_shape` is 9"),
    ("layer_norm", {"normalized_shape": [2, 9]}, [(9,)], "it reads 1 dimensions and takes 2 to 8"),
    ("lstm", {"input_size": 4, "hidden_size": 3}, [(5, 6, 3)], "it reads 3 where `input_size` is 4"),
    ("lstm", {"input_size": 4, "hidden_size": 3}, [(4,)], "it reads 1 dimensions and takes 2 to 3"),
    ("multihead_attention", {"embed_dim": 4, "num_heads": 2}, [(5, 6, 3)], "it reads 3 where `embed_dim` is 4"),
    (
        "multihead_attention",
        {"embed_dim": 4, "num_heads": 2},
        [(5, 6, 4), (4, 6, 4), (5, 6, 4)],
        "batches differ: 5 and 4",
    ),
    (
        "multihead_attention",
        {"embed_dim": 4, "num_heads": 2},
        [(5, 6, 4), (5, 6, 4), (5, 7, 4)],
        "the lengths of key and",
    ),
    ("multihead_attention", {"embed_dim": 4, "num_heads": 2}, [(5, 6, 4), (6, 4), (6, 4)], "it reads 2 dimensions and"),
    (
        "multihead_attention",
        {"embed_dim": 4, "num_heads": 2, "causal": True},
        [(5, 6, 4), (5, 7, 4), (5, 7, 4)],
        "the lengths of query and key of causal attention differ: 6 and 7",
    ),
    (
        "transformer_encoder_layer",
        {"d_model": 4, "nhead": 2, "dim_feedforward": 6},
        [(5, 6, 3)],
        "it reads 3 where `d_mod",
    ),
    ("softmax", {"dim": 2}, [(5, 3)], "there is no dimension 2 among 2"),
    ("log_softmax", {"dim": -3}, [(5, 3)], "there is no dimension -3 among 2"),
    ("affine", {"scale": [1.0, 1.0], "shift": [0.0, 0.0]}, [(5, 3)], "sizes differ: 3 and 2"),
    ("add", {}, [(5, 3), (5, 2)], "sizes differ: 3 and 2"),
    ("matmul", {}, [(5, 3), (2, 3)], "the inner sizes differ: 3 and 2"),
    ("matmul", {}, [(5, 2, 3), (4, 3, 2)], "sizes differ: 5 and 4"),
    ("matmul", {}, [(), (3,)], "it reads 0 dimensions"),
    ("cat", {"dim": 1}, [(5, 2), (4, 2)], "sizes beside the dimension that grows differ: 5 and 4"),
    ("cat", {"dim": 0}, [(5, 2), (5, 2, 1)], "it reads 3 dimensions and takes 2"),
    ("cat", {"dim": 0}, [()], "it reads 0 dimensions"),
    ("flatten", {"start_dim": 2, "end_dim": 1}, [(5, 2, 3)], "`start_dim` comes after `end_dim`"),
    ("flatten", {"start_dim": 1}, [()], "there is no dimension 1 among 1"),
    ("reshape", {"shape": [4, 4]}, [(5, 3)], "[5, 3] has not as many values as [4, 4]"),
    ("reshape", {"shape": [4, -1]}, [(5, 3)], "[5, 3] cannot be divided into [4, -1]"),
    ("reshape", {"shape": [-1, -1]}, [(5, 3)], "one size of `shape` may be -1 and none 0"),
    ("reshape", {"shape": [0, 15]}, [(5, 3)], "one size of `shape` may be -1 and none 0"),
    ("permute", {"dims": [0, 0]}, [(5, 3)], "`dims` names each of 2 dimensions once"),
    ("permute", {"dims": [0]}, [(5, 3)], "`dims` names each of 2 dimensions once"),
    ("transpose", {"dim0": 0, "dim1": 2}, [(5, 3)], "there is no dimension 2 among 2"),
    ("squeeze", {"dim": 2}, [(5, 3)], "there is no dimension 2 among 2"),
    ("unsqueeze", {"dim": 3}, [(5, 3)], "there is no dimension 3 among 3"),
    ("mean", {"dim": [0, -2]}, [(5, 3)], "`dim` names a dimension twice"),
    ("sum", {"dim": 2}, [(5, 3)], "there is no dimension 2 among 2"),
    ("select", {"dim": 1, "index": 3}, [(5, 3)], "there is no `index` 3 among 3"),
    ("select", {"dim": 1, "index": -4}, [(5, 3)], "there is no `index` -4 among 3"),
    ("select", {"dim": 0, "index": 0}, [()], "it reads 0 dimensions"),
]


def torch_shape(op: str, attrs: dict[str, Any], shapes: list[Shape]) -> Shape:
    """Return the shape that torch gives."""
    torch = pytest.importorskip("torch")
    from modelkeep_platform.models.graph.description import Graph, Node, Tensor
    from modelkeep_platform.models.graph.torch_build import GraphModule

    dtype = torch.int64 if op == "embedding" else torch.float32
    names = tuple(f"x{at}" for at in range(len(shapes)))
    one = Node(id="n", op=op, inputs=names, attrs=filled(op, attrs), params={})
    inputs = tuple(Tensor(name=name, dtype="", shape=()) for name in names)
    graph = Graph(inputs=inputs, nodes=(one,), outputs=())
    with torch.no_grad():
        module = GraphModule(graph).eval()
        read = [torch.zeros(shape, dtype=dtype) for shape in shapes]
        return tuple(module._run(0, one, read).shape)


@pytest.mark.torch
@pytest.mark.parametrize(("op", "attrs", "shapes"), CASES)
def test_shapes_are_what_torch_gives(op: str, attrs: dict[str, Any], shapes: list[Shape]) -> None:
    assert infer(op, filled(op, attrs), shapes) == torch_shape(op, attrs, shapes)


@pytest.mark.torch
@pytest.mark.parametrize(("op", "attrs", "shapes", "why"), WRONG)
def test_what_is_refused_torch_refuses_too(op: str, attrs: dict[str, Any], shapes: list[Shape], why: str) -> None:
    with pytest.raises((RuntimeError, ValueError, IndexError, AssertionError)):
        torch_shape(op, attrs, shapes)


@pytest.mark.parametrize(("op", "attrs", "shapes", "why"), WRONG)
def test_an_operation_that_does_not_fit_says_why(op: str, attrs: dict[str, Any], shapes: list[Shape], why: str) -> None:
    with pytest.raises(_DoesNotFitError) as caught:
        infer(op, filled(op, attrs), shapes)
    assert str(caught.value).startswith(why)


@pytest.mark.parametrize(("op", "attrs", "shapes"), CASES)
def test_with_sizes_that_vary_nothing_that_fits_is_refused_or_contradicted(
    op: str, attrs: dict[str, Any], shapes: list[Shape]
) -> None:
    exact = infer(op, filled(op, attrs), shapes)
    for hidden in itertools.islice(itertools.product([False, True], repeat=sum(map(len, shapes))), 1, 64):
        mask = iter(hidden)
        varying = [tuple(-1 if next(mask) else size for size in shape) for shape in shapes]
        try:
            given = infer(op, filled(op, attrs), varying)
        except _DoesNotFitError as exc:
            # The one operation whose rank would depend on a size that varies.
            assert op == "squeeze" and "varies" in str(exc)  # noqa: PT017, PT018 -- one of two outcomes
            continue
        assert len(given) == len(exact)
        assert all(size == want or size < 0 for size, want in zip(given, exact, strict=True)), (varying, given)


def refused(described: object) -> str:
    with pytest.raises(InvalidGraphError) as caught:
        parse(encoded(described))
    assert caught.value.error_code == "invalid_graph"
    return caught.value.message


def test_the_refusal_names_the_node_and_its_operation() -> None:
    nodes = [
        node("linear", {"in_features": 4, "out_features": 3}, "x0", name="first"),
        node("linear", {"in_features": 4, "out_features": 2}, "first", name="second"),
    ]
    message = "node `second` cannot be a `linear` here: it reads 3 where `in_features` is 4"
    assert refused(document(nodes, [(-1, 4)], (-1, 2))) == message


@pytest.mark.parametrize("declared", [(-1, 3), (-1,), (-1, 2, 1), ()])
def test_an_output_is_declared_as_its_operations_give_it(declared: Shape) -> None:
    layer = node("linear", {"in_features": 4, "out_features": 2}, "x0")
    message = f"the output `y` is declared {list(declared)}; `n` gives [-1, 2]"
    assert refused(document([layer], [(-1, 4)], declared)) == message


@pytest.mark.parametrize("declared", [(-1, 2), (-1, -1), (7, 2)])
def test_a_declaration_may_say_less_or_more_where_sizes_vary(declared: Shape) -> None:
    layer = node("linear", {"in_features": 4, "out_features": 2}, "x0")
    assert parse(encoded(document([layer], [(-1, 4)], declared))).outputs[0].shape == declared


BIG = 1 << 20
BOMBS: dict[str, tuple[list[dict[str, Any]], list[Shape]]] = {
    "outer product": ([node("matmul", {}, "x0", "x1", name="n")], [(-1, BIG, 1), (-1, 1, BIG)]),
    "broadcast": ([node("add", {}, "x0", "x1", name="n")], [(BIG, 1), (1, BIG)]),
    "pixels": ([node("adaptive_avg_pool2d", {"output_size": [4096, 4096]}, "x0")], [(-1, 64, 8, 8)]),
    "padding": (
        [node("conv2d", {"in_channels": 1, "out_channels": 64, "kernel_size": 1, "padding": 4096}, "x0")],
        [(-1, 1, 8, 8)],
    ),
    "wide layer": ([node("linear", {"in_features": 1, "out_features": BIG, "bias": False}, "x0")], [(-1, 1024, 1)]),
    "embedding": ([node("embedding", {"num_embeddings": 1, "embedding_dim": BIG}, "x0")], [(-1, 1024)]),
    "attention": ([node("multihead_attention", {"embed_dim": 1, "num_heads": 1}, "x0")], [(-1, BIG, 1)]),
    "encoder": (
        [node("transformer_encoder_layer", {"d_model": 1, "nhead": 1, "dim_feedforward": BIG}, "x0")],
        [(-1, 1024, 1)],
    ),
    "hidden states": ([node("rnn", {"input_size": 1, "hidden_size": 1 << 15, "bias": False}, "x0")], [(-1, 16_384, 1)]),
    "behind a reshape": (
        [
            node("reshape", {"shape": [-1, 1]}, "x0", name="a"),
            node("linear", {"in_features": 1, "out_features": 1024}, "a", name="n"),
        ],
        [(-1, BIG)],
    ),
    "doubled again and again": (
        [node("cat", {"dim": 1}, *[f"c{at - 1}" if at else "x0"] * 2, name=f"c{at}") for at in range(40)],
        [(-1, 2)],
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_an_enormous_tensor_for_a_single_record_is_refused(name: str) -> None:
    nodes, shapes = BOMBS[name]
    message = refused(document(nodes, shapes, (-1,)))
    assert f"values for one record; {MAX_VALUES} are the most" in message
    assert message.startswith("node `")


def test_an_enormous_input_is_refused() -> None:
    message = refused(document([node("relu", {}, "x0")], [(-1, 1 << 24, 1 << 24)], (-1, -1, -1)))
    assert message == f"the input `x0` holds more than {MAX_VALUES} values for one record"


def test_dimensions_do_not_pile_up() -> None:
    nodes = [node("unsqueeze", {"dim": 0}, f"u{at - 1}" if at else "x0", name=f"u{at}") for at in range(8)]
    message = refused(document(nodes, [(-1,)], (-1,)))
    assert message == "node `u7` cannot be a `unsqueeze` here: it gives 9 dimensions; 8 are the most"


def test_what_a_batch_of_one_would_drop_is_refused() -> None:
    message = refused(document([node("squeeze", {"dim": 0}, "x0")], [(-1, 2)], (2,)))
    assert message.endswith("dimension 0 varies, and would be dropped only where it is 1")
