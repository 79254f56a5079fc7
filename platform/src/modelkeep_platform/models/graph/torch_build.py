"""Builds the torch module of a checked graph. Imports torch; used in workers alone."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import nn

from modelkeep_platform.models.graph.format import Graph, Node
from modelkeep_platform.models.graph.ops import PARAMETRISED

Tensors = list[torch.Tensor]


class GraphModule(nn.Module):
    """Runs the nodes of a graph in their order.

    Layers lie in `layers` under numbers; `load_named` and `named_weights` speak the graph's own parameter names.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self.layers = nn.ModuleDict(
            {str(at): _LAYERS[node.op](node.attrs) for at, node in enumerate(graph.nodes) if node.op in _LAYERS}
        )
        self._free_after = _last_uses(graph)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Return the outputs in the graph's order; a single one by itself."""
        values = {tensor.name: value for tensor, value in zip(self.graph.inputs, inputs, strict=True)}
        for at, node in enumerate(self.graph.nodes):
            read = [values[source] for source in node.inputs]
            values[node.id] = self._run(at, node, read)
            for name in self._free_after[at]:
                del values[name]
        outputs = tuple(values[output.node] for output in self.graph.outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def _run(self, at: int, node: Node, read: Tensors) -> torch.Tensor:
        if node.op not in _LAYERS:
            return _FUNCTIONS[node.op](read, node.attrs)
        layer = self.layers[str(at)]
        if node.op == "multihead_attention":
            query, key, value = read * 3 if len(read) == 1 else read
            dim = 1 if node.attrs["batch_first"] else 0
            mask = _causal(query.shape[dim], query) if node.attrs["causal"] else None
            attended: torch.Tensor = layer(query, key, value, attn_mask=mask, need_weights=False)[0]
            return attended
        if node.op.startswith("transformer_encoder") and node.attrs["causal"]:
            dim = 1 if node.attrs["batch_first"] else 0
            encoded: torch.Tensor = layer(read[0], _causal(read[0].shape[dim], read[0]))
            return encoded
        result = layer(*read)
        final: torch.Tensor = result[0] if node.op in {"rnn", "lstm", "gru"} else result
        return final

    def _places(self) -> dict[str, tuple[nn.Module, str]]:
        return {
            name: (self.layers[str(at)], role)
            for at, node in enumerate(self.graph.nodes)
            for role, name in node.params.items()
        }

    def load_named(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy weights in; the names and shapes were checked at admission.

        Raises:
            ValueError: a tensor is missing or has another shape.
        """
        with torch.no_grad():
            for name, (layer, role) in self._places().items():
                target = _state(layer, role)
                if name not in tensors or tensors[name].shape != target.shape:
                    raise ValueError(f"the weights have no tensor {name} of the right shape")
                target.copy_(tensors[name])

    def named_weights(self) -> dict[str, torch.Tensor]:
        """Return every parameter and buffer under the graph's names, detached and contiguous."""
        return {name: _state(layer, role).detach().cpu().contiguous() for name, (layer, role) in self._places().items()}

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the parameters that training changes, under the graph's names; buffers are not among them."""
        found = ((name, _state(layer, role)) for name, (layer, role) in self._places().items())
        return {name: tensor for name, tensor in found if isinstance(tensor, nn.Parameter)}


def build(graph: Graph) -> GraphModule:
    """Return the module of `graph`, freshly initialised as torch initialises its layers."""
    return GraphModule(graph)


def _state(layer: nn.Module, role: str) -> torch.Tensor:
    owner = layer
    *path, last = role.split(".")
    for part in path:
        owner = getattr(owner, part)
    tensor: torch.Tensor = getattr(owner, last)
    return tensor


def _last_uses(graph: Graph) -> list[list[str]]:
    kept = {output.node for output in graph.outputs}
    last: dict[str, int] = {}
    for at, node in enumerate(graph.nodes):
        for source in node.inputs:
            last[source] = at
    free: list[list[str]] = [[] for _ in graph.nodes]
    for name, at in last.items():
        if name not in kept:
            free[at].append(name)
    return free


def _causal(length: int, like: torch.Tensor) -> torch.Tensor:
    return torch.full((length, length), float("-inf"), dtype=like.dtype, device=like.device).triu(1)


def _plural(value: object) -> Any:  # noqa: ANN401 -- torch takes an integer or a tuple
    return tuple(value) if isinstance(value, list) else value


def _arguments(attrs: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: _plural(attrs[name]) for name in names}


def _simple(kind: Callable[..., nn.Module], *names: str) -> Callable[[Mapping[str, Any]], nn.Module]:
    return lambda attrs: kind(**_arguments(attrs, *names))


def _recurrent(kind: Callable[..., nn.Module]) -> Callable[[Mapping[str, Any]], nn.Module]:
    def make(attrs: Mapping[str, Any]) -> nn.Module:
        return kind(**dict(attrs))

    return make


def _encoder_layer(attrs: Mapping[str, Any]) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(
        **_arguments(
            attrs,
            *("d_model", "nhead", "dim_feedforward", "dropout", "activation"),
            *("norm_first", "layer_norm_eps", "batch_first"),
        )
    )


def _encoder(attrs: Mapping[str, Any]) -> nn.Module:
    return nn.TransformerEncoder(_encoder_layer(attrs), attrs["num_layers"], enable_nested_tensor=False)


_CONV: Final = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias")
_NORM: Final = ("num_features", "eps", "momentum", "affine")
_ATTENTION: Final = ("embed_dim", "num_heads", "dropout", "bias", "batch_first")

_LAYERS: Final[Mapping[str, Callable[[Mapping[str, Any]], nn.Module]]] = {
    "linear": _simple(nn.Linear, "in_features", "out_features", "bias"),
    "conv1d": _simple(nn.Conv1d, *_CONV),
    "conv2d": _simple(nn.Conv2d, *_CONV),
    "batch_norm1d": _simple(nn.BatchNorm1d, *_NORM),
    "batch_norm2d": _simple(nn.BatchNorm2d, *_NORM),
    "group_norm": _simple(nn.GroupNorm, "num_groups", "num_channels", "eps", "affine"),
    "layer_norm": lambda attrs: nn.LayerNorm(
        _plural(attrs["normalized_shape"]), attrs["eps"], elementwise_affine=attrs["affine"], bias=attrs["bias"]
    ),
    "embedding": _simple(nn.Embedding, "num_embeddings", "embedding_dim", "padding_idx"),
    "rnn": _recurrent(nn.RNN),
    "lstm": _recurrent(nn.LSTM),
    "gru": _recurrent(nn.GRU),
    "multihead_attention": _simple(nn.MultiheadAttention, *_ATTENTION),
    "transformer_encoder_layer": _encoder_layer,
    "transformer_encoder": _encoder,
    "dropout": _simple(nn.Dropout, "p"),
}
if frozenset(_LAYERS) != PARAMETRISED | {"dropout"}:
    raise AssertionError("every parametrised operation has a layer")


def _binary(
    function: Callable[[Any, Any], torch.Tensor],
) -> Callable[[Tensors, Mapping[str, Any]], torch.Tensor]:
    def run(read: Tensors, attrs: Mapping[str, Any]) -> torch.Tensor:
        left: Any = read[0]
        right: Any = read[1] if len(read) > 1 else attrs["scalar"]
        return function(right, left) if attrs.get("reverse") else function(left, right)

    return run


def _affine(read: Tensors, attrs: Mapping[str, Any]) -> torch.Tensor:
    value = read[0] if read[0].is_floating_point() else read[0].float()
    scale = torch.tensor(attrs["scale"], dtype=value.dtype, device=value.device)
    shift = torch.tensor(attrs["shift"], dtype=value.dtype, device=value.device)
    return value * scale + shift


functional = nn.functional
_FUNCTIONS: Final[Mapping[str, Callable[[Tensors, Mapping[str, Any]], torch.Tensor]]] = {
    "max_pool1d": lambda x, a: functional.max_pool1d(
        x[0], **_arguments(a, "kernel_size", "stride", "padding", "dilation")
    ),
    "max_pool2d": lambda x, a: functional.max_pool2d(
        x[0], **_arguments(a, "kernel_size", "stride", "padding", "dilation")
    ),
    "avg_pool1d": lambda x, a: functional.avg_pool1d(x[0], **_arguments(a, "kernel_size", "stride", "padding")),
    "avg_pool2d": lambda x, a: functional.avg_pool2d(x[0], **_arguments(a, "kernel_size", "stride", "padding")),
    "adaptive_avg_pool1d": lambda x, a: functional.adaptive_avg_pool1d(x[0], _plural(a["output_size"])),
    "adaptive_avg_pool2d": lambda x, a: functional.adaptive_avg_pool2d(x[0], _plural(a["output_size"])),
    "relu": lambda x, _: torch.relu(x[0]),
    "gelu": lambda x, a: functional.gelu(x[0], approximate=a["approximate"]),
    "silu": lambda x, _: functional.silu(x[0]),
    "tanh": lambda x, _: torch.tanh(x[0]),
    "sigmoid": lambda x, _: torch.sigmoid(x[0]),
    "softplus": lambda x, _: functional.softplus(x[0]),
    "elu": lambda x, a: functional.elu(x[0], a["alpha"]),
    "leaky_relu": lambda x, a: functional.leaky_relu(x[0], a["negative_slope"]),
    "softmax": lambda x, a: torch.softmax(x[0], a["dim"]),
    "log_softmax": lambda x, a: torch.log_softmax(x[0], a["dim"]),
    "identity": lambda x, _: x[0],
    "affine": _affine,
    "add": _binary(lambda left, right: left + right),
    "sub": _binary(lambda left, right: left - right),
    "mul": _binary(lambda left, right: left * right),
    "div": _binary(lambda left, right: left / right),
    "matmul": lambda x, _: torch.matmul(x[0], x[1]),
    "cat": lambda x, a: torch.cat(x, a["dim"]),
    "flatten": lambda x, a: torch.flatten(x[0], a["start_dim"], a["end_dim"]),
    "reshape": lambda x, a: x[0].reshape(_plural(a["shape"])),
    "permute": lambda x, a: x[0].permute(_plural(a["dims"])),
    "transpose": lambda x, a: x[0].transpose(a["dim0"], a["dim1"]),
    "squeeze": lambda x, a: x[0].squeeze(a["dim"]),
    "unsqueeze": lambda x, a: x[0].unsqueeze(a["dim"]),
    "mean": lambda x, a: x[0].mean(_plural(a["dim"]), keepdim=a["keepdim"]),
    "sum": lambda x, a: x[0].sum(_plural(a["dim"]), keepdim=a["keepdim"]),
    "select": lambda x, a: x[0].select(a["dim"], a["index"]),
}
