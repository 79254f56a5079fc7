"""The graph format: every bound of every attribute, every refusal with the node it is about, one canonical form."""

import copy
import hashlib
import json
import math
from typing import Any

import pytest

from fakes.graphs import EXAMPLES, document, encoded, example, node
from modelkeep_platform.core.errors import MalformedError, TooLargeError, UnprocessableError
from modelkeep_platform.core.limits import MAX_GRAPH_BYTES
from modelkeep_platform.models.graph import Graph, parse, with_affine
from modelkeep_platform.models.graph.format import MAX_NODES, InvalidGraphError
from modelkeep_platform.models.graph.ops import OPS, Attr

ATTRIBUTES = [(op, name) for op in OPS for name in OPS[op].attrs]
NUMBERS = [
    (op, name) for op, name in ATTRIBUTES if OPS[op].attrs[name].kind in {"int", "float", "ints", "floats", "dim"}
]
IDENTITY = document([node("identity", {}, "x0")], [(-1, 2)], (-1, 2))


def refused(described: object) -> InvalidGraphError:
    with pytest.raises(InvalidGraphError) as caught:
        parse(encoded(described))
    assert caught.value.error_code == "invalid_graph"
    assert len(caught.value.message) < 400
    return caught.value


def changed(op: str, name: str, value: object) -> Any:
    described = example(op)
    described["nodes"][0]["attrs"][name] = value
    return described


def with_node(**fields: object) -> Any:
    described = copy.deepcopy(IDENTITY)
    described["nodes"][0] |= fields
    return described


def with_tensor(where: str, **fields: object) -> Any:
    described = copy.deepcopy(IDENTITY)
    described[where][0] |= fields
    return described


def test_there_is_an_example_of_every_operation() -> None:
    assert set(EXAMPLES) == set(OPS)


@pytest.mark.parametrize("op", OPS)
def test_every_operation_has_a_canonical_form_that_parses_to_itself(op: str) -> None:
    graph = parse(encoded(example(op)))
    assert graph.nodes[0].op == op
    assert set(graph.nodes[0].attrs) == set(OPS[op].attrs)
    assert parse(graph.to_json()) == graph
    assert parse(graph.to_json()).to_json() == graph.to_json()


@pytest.mark.parametrize(("op", "name"), ATTRIBUTES)
def test_an_optional_attribute_has_its_default_and_a_required_one_is_missed(op: str, name: str) -> None:
    described = example(op)
    described["nodes"][0]["attrs"].pop(name, None)
    if OPS[op].attrs[name].required:
        assert f"node `n` lacks the attribute `{name}`" in refused(described).message
        return
    described["nodes"][0]["params"] = node(op, described["nodes"][0]["attrs"], "x0")["params"]
    try:
        found = parse(encoded(described)).nodes[0].attrs[name]
    except InvalidGraphError as exc:
        # Without it the example's shape may be another, or a `scalar` is missing: the attribute itself was taken.
        assert "declared" in exc.message or "scalar" in exc.message  # noqa: PT017 -- one of two outcomes
    else:
        assert found == OPS[op].attrs[name].default


def wrong_types(spec: Attr) -> list[object]:
    values: list[object] = ["1", {}, [[1]], []]
    if spec.kind != "bool":
        values += [True]
    if spec.kind in {"int", "dim", "ints"}:
        values += [1.5, [1.5]]
    if spec.kind in {"int", "dim", "float", "bool", "choice"}:
        values += [[1]]
    if spec.kind == "ints":
        values += [[1] * 9, [True]]
    if spec.kind == "floats":
        values += [1.0, [1.0] * 65_537]
    if spec.kind == "bool":
        values += [0, 1]
    if spec.required or spec.default is not None:
        values += [None]
    return values


@pytest.mark.parametrize(("op", "name"), ATTRIBUTES)
def test_an_attribute_of_another_type_is_refused_by_name(op: str, name: str) -> None:
    for value in wrong_types(OPS[op].attrs[name]):
        message = refused(changed(op, name, value)).message
        assert message == f"the attribute `{name}` of node `n` is out of bounds or of another type", value


def listed(spec: Attr, value: float) -> object:
    number: object = int(value) if spec.kind in {"int", "ints", "dim"} else value
    return [number] if spec.kind in {"ints", "floats"} else number


@pytest.mark.parametrize(("op", "name"), NUMBERS)
def test_numbers_past_the_bounds_are_refused_and_at_the_bounds_they_are_in_bounds(op: str, name: str) -> None:
    spec = OPS[op].attrs[name]
    whole = spec.kind in {"int", "ints", "dim"}
    outside = [spec.low - 1, spec.high + 1] if whole else [math.nextafter(spec.low, -math.inf), spec.high * 1.001]
    for value in outside:
        assert (
            f"the attribute `{name}` of node `n` is out of bounds"
            in refused(changed(op, name, listed(spec, value))).message
        )
    for value in (spec.low, spec.high):
        try:
            parse(encoded(changed(op, name, listed(spec, value))))
        except InvalidGraphError as exc:
            assert "out of bounds" not in exc.message  # noqa: PT017 -- shapes and relations have tests of their own


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_numbers_that_are_none_are_no_json(text: str) -> None:
    data = encoded(changed("elu", "alpha", 0.123)).replace(b"0.123", text.encode())
    with pytest.raises(MalformedError) as caught:
        parse(data)
    assert caught.value.error_code == "invalid_json"


@pytest.mark.parametrize("name", ["approximate"])
def test_a_choice_is_one_of_its_words(name: str) -> None:
    assert f"the attribute `{name}` of node `n`" in refused(changed("gelu", name, "fast")).message


def test_attributes_that_the_operation_has_not_are_refused_by_name() -> None:
    message = refused(changed("relu", "inplace" * 50, value=True)).message
    assert message.startswith("the attributes of `n` are not those of its operation: `inplaceinplace")
    assert refused(with_node(attrs=[])).message == "the attributes of `n` are not those of its operation"


def test_integers_that_torch_cannot_hold_become_floats() -> None:
    attrs = parse(encoded(changed("mul", "scalar", 10**25))).nodes[0].attrs
    assert (attrs["scalar"], type(attrs["scalar"])) == (1e25, float)
    attrs = parse(encoded(changed("mul", "scalar", 3))).nodes[0].attrs
    assert (attrs["scalar"], type(attrs["scalar"])) == (3, int)
    scale = parse(encoded(changed("affine", "scale", [1, 2**63, -(2**63)]))).nodes[0].attrs["scale"]
    assert [type(value) for value in scale] == [int, float, int]


@pytest.mark.parametrize(
    ("op", "attrs", "message"),
    [
        ("add", {"scalar": 1.0}, "node `n` takes two inputs, or one and a `scalar`"),
        ("mul", {"scalar": None}, "node `n` takes two inputs, or one and a `scalar`"),
        ("conv1d", {"groups": 3}, "in node `n`, `groups` divides `in_channels`"),
        ("conv2d", {"groups": 2}, "in node `n`, `groups` divides `out_channels`"),
        ("conv1d", {"kernel_size": [3, 3]}, "in node `n`, `kernel_size` is one number or a list of 1"),
        ("conv2d", {"stride": [1]}, "in node `n`, `stride` is one number or a list of 2"),
        ("conv2d", {"padding": [1, 1, 1]}, "in node `n`, `padding` is one number or a list of 2"),
        ("conv2d", {"dilation": [1, 1, 1]}, "in node `n`, `dilation` is one number or a list of 2"),
        ("max_pool2d", {"kernel_size": [2, 2, 2]}, "in node `n`, `kernel_size` is one number or a list of 2"),
        ("adaptive_avg_pool1d", {"output_size": [2, 2]}, "in node `n`, `output_size` is one number or a list of 1"),
        ("max_pool1d", {"padding": 2}, "in node `n`, `padding` is at most half of `kernel_size`"),
        ("avg_pool2d", {"padding": [1, 2]}, "in node `n`, `padding` is at most half of `kernel_size`"),
        ("group_norm", {"num_groups": 3}, "in node `n`, `num_groups` divides `num_channels`"),
        ("multihead_attention", {"num_heads": 3}, "in node `n`, `num_heads` divides `embed_dim`"),
        ("transformer_encoder_layer", {"nhead": 3}, "in node `n`, `nhead` divides `d_model`"),
        ("transformer_encoder", {"nhead": 3}, "in node `n`, `nhead` divides `d_model`"),
        ("affine", {"shift": [1.0]}, "in node `n`, `scale` and `shift` are of one length"),
        ("embedding", {"padding_idx": 7}, "in node `n`, `padding_idx` is below `num_embeddings`"),
    ],
)
def test_what_holds_between_attributes(op: str, attrs: dict[str, object], message: str) -> None:
    described = example(op)
    described["nodes"][0]["attrs"] |= attrs
    assert refused(described).message == message


def test_attention_takes_one_input_or_three() -> None:
    described = example("multihead_attention")
    described["nodes"][0]["inputs"] = ["x0", "x0"]
    assert refused(described).message == "node `n` takes one input, or query, key and value"
    described["nodes"][0]["inputs"] = ["x0", "x0", "x0"]
    assert len(parse(encoded(described)).nodes[0].inputs) == 3


@pytest.mark.parametrize("op", OPS)
def test_every_operation_takes_so_many_inputs_and_no_others(op: str) -> None:
    low, high = OPS[op].inputs
    for count in (low - 1, high + 1):
        described = example(op)
        described["nodes"][0]["inputs"] = ["x0"] * count
        assert refused(described).message == f"the inputs of `n` is a list of {low} to {high} items"


@pytest.mark.parametrize("op", [op for op in OPS if example(op)["nodes"][0]["params"]])
def test_parameters_are_exactly_those_of_the_operation(op: str) -> None:
    described = example(op)
    params = described["nodes"][0]["params"]
    role = min(params)
    without = {
        **described,
        "nodes": [{**described["nodes"][0], "params": {k: v for k, v in params.items() if k != role}}],
    }
    assert refused(without).message == f"the params of `n` lack `{role}`"
    described["nodes"][0]["params"] = {**params, "extra" * 40: "extra"}
    assert refused(described).message.endswith("which its operation has not")
    described["nodes"][0]["params"] = [role]
    assert refused(described).message == "the params of `n` are an object"
    for bad in ("", "a/b", "../x", "é", 1, None, ["a"], "a" * 129):
        described["nodes"][0]["params"] = {**params, role: bad}
        assert refused(described).message == "a parameter of `n` is 1 to 128 letters, digits, dots and underscores"


def test_a_parameter_has_one_place_and_never_the_name_of_the_metadata() -> None:
    layer = {"in_features": 2, "out_features": 2, "bias": False}
    shared = [node("linear", layer, "x0", name="a"), node("linear", layer, "a", name="b")]
    shared[1]["params"] = {"weight": "a.weight"}
    message = refused(document(shared, [(-1, 2)], (-1, 2))).message
    assert message == "the parameter `a.weight` has two places; give each its own copy"
    shared[1]["params"] = {"weight": "__metadata__"}
    assert "`__metadata__`" in refused(document(shared, [(-1, 2)], (-1, 2))).message


@pytest.mark.parametrize(
    "op", ["eval", "Linear", "", "linear ", "nn.Linear", "__import__", 7, None, ["linear"], {"a": 1}]
)
def test_an_unknown_operation_is_refused_by_name(op: object) -> None:
    with pytest.raises(UnprocessableError) as caught:
        parse(encoded(with_node(op=op)))
    assert caught.value.error_code == "operation_not_allowed"
    assert caught.value.details == {"node": "n", "operation": str(op)}
    assert f"the operation `{op}` of node `n` is not allowed" in caught.value.message


def test_the_name_of_an_unknown_operation_is_cut() -> None:
    with pytest.raises(UnprocessableError) as caught:
        parse(encoded(with_node(op="x" * 100_000)))
    assert len(caught.value.message) < 400
    assert caught.value.details["operation"] == "x" * 80


@pytest.mark.parametrize(
    ("described", "message"),
    [
        pytest.param([], "the graph is an object with exactly: format, inputs, nodes, outputs", id="a list"),
        pytest.param(None, "the graph is an object", id="null"),
        pytest.param({**IDENTITY, "code": ""}, "the graph is an object with exactly", id="a field too many"),
        pytest.param(
            {**IDENTITY, "format": "modelkeep.graph/2"}, "the graph's format is `modelkeep.graph/1`", id="format"
        ),
        pytest.param({**IDENTITY, "format": ["modelkeep.graph/1"]}, "the graph's format", id="format of lists"),
        pytest.param({**IDENTITY, "inputs": []}, "`inputs` is a list of 1 to 16 items", id="no inputs"),
        pytest.param({**IDENTITY, "inputs": IDENTITY["inputs"] * 17}, "`inputs` is a list of 1 to 16", id="17 inputs"),
        pytest.param({**IDENTITY, "inputs": IDENTITY["inputs"] * 2}, "two inputs have the same name", id="input twice"),
        pytest.param({**IDENTITY, "nodes": []}, "`nodes` is a list of 1 to 4096 items", id="no nodes"),
        pytest.param({**IDENTITY, "nodes": IDENTITY["nodes"] * 2}, "two nodes have the id `n`", id="node twice"),
        pytest.param(
            {**IDENTITY, "nodes": IDENTITY["nodes"] * 4097}, "`nodes` is a list of 1 to 4096", id="4097 nodes"
        ),
        pytest.param({**IDENTITY, "nodes": {}}, "`nodes` is a list", id="nodes are an object"),
        pytest.param(
            {**IDENTITY, "nodes": [[]]}, "a node is an object with exactly: attrs, id, inputs, op", id="node is a list"
        ),
        pytest.param({**IDENTITY, "outputs": []}, "`outputs` is a list of 1 to 16 items", id="no outputs"),
        pytest.param(
            {**IDENTITY, "outputs": IDENTITY["outputs"] * 2}, "two outputs have the same name", id="output twice"
        ),
        pytest.param(with_node(id="x0"), "two nodes have the id `x0`", id="node called like an input"),
        pytest.param(with_node(id="a/b"), "a node's id is 1 to 128 letters", id="id with a slash"),
        pytest.param(with_node(id=["n"]), "a node's id is 1 to 128 letters", id="id is a list"),
        pytest.param(with_node(id="n\n"), "a node's id is 1 to 128 letters", id="id with a newline"),
        pytest.param(with_node(inputs=["n"]), "node `n` reads `n`, which nothing before it gives", id="cycle of one"),
        pytest.param(with_node(inputs=["y"]), "node `n` reads `y`, which nothing before it gives", id="dangling"),
        pytest.param(with_node(inputs=[["x0"]]), "node `n` reads `['x0']`", id="input is a list"),
        pytest.param(with_node(inputs="x0"), "the inputs of `n` is a list", id="inputs are text"),
        pytest.param(with_tensor("inputs", dtype="float16"), "the dtype of an input is one of float32", id="dtype"),
        pytest.param(with_tensor("inputs", dtype=["float32"]), "the dtype of an input", id="dtype is a list"),
        pytest.param(with_tensor("inputs", dtype={}), "the dtype of an input", id="dtype is an object"),
        pytest.param(
            with_tensor("inputs", shape=[0]), "a dimension of an input is -1, or 1 to 16777216", id="dimension 0"
        ),
        pytest.param(with_tensor("inputs", shape=[-2]), "a dimension of an input", id="dimension -2"),
        pytest.param(with_tensor("inputs", shape=[1 << 25]), "a dimension of an input", id="dimension too large"),
        pytest.param(with_tensor("inputs", shape=[True]), "a dimension of an input", id="dimension is a bool"),
        pytest.param(with_tensor("inputs", shape=[2.0]), "a dimension of an input", id="dimension is a float"),
        pytest.param(
            with_tensor("inputs", shape=[1] * 9), "the shape of an input is a list of 0 to 8", id="nine dimensions"
        ),
        pytest.param(with_tensor("inputs", shape=4), "the shape of an input is a list", id="shape is a number"),
        pytest.param(with_tensor("inputs", name="a b"), "the name of an input is 1 to 128 letters", id="input name"),
        pytest.param(with_tensor("outputs", name=""), "the name of an output is 1 to 128 letters", id="output name"),
        pytest.param(with_tensor("outputs", node="m"), "the output `y` is given by no node", id="output of nothing"),
        pytest.param(with_tensor("outputs", node=["n"]), "the output `y` is given by no node", id="output of a list"),
        pytest.param(with_tensor("outputs", dtype="text"), "the dtype of an output is one of", id="output dtype"),
    ],
)
def test_what_is_no_graph(described: object, message: str) -> None:
    assert refused(described).message.startswith(message)


def test_a_cycle_of_two_cannot_be_written() -> None:
    nodes = [node("add", {}, "x0", "b", name="a"), node("identity", {}, "a", name="b")]
    assert refused(document(nodes, [(-1, 2)], (-1, 2))).message == "node `a` reads `b`, which nothing before it gives"


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"{", b"{}x", b'{"a":1,"a":2}', b"[" * 100 + b"]" * 100, b"\xef\xbb\xbf{}"]
)
def test_what_is_no_strict_json(data: bytes) -> None:
    with pytest.raises(MalformedError) as caught:
        parse(data)
    assert caught.value.error_code == "invalid_json"


def test_the_limit_of_bytes_holds_before_anything_is_parsed() -> None:
    with pytest.raises(TooLargeError) as caught:
        parse(b" " * (MAX_GRAPH_BYTES + 1))
    assert caught.value.error_code == "too_large"


def test_parameters_of_more_than_16_gib_are_refused_from_their_attributes() -> None:
    layer = {"in_features": 1 << 20, "out_features": 1 << 12, "bias": False}
    assert (
        parse(encoded(document([node("linear", layer, "x0")], [(-1, 1 << 20)], (-1, 1 << 12)))).parameter_bytes()
        == 1 << 34
    )
    more = {**layer, "bias": True}
    message = refused(document([node("linear", more, "x0")], [(-1, 1 << 20)], (-1, 1 << 12))).message
    assert message == f"the parameters are larger than {1 << 34} bytes"


def test_the_deepest_graph_is_parsed_without_recursion() -> None:
    nodes = [node("relu", {}, "x0" if at == 0 else f"n{at - 1}", name=f"n{at}") for at in range(MAX_NODES)]
    graph = parse(encoded(document(nodes, [(-1, 2)], (-1, 2))))
    assert len(graph.operations()) == MAX_NODES
    assert graph.operations()[-1] == ("n4095", "relu")


def test_canonical_json_does_not_depend_on_order_spaces_or_defaults_left_out() -> None:
    described = example("conv1d")
    loose = json.dumps(dict(reversed(list(described.items()))), indent=3).encode()
    assert parse(loose).to_json() == parse(encoded(described)).to_json()
    described["nodes"][0]["attrs"]["bias"] = True
    assert parse(encoded(described)).sha256() == parse(loose).sha256()
    described["nodes"][0]["attrs"]["bias"] = False
    del described["nodes"][0]["params"]["bias"]
    assert parse(encoded(described)).sha256() != parse(loose).sha256()


def test_the_canonical_json_and_its_digest_are_these_bytes() -> None:
    text = (
        b'{"format":"modelkeep.graph/1","inputs":[{"dtype":"float32","name":"x0","shape":[-1,2]}],'
        b'"nodes":[{"attrs":{},"id":"n","inputs":["x0"],"op":"identity","params":{}}],'
        b'"outputs":[{"dtype":"float32","name":"y","node":"n","shape":[-1,2]}]}'
    )
    graph = parse(encoded(IDENTITY))
    assert graph.to_json() == text
    assert graph.sha256() == hashlib.sha256(text).hexdigest()


def test_parameters_have_dtype_and_shape() -> None:
    graph = parse(encoded(example("batch_norm1d")))
    assert graph.parameters() == {
        "n.weight": ("float32", (2,)),
        "n.bias": ("float32", (2,)),
        "n.running_mean": ("float32", (2,)),
        "n.running_var": ("float32", (2,)),
        "n.num_batches_tracked": ("int64", ()),
    }
    assert graph.parameter_bytes() == 4 * 8 + 8


# --- affine -----------------------------------------------------------------------------------------


def scaled(graph: Graph) -> Graph:
    return with_affine(graph, [2.0, 3.0], [0.0, 1.0])


def test_affine_stands_before_everything_that_reads_the_first_input() -> None:
    nodes = [node("add", {}, "x0", "x0", name="a"), node("mul", {}, "a", "x1", name="b")]
    graph = scaled(parse(encoded(document(nodes, [(-1, 2), (-1, 2)], (-1, 2)))))
    assert [(one.id, one.op, one.inputs) for one in graph.nodes] == [
        ("_scaled", "affine", ("x0",)),
        ("a", "add", ("_scaled", "_scaled")),
        ("b", "mul", ("a", "x1")),
    ]
    assert graph.nodes[0].attrs == {"scale": [2.0, 3.0], "shift": [0.0, 1.0]}


def test_an_output_that_is_the_input_is_scaled_too() -> None:
    described = copy.deepcopy(IDENTITY)
    described["outputs"][0]["node"] = "x0"
    assert scaled(parse(encoded(described))).outputs[0].node == "_scaled"


def test_the_name_of_the_affine_is_free_and_short_whatever_the_others_are() -> None:
    long = "x" * 128
    described: Any = {
        **IDENTITY,
        "inputs": [{**IDENTITY["inputs"][0], "name": long}, {**IDENTITY["inputs"][0], "name": "_scaled"}],
        "nodes": [node("add", {}, long, "_scaled", name="_scaled_1")],
        "outputs": [{**IDENTITY["outputs"][0], "node": "_scaled_1"}],
    }
    graph = scaled(parse(encoded(described)))
    assert [one.id for one in graph.nodes] == ["_scaled_2", "_scaled_1"]
    assert graph.nodes[1].inputs == ("_scaled_2", "_scaled")


def test_affine_can_be_put_before_an_affine() -> None:
    graph = scaled(scaled(parse(encoded(IDENTITY))))
    assert [one.id for one in graph.nodes] == ["_scaled_1", "_scaled", "n"]


def test_an_affine_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InvalidGraphError, match="`_scaled`"):
        with_affine(parse(encoded(IDENTITY)), [1.0, 2.0, 3.0], [0.0, 0.0, 0.0])
    with pytest.raises(InvalidGraphError, match="one length"):
        with_affine(parse(encoded(IDENTITY)), [1.0], [0.0, 0.0])
