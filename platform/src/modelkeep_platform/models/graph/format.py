"""The graph format: parsed strictly, checked for structure, never executed.

Nodes stand in an order in which every input was computed before, so a cycle cannot be written. Bounds hold before
anything is built: nodes, names, attribute values, and the total size of the parameters that attributes imply.
docs/reference/graph.md describes the format and docs/reference/graph.schema.json gives its schema.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from modelkeep_platform.core import strictjson
from modelkeep_platform.core.errors import UnprocessableError
from modelkeep_platform.core.limits import GIB, MAX_GRAPH_BYTES
from modelkeep_platform.models.graph.ops import OPS, PARAMETRISED, Attr

FORMAT: Final = "modelkeep.graph/1"
DTYPES: Final = {"float32": 4, "float64": 8, "int64": 8, "int32": 4, "bool": 1, "uint8": 1}
MAX_NODES: Final = 4096
MAX_PARAMETER_BYTES: Final = 16 * GIB
_MAX_RANK: Final = 8
_MAX_LIST: Final = 65_536
_MAX_DIMENSION: Final = 1 << 24
_ID: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]{0,127}\Z")


class InvalidGraphError(UnprocessableError):
    """The graph is not one; the message names the node and what is wrong."""

    code = "invalid_graph"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """An input or output: name, dtype, shape; -1 varies."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One operation: what it reads, its attributes, and under which names its parameters lie in the weights."""

    id: str
    op: str
    inputs: tuple[str, ...]
    attrs: Mapping[str, Any]
    params: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Output(Tensor):
    """An output and the node that gives it."""

    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """A checked graph."""

    inputs: tuple[Tensor, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Output, ...]

    def parameters(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return every tensor of the weights: name to dtype and shape."""
        found: dict[str, tuple[str, tuple[int, ...]]] = {}
        for node in self.nodes:
            shapes = OPS[node.op].parameters(node.attrs)
            for role, name in node.params.items():
                dtype = "int64" if role == "num_batches_tracked" else "float32"
                found[name] = (dtype, shapes[role])
        return found

    def parameter_bytes(self) -> int:
        """Return the size of all parameters, in bytes."""
        return sum(math.prod(shape) * DTYPES[dtype] for dtype, shape in self.parameters().values())

    def operations(self) -> list[tuple[str, str]]:
        """Return the id and operation of every node."""
        return [(node.id, node.op) for node in self.nodes]

    def to_json(self) -> bytes:
        """Return the canonical JSON: sorted names, no spaces."""
        document = {
            "format": FORMAT,
            "inputs": [_tensor_json(tensor) for tensor in self.inputs],
            "nodes": [
                {
                    "id": node.id,
                    "op": node.op,
                    "inputs": list(node.inputs),
                    "attrs": dict(node.attrs),
                    "params": dict(node.params),
                }
                for node in self.nodes
            ],
            "outputs": [{**_tensor_json(output), "node": output.node} for output in self.outputs],
        }
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()

    def sha256(self) -> str:
        """Return the digest of the canonical JSON, in hex."""
        return hashlib.sha256(self.to_json()).hexdigest()


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
    return graph


def with_affine(graph: Graph, scale: list[float], shift: list[float]) -> Graph:
    """Return `graph` with ``x * scale + shift`` put before its first input.

    Args:
        graph: a graph whose first input is of floats.
        scale: one factor, or one for each column of the last dimension.
        shift: as many summands.
    """
    name = graph.inputs[0].name
    scaled = "_scaled_" + name
    taken = {node.id for node in graph.nodes}
    while scaled in taken:
        scaled = "_" + scaled
    first = Node(id=scaled, op="affine", inputs=(name,), attrs={"scale": scale, "shift": shift}, params={})
    nodes = tuple(
        replace(node, inputs=tuple(scaled if source == name else source for source in node.inputs))
        for node in graph.nodes
    )
    return parse(replace(graph, nodes=(first, *nodes)).to_json())


def _check_parameters(graph: Graph) -> None:
    names = [name for node in graph.nodes for name in node.params.values()]
    if len(set(names)) != len(names):
        raise InvalidGraphError("two nodes share a parameter; give each its own copy")
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
    divisions = {
        "conv1d": ("in_channels", "groups"),
        "conv2d": ("in_channels", "groups"),
        "group_norm": ("num_channels", "num_groups"),
        "multihead_attention": ("embed_dim", "num_heads"),
        "transformer_encoder_layer": ("d_model", "nhead"),
        "transformer_encoder": ("d_model", "nhead"),
    }
    if name in divisions:
        whole, part = divisions[name]
        if attrs[whole] % attrs[part]:
            raise InvalidGraphError(f"in node `{node_id}`, `{part}` divides `{whole}`")
    if name.startswith("conv") and attrs["out_channels"] % attrs["groups"]:
        raise InvalidGraphError(f"in node `{node_id}`, `groups` divides `out_channels`")
    if name == "multihead_attention" and inputs == 2:  # noqa: PLR2004 -- query alone, or query, key and value
        raise InvalidGraphError(f"node `{node_id}` takes one input, or query, key and value")
    if name == "affine" and len(attrs["scale"]) != len(attrs["shift"]):
        raise InvalidGraphError(f"in node `{node_id}`, `scale` and `shift` are of one length")
    if name == "embedding" and (attrs["padding_idx"] or 0) >= attrs["num_embeddings"]:
        raise InvalidGraphError(f"in node `{node_id}`, `padding_idx` is below `num_embeddings`")


def _params(value: object, op: str, attrs: Mapping[str, Any], node_id: str) -> dict[str, str]:
    wanted = set(OPS[op].parameters(attrs)) if op in PARAMETRISED else set()
    params = _object(value, f"the params of `{node_id}`", wanted)
    return {role: _identifier(name, f"a parameter of `{node_id}`") for role, name in params.items()}


def _attrs(value: object, specs: Mapping[str, Attr], node_id: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not set(value) <= set(specs):
        unknown = sorted(set(value) - set(specs)) if isinstance(value, dict) else []
        named = f": `{unknown[0][:80]}` is unknown" if unknown else ""
        raise InvalidGraphError(f"the attributes of `{node_id}` are not those of its operation{named}")
    attrs: dict[str, Any] = {}
    for name, spec in specs.items():
        given = value.get(name)
        if given is None:
            if spec.required:
                raise InvalidGraphError(f"node `{node_id}` lacks the attribute `{name}`")
            attrs[name] = spec.default
        elif not _fits(given, spec):
            raise InvalidGraphError(f"the attribute `{name}` of node `{node_id}` is out of bounds or of another type")
        else:
            attrs[name] = given
    return attrs


def _fits(value: object, spec: Attr) -> bool:
    if spec.kind == "bool":
        return isinstance(value, bool)
    if spec.kind == "choice":
        return isinstance(value, str) and value in spec.choices
    if spec.kind in {"ints", "floats"} and isinstance(value, list):
        most = _MAX_RANK if spec.kind == "ints" else _MAX_LIST
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
    dtype, shape = fields["dtype"], _list(fields["shape"], f"the shape of an {what}", low=0, high=_MAX_RANK)
    if dtype not in DTYPES:
        raise InvalidGraphError(f"the dtype of an {what} is one of {', '.join(DTYPES)}")
    for size in shape:
        if not isinstance(size, int) or isinstance(size, bool) or not (size == -1 or 1 <= size <= _MAX_DIMENSION):
            raise InvalidGraphError(f"a dimension of an {what} is -1, or 1 to {_MAX_DIMENSION}")
    return Tensor(name=_identifier(fields["name"], f"the name of an {what}"), dtype=dtype, shape=tuple(shape))


def _output(value: object, known: set[str]) -> Output:
    fields = _object(value, "an output", {"name", "dtype", "shape", "node"})
    tensor = _tensor({key: fields[key] for key in ("name", "dtype", "shape")}, "output")
    if fields["node"] not in known:
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


def _tensor_json(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}
