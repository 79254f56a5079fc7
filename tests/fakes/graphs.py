"""Graphs and weights for tests: an example of every operation, and documents made of them."""

import json
from collections.abc import Mapping
from typing import Any, Final

from modelkeep_platform.models.graph.description import Graph
from modelkeep_platform.models.graph.ops import OPS

Shape = tuple[int, ...]

WINDOW: Final = {"kernel_size": 3, "stride": 2, "padding": 1}
RECURRENT: Final = {"input_size": 4, "hidden_size": 3, "num_layers": 2, "bidirectional": True}
ENCODER: Final = {"d_model": 4, "nhead": 2, "dim_feedforward": 6}

EXAMPLES: Final[Mapping[str, tuple[dict[str, Any], list[Shape]]]] = {
    "linear": ({"in_features": 3, "out_features": 2}, [(5, 3)]),
    "conv1d": ({"in_channels": 2, "out_channels": 4, **WINDOW, "dilation": 2, "groups": 2}, [(5, 2, 9)]),
    "conv2d": ({"in_channels": 2, "out_channels": 3, "kernel_size": [3, 2], "bias": False}, [(5, 2, 9, 8)]),
    "max_pool1d": ({**WINDOW, "dilation": 2}, [(5, 2, 9)]),
    "max_pool2d": ({"kernel_size": [3, 2]}, [(5, 2, 9, 8)]),
    "avg_pool1d": (dict(WINDOW), [(5, 2, 9)]),
    "avg_pool2d": ({"kernel_size": 2}, [(5, 2, 9, 8)]),
    "adaptive_avg_pool1d": ({"output_size": 4}, [(5, 2, 9)]),
    "adaptive_avg_pool2d": ({"output_size": [2, 3]}, [(5, 2, 9, 8)]),
    "batch_norm1d": ({"num_features": 2, "momentum": 0.5}, [(5, 2, 9)]),
    "batch_norm2d": ({"num_features": 2, "affine": False}, [(5, 2, 9, 8)]),
    "group_norm": ({"num_groups": 2, "num_channels": 4, "eps": 0.01}, [(5, 4, 9)]),
    "layer_norm": ({"normalized_shape": [2, 9]}, [(5, 2, 9)]),
    "embedding": ({"num_embeddings": 7, "embedding_dim": 3, "padding_idx": 2}, [(5, 4)]),
    "rnn": ({**RECURRENT, "nonlinearity": "relu"}, [(5, 6, 4)]),
    "lstm": (dict(RECURRENT), [(5, 6, 4)]),
    "gru": ({**RECURRENT, "batch_first": False, "bias": False}, [(5, 6, 4)]),
    "multihead_attention": ({"embed_dim": 4, "num_heads": 2, "causal": True}, [(5, 6, 4)]),
    "transformer_encoder_layer": ({**ENCODER, "activation": "gelu", "norm_first": True}, [(5, 6, 4)]),
    "transformer_encoder": ({**ENCODER, "num_layers": 2, "causal": True}, [(5, 6, 4)]),
    "dropout": ({"p": 0.25}, [(5, 3)]),
    "relu": ({}, [(5, 3)]),
    "gelu": ({"approximate": "tanh"}, [(5, 3)]),
    "silu": ({}, [(5, 3)]),
    "tanh": ({}, [(5, 3)]),
    "sigmoid": ({}, [(5, 3)]),
    "softplus": ({}, [(5, 3)]),
    "elu": ({"alpha": 0.5}, [(5, 3)]),
    "leaky_relu": ({"negative_slope": 0.2}, [(5, 3)]),
    "softmax": ({"dim": 1}, [(5, 3)]),
    "log_softmax": ({"dim": -1}, [(5, 3)]),
    "identity": ({}, [(5, 3)]),
    "affine": ({"scale": [1.0, 2.0, 3.0], "shift": [0.5, 0.0, -1]}, [(5, 3)]),
    "add": ({}, [(5, 3), (3,)]),
    "sub": ({"scalar": 2.0, "reverse": True}, [(5, 3)]),
    "mul": ({"scalar": -1}, [(5, 3)]),
    "div": ({"reverse": True}, [(5, 3), (5, 1)]),
    "matmul": ({}, [(5, 2, 3), (3, 4)]),
    "cat": ({"dim": 1}, [(5, 2), (5, 3), (5, 1)]),
    "flatten": ({}, [(5, 2, 3)]),
    "reshape": ({"shape": [-1, 2, 3]}, [(5, 6)]),
    "permute": ({"dims": [0, 2, 1]}, [(5, 2, 3)]),
    "transpose": ({"dim0": 1, "dim1": -1}, [(5, 2, 3)]),
    "squeeze": ({"dim": 1}, [(5, 1, 3)]),
    "unsqueeze": ({"dim": -1}, [(5, 3)]),
    "mean": ({"dim": [1, 2], "keepdim": True}, [(5, 2, 3)]),
    "sum": ({"dim": 1}, [(5, 2, 3)]),
    "select": ({"dim": 1, "index": -1}, [(5, 2, 3)]),
}
"""Operation -> attributes and the shapes of what it reads."""

WIDTHS: Final = {"float32": ("F32", 4), "int64": ("I64", 8)}


def filled(op: str, attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return `attrs` with the defaults of the operation."""
    return {name: attrs.get(name, spec.default) for name, spec in OPS[op].attrs.items()}


def node(op: str, attrs: Mapping[str, Any], *inputs: str, name: str = "n") -> dict[str, Any]:
    """Describe one operation; its parameters are called by its name and their role."""
    roles = OPS[op].parameters(filled(op, attrs))
    params = {role: f"{name}.{role}" for role in roles}
    return {"id": name, "op": op, "inputs": list(inputs), "attrs": dict(attrs), "params": params}


def document(nodes: list[dict[str, Any]], shapes: list[Shape], output: Shape, *, dtype: str = "float32") -> Any:
    """Describe a graph whose inputs are x0, x1, … and whose output is that of the last node."""
    inputs = [{"name": f"x{at}", "dtype": dtype, "shape": list(shape)} for at, shape in enumerate(shapes)]
    outputs = [{"name": "y", "dtype": "float32", "shape": list(output), "node": nodes[-1]["id"]}]
    return {"format": "modelkeep.graph/1", "inputs": inputs, "nodes": nodes, "outputs": outputs}


def example(op: str) -> Any:
    """Describe a graph of the one operation `op`."""
    from modelkeep_platform.models.graph.shapes import infer

    attrs, shapes = EXAMPLES[op]
    given = infer(op, filled(op, attrs), shapes)
    described = node(op, attrs, *[f"x{at}" for at in range(len(shapes))])
    return document([described], shapes, given, dtype="int64" if op == "embedding" else "float32")


def encoded(described: object) -> bytes:
    return json.dumps(described).encode()


def file_of(header: object, data: bytes = b"") -> bytes:
    """Return a safetensors file with this header, whatever it is."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def header_of(graph: Graph) -> tuple[dict[str, Any], int]:
    """Return the header that fits a graph, and how many bytes of tensors follow it."""
    header: dict[str, Any] = {}
    at = 0
    for name, (dtype, shape) in graph.parameters().items():
        code, end = WIDTHS[dtype][0], at + WIDTHS[dtype][1]
        for size in shape:
            end = at + (end - at) * size
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    return header, at


def weights_of(graph: Graph, *, fill: int = 0) -> bytes:
    """Return weights for a graph, every byte `fill`."""
    header, size = header_of(graph)
    return file_of(header, bytes([fill]) * size)
