"""Builds a torch module from a graph and its weights, for `load` and for checking what `trace` made.

The graph may come from a server that is not trusted: its operations are looked up in a closed list, its weights are
safetensors, nothing is evaluated or unpickled, and names and shapes must agree exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import safetensors.torch
import torch
from torch import nn
from torch.nn import functional

from modelkeep.errors import TraceError
from modelkeep.torch._graph import FORMAT

_Attrs = Mapping[str, Any]
_MAX_NODES: Final = 4096
_RECURRENT: Final = frozenset({"rnn", "lstm", "gru"})
_ENCODERS: Final = frozenset({"transformer_encoder", "transformer_encoder_layer"})


class Described(Protocol):
    """What `client.models.download` and `trace` give."""

    @property
    def graph(self) -> Mapping[str, Any]:
        """Return the description, as JSON."""

    @property
    def weights(self) -> bytes:
        """Return the weights, as safetensors."""


def load(download: Described) -> GraphModule:
    """Make a module of a downloaded model, in evaluation mode.

    Args:
        download: what `client.models.download` gave, or `trace`.

    Returns:
        A module that takes the graph's inputs in order and gives its outputs, a single one by itself.

    Raises:
        TraceError: the graph or the weights are not what the format says; nothing of them was run.
    """
    try:
        weights = safetensors.torch.load(download.weights)
    except Exception as exc:  # the library raises errors of its own, and of Python
        raise TraceError("the weights are not safetensors") from exc
    return GraphModule(download.graph, weights)


class GraphModule(nn.Module):
    """Runs the operations of a graph in their order.

    Args:
        graph: the description.
        weights: tensors under the graph's own names.

    Raises:
        TraceError: an operation, attribute, name or shape is not what the format says.
    """

    def __init__(self, graph: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        try:
            self._prepare(graph, weights)
        except TraceError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, AssertionError) as exc:
            raise TraceError(f"the graph is not what the format says: {type(exc).__name__}") from exc
        self.eval()

    def _prepare(self, graph: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> None:
        if graph["format"] != FORMAT or len(graph["nodes"]) > _MAX_NODES:
            raise TraceError(f"the graph's format is not `{FORMAT}`; a newer SDK may read it")
        self._inputs: list[str] = [tensor["name"] for tensor in graph["inputs"]]
        self._outputs: list[str] = [output["node"] for output in graph["outputs"]]
        self._nodes: list[Mapping[str, Any]] = list(graph["nodes"])
        self.layers = nn.ModuleDict()
        used: set[str] = set()
        for at, node in enumerate(self._nodes):
            if node["op"] in _LAYERS:
                layer = _LAYERS[node["op"]](node["attrs"])
                self.layers[str(at)] = layer
                used |= _fill(layer, node["params"], weights)
            elif node["op"] not in _FUNCTIONS:
                raise TraceError(f"the operation `{str(node['op'])[:80]}` is not one of the format")
        if used != set(weights):
            raise TraceError("the weights hold tensors that the graph does not name")

    def forward(self, *inputs: torch.Tensor) -> Any:  # noqa: ANN401 -- one tensor, or several
        """Return the outputs in the graph's order; a single one by itself."""
        values = dict(zip(self._inputs, inputs, strict=True))
        for at, node in enumerate(self._nodes):
            read = [values[source] for source in node["inputs"]]
            values[node["id"]] = self._run(at, node["op"], node["attrs"], read)
        outputs = tuple(values[name] for name in self._outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def _run(self, at: int, op: str, attrs: _Attrs, read: list[torch.Tensor]) -> torch.Tensor:
        if op in _FUNCTIONS:
            return _FUNCTIONS[op](read, attrs)
        layer = self.layers[str(at)]
        given: Any
        if op == "multihead_attention":
            query, key, value = read * 3 if len(read) == 1 else read
            given = layer(query, key, value, attn_mask=_mask(attrs, query), need_weights=False)[0]
        elif op in _ENCODERS:
            given = layer(read[0], _mask(attrs, read[0]))
        elif op in _RECURRENT:
            given = layer(read[0])[0]
        else:
            given = layer(read[0])
        result: torch.Tensor = given
        return result


def _fill(layer: nn.Module, params: Mapping[str, str], weights: Mapping[str, torch.Tensor]) -> set[str]:
    state = layer.state_dict()
    if set(params) != set(state):
        raise TraceError("an operation of the graph names other parameters than it has")
    for role, name in params.items():
        if name not in weights or weights[name].shape != state[role].shape or weights[name].dtype != state[role].dtype:
            raise TraceError(f"the weights have no tensor `{name[:128]}` of the right shape and dtype")
    layer.load_state_dict({role: weights[name] for role, name in params.items()})
    return set(params.values())


def _mask(attrs: _Attrs, like: torch.Tensor) -> torch.Tensor | None:
    if not attrs.get("causal", False):
        return None
    length = like.shape[1 if attrs.get("batch_first", True) else 0]
    return torch.full((length, length), float("-inf"), dtype=like.dtype, device=like.device).triu(1)


def _given(attrs: _Attrs, *names: str) -> dict[str, Any]:
    """Return those of `names` that are set, lists as the tuples torch wants; the rest have torch's own defaults."""
    found = {name: attrs[name] for name in names if attrs.get(name) is not None}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def _simple(kind: Callable[..., nn.Module], *names: str) -> Callable[[_Attrs], nn.Module]:
    return lambda attrs: kind(**_given(attrs, *names))


def _layer_norm(attrs: _Attrs) -> nn.Module:
    shape = attrs["normalized_shape"]
    return nn.LayerNorm(
        tuple(shape) if isinstance(shape, list) else shape,
        attrs.get("eps", 1e-5),
        elementwise_affine=attrs.get("affine", True),
        bias=attrs.get("bias", True),
    )


_ENCODER_ATTRS: Final = (
    *("d_model", "nhead", "dim_feedforward", "dropout", "activation"),
    *("norm_first", "layer_norm_eps"),
)


def _encoder_layer(attrs: _Attrs) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(**_given(attrs, *_ENCODER_ATTRS), batch_first=attrs.get("batch_first", True))


def _encoder(attrs: _Attrs) -> nn.Module:
    return nn.TransformerEncoder(_encoder_layer(attrs), attrs["num_layers"], enable_nested_tensor=False)


def _recurrent(kind: Callable[..., nn.Module]) -> Callable[[_Attrs], nn.Module]:
    names = ("input_size", "hidden_size", "num_layers", "bias", "dropout", "bidirectional", "nonlinearity")
    return lambda attrs: kind(**_given(attrs, *names), batch_first=attrs.get("batch_first", True))


def _attention(attrs: _Attrs) -> nn.Module:
    names = ("embed_dim", "num_heads", "dropout", "bias")
    return nn.MultiheadAttention(**_given(attrs, *names), batch_first=attrs.get("batch_first", True))


_CONV: Final = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias")
_BATCH_NORM: Final = ("num_features", "eps", "momentum", "affine")

_LAYERS: Final[Mapping[str, Callable[[_Attrs], nn.Module]]] = {
    "linear": _simple(nn.Linear, "in_features", "out_features", "bias"),
    "conv1d": _simple(nn.Conv1d, *_CONV),
    "conv2d": _simple(nn.Conv2d, *_CONV),
    "batch_norm1d": _simple(nn.BatchNorm1d, *_BATCH_NORM),
    "batch_norm2d": _simple(nn.BatchNorm2d, *_BATCH_NORM),
    "group_norm": _simple(nn.GroupNorm, "num_groups", "num_channels", "eps", "affine"),
    "layer_norm": _layer_norm,
    "embedding": _simple(nn.Embedding, "num_embeddings", "embedding_dim", "padding_idx"),
    "rnn": _recurrent(nn.RNN),
    "lstm": _recurrent(nn.LSTM),
    "gru": _recurrent(nn.GRU),
    "multihead_attention": _attention,
    "transformer_encoder_layer": _encoder_layer,
    "transformer_encoder": _encoder,
    "dropout": _simple(nn.Dropout, "p"),
}


def _binary(compute: Callable[[Any, Any], torch.Tensor]) -> Callable[[list[torch.Tensor], _Attrs], torch.Tensor]:
    def run(read: list[torch.Tensor], attrs: _Attrs) -> torch.Tensor:
        left: Any = read[0]
        right: Any = read[1] if len(read) > 1 else attrs["scalar"]
        return compute(right, left) if attrs.get("reverse") else compute(left, right)

    return run


def _affine(read: list[torch.Tensor], attrs: _Attrs) -> torch.Tensor:
    value = read[0] if read[0].is_floating_point() else read[0].float()
    scale, shift = (torch.tensor(attrs[name], dtype=value.dtype, device=value.device) for name in ("scale", "shift"))
    return value * scale + shift


def _pool(compute: Callable[..., torch.Tensor], *names: str) -> Callable[[list[torch.Tensor], _Attrs], torch.Tensor]:
    return lambda read, attrs: compute(read[0], **_given(attrs, *names))


def _tuple(value: Any) -> Any:  # noqa: ANN401 -- an integer or a list
    return tuple(value) if isinstance(value, list) else value


_FUNCTIONS: Final[Mapping[str, Callable[[list[torch.Tensor], _Attrs], torch.Tensor]]] = {
    "max_pool1d": _pool(functional.max_pool1d, "kernel_size", "stride", "padding", "dilation"),
    "max_pool2d": _pool(functional.max_pool2d, "kernel_size", "stride", "padding", "dilation"),
    "avg_pool1d": _pool(functional.avg_pool1d, "kernel_size", "stride", "padding"),
    "avg_pool2d": _pool(functional.avg_pool2d, "kernel_size", "stride", "padding"),
    "adaptive_avg_pool1d": _pool(functional.adaptive_avg_pool1d, "output_size"),
    "adaptive_avg_pool2d": _pool(functional.adaptive_avg_pool2d, "output_size"),
    "relu": lambda x, _: torch.relu(x[0]),
    "gelu": lambda x, a: functional.gelu(x[0], approximate=a.get("approximate", "none")),
    "silu": lambda x, _: functional.silu(x[0]),
    "tanh": lambda x, _: torch.tanh(x[0]),
    "sigmoid": lambda x, _: torch.sigmoid(x[0]),
    "softplus": lambda x, _: functional.softplus(x[0]),
    "elu": lambda x, a: functional.elu(x[0], a.get("alpha", 1.0)),
    "leaky_relu": lambda x, a: functional.leaky_relu(x[0], a.get("negative_slope", 0.01)),
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
    "flatten": lambda x, a: torch.flatten(x[0], a.get("start_dim", 1), a.get("end_dim", -1)),
    "reshape": lambda x, a: x[0].reshape(_tuple(a["shape"])),
    "permute": lambda x, a: x[0].permute(_tuple(a["dims"])),
    "transpose": lambda x, a: x[0].transpose(a["dim0"], a["dim1"]),
    "squeeze": lambda x, a: x[0].squeeze(a["dim"]),
    "unsqueeze": lambda x, a: x[0].unsqueeze(a["dim"]),
    "mean": lambda x, a: x[0].mean(_tuple(a["dim"]), keepdim=a.get("keepdim", False)),
    "sum": lambda x, a: x[0].sum(_tuple(a["dim"]), keepdim=a.get("keepdim", False)),
    "select": lambda x, a: x[0].select(a["dim"], a["index"]),
}
