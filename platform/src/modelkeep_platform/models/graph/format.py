"""The graph format: parsed strictly, checked for structure, never executed.

Nodes stand in an order in which every input was computed before, so a cycle cannot be written. Bounds hold before
anything is built: nodes, names, attribute values, the total size of the parameters that attributes imply, and the
shapes that the operations give (`shapes`).
docs/reference/graph.md describes the format and docs/reference/graph.schema.json gives its schema.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from modelkeep_platform.core import strictjson
from modelkeep_platform.core.errors import UnprocessableError
from modelkeep_platform.core.limits import GIB, MAX_GRAPH_BYTES
from modelkeep_platform.models.graph import shapes
from modelkeep_platform.models.graph.description import (
    DTYPES,
    FORMAT,
    MAX_RANK,
    Graph,
    InvalidGraphError,
    Node,
    Output,
    Tensor,
)
from modelkeep_platform.models.graph.ops import OPS, PARAMETRISED, Attr, spread

MAX_NODES: Final = 4096
MAX_PARAMETER_BYTES: Final = 16 * GIB
_MAX_LIST: Final = 65_536
_MAX_DIMENSION: Final = 1 << 24
_MAX_INTEGER: Final = 1 << 63
_ID: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]{0,127}\Z")
_METADATA: Final = "__metadata__"
_DIVISIONS: Final[Mapping[str, tuple[tuple[str, str], ...]]] = {
    **dict.fromkeys(("conv1d", "conv2d"), (("in_channels", "groups"), ("out_channels", "groups"))),
    "group_norm": (("num_channels", "num_groups"),),
    "multihead_attention": (("embed_dim", "num_heads"),),
    **dict.fromkeys(("transformer_encoder_layer", "transformer_encoder"), (("d_model", "nhead"),)),
}
_WINDOWS: Final[Mapping[str, int]] = {
    name: int(name[-2]) for name in OPS if name.endswith(("1d", "2d")) and "norm" not in name
}


def parse(data: bytes) -> Graph:
    """Parse and check a graph.

    Args:
        data: JSON, at most 4 MiB.

    Raises:
        TooLargeError: longer than the limit.
        MalformedError: not strict JSON.
        UnprocessableError: ``operation_not_allowed`` names an unknown operation; ``invalid_graph`` everything else.
    """
    document = strictjson.loads(data, max_bytes=MAX_GRAPH_BYTES)
    top = _object(document, "the graph", {"format", "inputs", "nodes", "outputs"})
    if top["format"] != FORMAT:
        raise InvalidGraphError(f"the graph's format is `{FORMAT}`")
    inputs = tuple(_tensor(item, "input") for item in _list(top["inputs"], "`inputs`", low=1, high=16))
    known = {tensor.name for tensor in inputs}
    if len(known) != len(inputs):
        raise InvalidGraphError("two inputs have the same name")
    nodes: list[Node] = []
    for item in _list(top["nodes"], "`nodes`", low=1, high=MAX_NODES):
        node = _node(item, known)
        known.add(node.id)
        nodes.append(node)
    outputs = tuple(_output(item, known) for item in _list(top["outputs"], "`outputs`", low=1, high=16))
    if len({output.name for output in outputs}) != len(outputs):
        raise InvalidGraphError("two outputs have the same name")
    graph = Graph(inputs=inputs, nodes=tuple(nodes), outputs=outputs)
    _check_parameters(graph)
    shapes.check(graph)
    return graph


def with_affine(graph: Graph, scale: list[float], shift: list[float]) -> Graph:
    """Return `graph` with ``x * scale + shift`` put before its first input.

    Args:
        graph: a graph whose first input is of floats.
        scale: one factor, or one for each column of the last dimension.
        shift: as many summands.
    """
    name = graph.inputs[0].name
    taken = {node.id for node in graph.nodes} | {tensor.name for tensor in graph.inputs}
    scaled, count = "_scaled", 0
    while scaled in taken:
        count += 1
        scaled = f"_scaled_{count}"
    first = Node(id=scaled, op="affine", inputs=(name,), attrs={"scale": scale, "shift": shift}, params={})
    nodes = tuple(
        replace(node, inputs=tuple(scaled if source == name else source for source in node.inputs))
        for node in graph.nodes
    )
    outputs = tuple(replace(output, node=scaled) if output.node == name else output for output in graph.outputs)
    return parse(replace(graph, nodes=(first, *nodes), outputs=outputs).to_json())


def _check_parameters(graph: Graph) -> None:
    names = [name for node in graph.nodes for name in node.params.values()]
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InvalidGraphError(f"the parameter `{name}` has two places; give each its own copy")
        seen.add(name)
    if _METADATA in seen:
        raise InvalidGraphError(f"no parameter is called `{_METADATA}`: safetensors keeps that name for itself")
    if graph.parameter_bytes() > MAX_PARAMETER_BYTES:
        raise InvalidGraphError(f"the parameters are larger than {MAX_PARAMETER_BYTES} bytes")


def _node(value: object, known: set[str]) -> Node:
    fields = _object(value, "a node", {"id", "op", "inputs", "attrs", "params"})
    node_id = _identifier(fields["id"], "a node's id")
    if node_id in known:
        raise InvalidGraphError(f"two nodes have the id `{node_id}`")
    name = fields["op"]
    if not isinstance(name, str) or name not in OPS:
        raise UnprocessableError(
            f"the operation `{str(name)[:80]}` of node `{node_id}` is not allowed; docs/reference/graph.md lists those "
            "that are",
            code="operation_not_allowed",
            details={"node": node_id, "operation": str(name)[:80]},
        )
    op = OPS[name]
    low, high = op.inputs
    inputs = tuple(_list(fields["inputs"], f"the inputs of `{node_id}`", low=low, high=high))
    for source in inputs:
        if not isinstance(source, str) or source not in known:
            raise InvalidGraphError(f"node `{node_id}` reads `{str(source)[:80]}`, which nothing before it gives")
    attrs = _attrs(fields["attrs"], op.attrs, node_id)
    _check_relations(name, attrs, len(inputs), node_id)
    return Node(id=node_id, op=name, inputs=inputs, attrs=attrs, params=_params(fields["params"], name, attrs, node_id))


def _check_relations(name: str, attrs: Mapping[str, Any], inputs: int, node_id: str) -> None:
    """Check what holds between attributes, so that building cannot fail."""
    if name in {"add", "sub", "mul", "div"} and (inputs == 1) != (attrs["scalar"] is not None):
        raise InvalidGraphError(f"node `{node_id}` takes two inputs, or one and a `scalar`")
    for whole, part in _DIVISIONS.get(name, ()):
        if attrs[whole] % attrs[part]:
            raise InvalidGraphError(f"in node `{node_id}`, `{part}` divides `{whole}`")
    if name in _WINDOWS:
        _check_windows(attrs, _WINDOWS[name], node_id)
    if name == "multihead_attention" and inputs == 2:  # noqa: PLR2004 -- query alone, or query, key and value
        raise InvalidGraphError(f"node `{node_id}` takes one input, or query, key and value")
    if name == "affine" and len(attrs["scale"]) != len(attrs["shift"]):
        raise InvalidGraphError(f"in node `{node_id}`, `scale` and `shift` are of one length")
    if name == "embedding" and (attrs["padding_idx"] or 0) >= attrs["num_embeddings"]:
        raise InvalidGraphError(f"in node `{node_id}`, `padding_idx` is below `num_embeddings`")


def _check_windows(attrs: Mapping[str, Any], dims: int, node_id: str) -> None:
    for name in ("kernel_size", "stride", "padding", "dilation", "output_size"):
        value = attrs.get(name)
        if isinstance(value, list) and len(value) != dims:
            raise InvalidGraphError(f"in node `{node_id}`, `{name}` is one number or a list of {dims}")
    if "kernel_size" not in attrs or "in_channels" in attrs:
        return
    for kernel, padding in zip(spread(attrs["kernel_size"], dims), spread(attrs["padding"], dims), strict=True):
        if 2 * padding > kernel:  # torch refuses more
            raise InvalidGraphError(f"in node `{node_id}`, `padding` is at most half of `kernel_size`")


def _params(value: object, op: str, attrs: Mapping[str, Any], node_id: str) -> dict[str, str]:
    wanted = set(OPS[op].parameters(attrs)) if op in PARAMETRISED else set()
    if not isinstance(value, dict):
        raise InvalidGraphError(f"the params of `{node_id}` are an object")
    for role in sorted(wanted ^ set(value)):
        fault = f"lack `{role[:80]}`" if role in wanted else f"hold `{role[:80]}`, which its operation has not"
        raise InvalidGraphError(f"the params of `{node_id}` {fault}")
    return {role: _identifier(name, f"a parameter of `{node_id}`") for role, name in value.items()}


def _attrs(value: object, specs: Mapping[str, Attr], node_id: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not set(value) <= set(specs):
        unknown = sorted(set(value) - set(specs)) if isinstance(value, dict) else []
        named = f": `{unknown[0][:80]}` is unknown" if unknown else ""
        raise InvalidGraphError(f"the attributes of `{node_id}` are not those of its operation{named}")
    attrs: dict[str, Any] = {}
    for name, spec in specs.items():
        if name not in value:
            if spec.required:
                raise InvalidGraphError(f"node `{node_id}` lacks the attribute `{name}`")
            attrs[name] = spec.default
            continue
        given = value[name]
        if given is None and not spec.required and spec.default is None:
            attrs[name] = None
        elif not _fits(given, spec):
            raise InvalidGraphError(f"the attribute `{name}` of node `{node_id}` is out of bounds or of another type")
        else:
            attrs[name] = _in_range(given)
    return attrs


def _in_range(value: Any) -> Any:  # noqa: ANN401 -- parsed JSON
    """Return `value` with integers that torch's cannot hold as floats."""
    if isinstance(value, list):
        return [_in_range(item) for item in value]
    return float(value) if type(value) is int and not -_MAX_INTEGER <= value < _MAX_INTEGER else value


def _fits(value: object, spec: Attr) -> bool:
    if spec.kind == "bool":
        return isinstance(value, bool)
    if spec.kind == "choice":
        return isinstance(value, str) and value in spec.choices
    if spec.kind in {"ints", "floats"} and isinstance(value, list):
        most = MAX_RANK if spec.kind == "ints" else _MAX_LIST
        single = replace(spec, kind="int" if spec.kind == "ints" else "float")
        return 1 <= len(value) <= most and all(_fits(item, single) for item in value)
    if spec.kind == "floats":
        return False
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if spec.kind != "float" and not isinstance(value, int):
        return False
    return spec.low <= value <= spec.high


def _tensor(value: object, what: str) -> Tensor:
    fields = _object(value, f"an {what}", {"name", "dtype", "shape"})
    dtype, shape = fields["dtype"], _list(fields["shape"], f"the shape of an {what}", low=0, high=MAX_RANK)
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise InvalidGraphError(f"the dtype of an {what} is one of {', '.join(DTYPES)}")
    for size in shape:
        if not isinstance(size, int) or isinstance(size, bool) or not (size == -1 or 1 <= size <= _MAX_DIMENSION):
            raise InvalidGraphError(f"a dimension of an {what} is -1, or 1 to {_MAX_DIMENSION}")
    return Tensor(name=_identifier(fields["name"], f"the name of an {what}"), dtype=dtype, shape=tuple(shape))


def _output(value: object, known: set[str]) -> Output:
    fields = _object(value, "an output", {"name", "dtype", "shape", "node"})
    tensor = _tensor({key: fields[key] for key in ("name", "dtype", "shape")}, "output")
    if not isinstance(fields["node"], str) or fields["node"] not in known:
        raise InvalidGraphError(f"the output `{tensor.name}` is given by no node")
    return Output(name=tensor.name, dtype=tensor.dtype, shape=tensor.shape, node=fields["node"])


def _identifier(value: object, what: str) -> str:
    if not isinstance(value, str) or not _ID.match(value):
        raise InvalidGraphError(f"{what} is 1 to 128 letters, digits, dots and underscores")
    return value


def _object(value: object, what: str, keys: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != keys:
        raise InvalidGraphError(f"{what} is an object with exactly: {', '.join(sorted(keys)) or 'nothing'}")
    return value


def _list(value: object, what: str, *, low: int, high: int) -> list[Any]:
    if not isinstance(value, list) or not low <= len(value) <= high:
        raise InvalidGraphError(f"{what} is a list of {low} to {high} items")
    return value


__all__ = [
    "DTYPES",
    "FORMAT",
    "MAX_NODES",
    "Graph",
    "InvalidGraphError",
    "Node",
    "Output",
    "Tensor",
    "parse",
    "with_affine",
]
