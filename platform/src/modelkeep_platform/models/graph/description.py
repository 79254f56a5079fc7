"""What a graph is, once it is checked: values, their parameters, their canonical JSON. `format.parse` makes them."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from modelkeep_platform.core.errors import UnprocessableError
from modelkeep_platform.models.graph.ops import OPS

FORMAT: Final = "modelkeep.graph/1"
DTYPES: Final = {"float32": 4, "float64": 8, "int64": 8, "int32": 4, "bool": 1, "uint8": 1}
MAX_RANK: Final = 8


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


def _tensor_json(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}
