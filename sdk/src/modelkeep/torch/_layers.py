"""Layers: which operation of a graph each torch layer is, and under which roles its parameters lie.

A layer with an option that the operation has not is refused by naming the option.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import nn


class UnsupportedError(Exception):
    """The layer or call has no operation; the message says what to do instead."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer as an operation: its name and attributes; parameters are those of the layer's own state."""

    op: str
    attrs: Mapping[str, Any]


def layer_of(module: nn.Module) -> Layer:
    """Return the operation that `module` is.

    Raises:
        UnsupportedError: none is.
    """
    found = _LAYERS.get(type(module))
    if found is None:
        raise UnsupportedError(_ALTERNATIVES.get(type(module).__name__, "use one of the layers in the reference"))
    return found(module)


def is_layer(module: nn.Module) -> bool:
    """Return whether `module` is a layer that a graph names, rather than a composition of such."""
    return type(module) in _LAYERS


def _plain(value: Any) -> Any:  # noqa: ANN401 -- an integer, or a tuple of them
    return list(value) if isinstance(value, tuple) else value


def _need(module: nn.Module, **wanted: object) -> None:
    for name, value in wanted.items():
        given = getattr(module, name)
        if given != value:
            raise UnsupportedError(f"its `{name}` is {given!r}; only {value!r} is taken")


def _copied(op: str, *names: str) -> Callable[[Any], Layer]:
    return lambda module: Layer(op, {name: _plain(getattr(module, name)) for name in names})


def _linear(module: nn.Linear) -> Layer:
    attrs = {"in_features": module.in_features, "out_features": module.out_features, "bias": module.bias is not None}
    return Layer("linear", attrs)


def _conv(op: str) -> Callable[[Any], Layer]:
    def make(module: Any) -> Layer:  # noqa: ANN401 -- Conv1d or Conv2d
        _need(module, padding_mode="zeros")
        if isinstance(module.padding, str):
            raise UnsupportedError("its `padding` is a word; give the number of pixels instead")
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
        return Layer(op, {**{name: _plain(getattr(module, name)) for name in names}, "bias": module.bias is not None})

    return make


def _max_pool(op: str) -> Callable[[Any], Layer]:
    def make(module: Any) -> Layer:  # noqa: ANN401 -- MaxPool1d or MaxPool2d
        _need(module, ceil_mode=False, return_indices=False)
        return _copied(op, "kernel_size", "stride", "padding", "dilation")(module)

    return make


def _average_pool(op: str) -> Callable[[Any], Layer]:
    def make(module: Any) -> Layer:  # noqa: ANN401 -- AvgPool1d or AvgPool2d
        _need(module, ceil_mode=False, count_include_pad=True)
        if getattr(module, "divisor_override", None) is not None:
            raise UnsupportedError("its `divisor_override` is set; leave it out")
        return _copied(op, "kernel_size", "stride", "padding")(module)

    return make


def _adaptive(op: str) -> Callable[[Any], Layer]:
    def make(module: Any) -> Layer:  # noqa: ANN401 -- AdaptiveAvgPool1d or AdaptiveAvgPool2d
        size = module.output_size
        if size is None or (isinstance(size, tuple) and None in size):
            raise UnsupportedError("its `output_size` holds None; give every size")
        return Layer(op, {"output_size": _plain(size)})

    return make


def _batch_norm(op: str) -> Callable[[Any], Layer]:
    def make(module: Any) -> Layer:  # noqa: ANN401 -- BatchNorm1d or BatchNorm2d
        _need(module, track_running_stats=True)
        if module.momentum is None:
            raise UnsupportedError("its `momentum` is None; give a number")
        return _copied(op, "num_features", "eps", "momentum", "affine")(module)

    return make


def _layer_norm(module: nn.LayerNorm) -> Layer:
    affine = module.elementwise_affine
    attrs = {
        "normalized_shape": list(module.normalized_shape),
        "eps": module.eps,
        "affine": affine,
        "bias": affine and module.bias is not None,
    }
    return Layer("layer_norm", attrs)


def _embedding(module: nn.Embedding) -> Layer:
    _need(module, max_norm=None, scale_grad_by_freq=False, sparse=False)
    attrs = {"num_embeddings": module.num_embeddings, "embedding_dim": module.embedding_dim}
    if module.padding_idx is not None:
        attrs["padding_idx"] = module.padding_idx
    return Layer("embedding", attrs)


def _recurrent(op: str) -> Callable[[Any], Layer]:
    def make(module: Any) -> Layer:  # noqa: ANN401 -- RNN, LSTM or GRU
        _need(module, proj_size=0)
        names = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")
        extra = ("nonlinearity",) if op == "rnn" else ()
        return _copied(op, *names, *extra)(module)

    return make


def _attention(module: nn.MultiheadAttention) -> Layer:
    _need(module, bias_k=None, bias_v=None, add_zero_attn=False)
    if module.in_proj_weight is None:
        raise UnsupportedError("its `kdim` or `vdim` differ from `embed_dim`; project them with Linear layers first")
    attrs = {
        "embed_dim": module.embed_dim,
        "num_heads": module.num_heads,
        "dropout": module.dropout,
        "bias": module.in_proj_bias is not None,
        "batch_first": module.batch_first,
    }
    return Layer("multihead_attention", attrs)


def _encoder_layer_attrs(module: nn.TransformerEncoderLayer) -> dict[str, Any]:
    activation = getattr(module.activation, "__name__", type(module.activation).__name__).lower()
    if activation not in {"relu", "gelu"}:
        raise UnsupportedError(f"its activation is `{activation}`; `relu` and `gelu` are taken")
    if module.linear1.bias is None:
        raise UnsupportedError("its `bias` is False; only True is taken")
    return {
        "d_model": module.linear1.in_features,
        "nhead": module.self_attn.num_heads,
        "dim_feedforward": module.linear1.out_features,
        "dropout": module.dropout.p,
        "activation": activation,
        "norm_first": module.norm_first,
        "layer_norm_eps": module.norm1.eps,
        "batch_first": module.self_attn.batch_first,
    }


def _encoder_layer(module: nn.TransformerEncoderLayer) -> Layer:
    return Layer("transformer_encoder_layer", _encoder_layer_attrs(module))


def _encoder(module: nn.TransformerEncoder) -> Layer:
    if module.norm is not None:
        raise UnsupportedError("it has a final `norm`; call that LayerNorm after the encoder instead")
    layers: list[Any] = list(module.layers)
    attrs = [_encoder_layer_attrs(layer) for layer in layers]
    if any(other != attrs[0] for other in attrs):
        raise UnsupportedError("its layers differ; call them one after the other instead")
    return Layer("transformer_encoder", {**attrs[0], "num_layers": len(layers)})


_LAYERS: Final[Mapping[type[nn.Module], Callable[[Any], Layer]]] = {
    nn.Linear: _linear,
    nn.Conv1d: _conv("conv1d"),
    nn.Conv2d: _conv("conv2d"),
    nn.MaxPool1d: _max_pool("max_pool1d"),
    nn.MaxPool2d: _max_pool("max_pool2d"),
    nn.AvgPool1d: _average_pool("avg_pool1d"),
    nn.AvgPool2d: _average_pool("avg_pool2d"),
    nn.AdaptiveAvgPool1d: _adaptive("adaptive_avg_pool1d"),
    nn.AdaptiveAvgPool2d: _adaptive("adaptive_avg_pool2d"),
    nn.BatchNorm1d: _batch_norm("batch_norm1d"),
    nn.BatchNorm2d: _batch_norm("batch_norm2d"),
    nn.GroupNorm: _copied("group_norm", "num_groups", "num_channels", "eps", "affine"),
    nn.LayerNorm: _layer_norm,
    nn.Embedding: _embedding,
    nn.RNN: _recurrent("rnn"),
    nn.LSTM: _recurrent("lstm"),
    nn.GRU: _recurrent("gru"),
    nn.MultiheadAttention: _attention,
    nn.TransformerEncoderLayer: _encoder_layer,
    nn.TransformerEncoder: _encoder,
    nn.Dropout: _copied("dropout", "p"),
    nn.ReLU: _copied("relu"),
    nn.GELU: _copied("gelu", "approximate"),
    nn.SiLU: _copied("silu"),
    nn.Tanh: _copied("tanh"),
    nn.Sigmoid: _copied("sigmoid"),
    nn.ELU: _copied("elu", "alpha"),
    nn.LeakyReLU: _copied("leaky_relu", "negative_slope"),
    nn.Identity: _copied("identity"),
    nn.Flatten: _copied("flatten", "start_dim", "end_dim"),
}
"""Layers that are one operation. Softmax, Softplus and the like are traced through as the functions they call."""

_ALTERNATIVES: Final[Mapping[str, str]] = {
    "Bilinear": "use Linear layers and a product",
    "Conv3d": "use Conv2d over a reshaped input",
    "ConvTranspose1d": "use Conv1d over a repeated input",
    "ConvTranspose2d": "use Conv2d over a repeated input",
    "AdaptiveMaxPool1d": "use AdaptiveAvgPool1d, or MaxPool1d with a fixed kernel",
    "AdaptiveMaxPool2d": "use AdaptiveAvgPool2d, or MaxPool2d with a fixed kernel",
    "InstanceNorm1d": "use GroupNorm with as many groups as channels",
    "InstanceNorm2d": "use GroupNorm with as many groups as channels",
    "RMSNorm": "use LayerNorm",
    "EmbeddingBag": "use Embedding, then mean over the words",
    "GRUCell": "use GRU over the whole sequence",
    "LSTMCell": "use LSTM over the whole sequence",
    "RNNCell": "use RNN over the whole sequence",
    "Transformer": "use TransformerEncoder",
    "TransformerDecoder": "use TransformerEncoder with a causal mask",
    "TransformerDecoderLayer": "use TransformerEncoderLayer with a causal mask",
    "PReLU": "use LeakyReLU",
    "Dropout1d": "use Dropout",
    "Dropout2d": "use Dropout",
    "AlphaDropout": "use Dropout",
    "Mish": "use SiLU",
    "Hardswish": "use SiLU",
    "Hardtanh": "use Tanh",
    "ReLU6": "use ReLU",
    "SELU": "use ELU",
}
