"""The closed list of operations: their attributes, and the parameters that attributes imply.

Each operation states which attributes it takes (type and bounds) and which tensors it owns, with their shapes. What is
not listed here does not exist: a graph cannot name a function, a module or a file.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

Shapes = Mapping[str, tuple[int, ...]]
MAX_WIDTH: Final = 1 << 20
MAX_LAYERS: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Attr:
    """One attribute: its kind and, for numbers, its bounds; optional ones have a default.

    Kinds: ``int``, ``float``, ``bool``, ``ints`` (an integer or a list), ``floats``, ``dim`` (may be negative),
    ``choice``.
    """

    kind: str
    low: float = 0
    high: float = MAX_WIDTH
    default: object = None
    required: bool = True
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One operation."""

    inputs: tuple[int, int]
    attrs: Mapping[str, Attr] = field(default_factory=dict)
    parameters: Callable[[Mapping[str, Any]], Shapes] = field(default=lambda _attrs: {})
    buffers: frozenset[str] = frozenset()


def size(low: int = 1, high: int = MAX_WIDTH) -> Attr:
    """Return a required positive integer."""
    return Attr(kind="int", low=low, high=high)


def flag(*, default: bool) -> Attr:
    """Return an optional boolean."""
    return Attr(kind="bool", default=default, required=False)


def number(default: float, *, low: float = 0.0, high: float = 1e6) -> Attr:
    """Return an optional finite number."""
    return Attr(kind="float", low=low, high=high, default=default, required=False)


def sizes(default: object = None, *, low: int = 0, required: bool = False) -> Attr:
    """Return an integer or a short list of integers."""
    return Attr(kind="ints", low=low, high=4096, default=default, required=required)


def _linear(attrs: Mapping[str, Any]) -> Shapes:
    shapes: dict[str, tuple[int, ...]] = {"weight": (attrs["out_features"], attrs["in_features"])}
    if attrs["bias"]:
        shapes["bias"] = (attrs["out_features"],)
    return shapes


def _conv(dims: int) -> Callable[[Mapping[str, Any]], Shapes]:
    def shapes(attrs: Mapping[str, Any]) -> Shapes:
        kernel = spread(attrs["kernel_size"], dims)
        weight = (attrs["out_channels"], attrs["in_channels"] // attrs["groups"], *kernel)
        return {"weight": weight, "bias": (attrs["out_channels"],)} if attrs["bias"] else {"weight": weight}

    return shapes


def spread(value: int | list[int], dims: int) -> tuple[int, ...]:
    """Return `value` as one integer for each of `dims` dimensions."""
    return (value,) * dims if isinstance(value, int) else tuple(value)


def _conv_op(dims: int) -> Op:
    return Op(
        inputs=(1, 1),
        attrs={
            "in_channels": size(),
            "out_channels": size(),
            "kernel_size": sizes(low=1, required=True),
            "stride": sizes(1, low=1),
            "padding": sizes(0),
            "dilation": sizes(1, low=1),
            "groups": Attr(kind="int", low=1, default=1, required=False),
            "bias": flag(default=True),
        },
        parameters=_conv(dims),
    )


def _pool_op(*, average: bool) -> Op:
    attrs = {"kernel_size": sizes(low=1, required=True), "stride": sizes(None, low=1), "padding": sizes(0)}
    if not average:
        attrs["dilation"] = sizes(1, low=1)
    return Op(inputs=(1, 1), attrs=attrs)


def _affine_pair(key: str) -> Callable[[Mapping[str, Any]], Shapes]:
    def shapes(attrs: Mapping[str, Any]) -> Shapes:
        return {"weight": (attrs[key],), "bias": (attrs[key],)} if attrs["affine"] else {}

    return shapes


def _batch_norm(attrs: Mapping[str, Any]) -> Shapes:
    shapes: dict[str, tuple[int, ...]] = dict(_affine_pair("num_features")(attrs))
    shapes |= {"running_mean": (attrs["num_features"],), "running_var": (attrs["num_features"],)}
    shapes["num_batches_tracked"] = ()
    return shapes


_BATCH_NORM: Final = Op(
    inputs=(1, 1),
    attrs={
        "num_features": size(),
        "eps": number(1e-5, low=1e-12, high=1.0),
        "momentum": number(0.1, high=1.0),
        "affine": flag(default=True),
    },
    parameters=_batch_norm,
    buffers=frozenset({"running_mean", "running_var", "num_batches_tracked"}),
)


def _layer_norm(attrs: Mapping[str, Any]) -> Shapes:
    shape = spread(attrs["normalized_shape"], 1)
    if not attrs["affine"]:
        return {}
    return {"weight": shape, "bias": shape} if attrs["bias"] else {"weight": shape}


def _recurrent(gates: int) -> Op:
    def shapes(attrs: Mapping[str, Any]) -> Shapes:
        found: dict[str, tuple[int, ...]] = {}
        hidden = attrs["hidden_size"]
        directions = 2 if attrs["bidirectional"] else 1
        for layer in range(attrs["num_layers"]):
            width = attrs["input_size"] if layer == 0 else hidden * directions
            for suffix in ("", "_reverse")[:directions]:
                found[f"weight_ih_l{layer}{suffix}"] = (gates * hidden, width)
                found[f"weight_hh_l{layer}{suffix}"] = (gates * hidden, hidden)
                if attrs["bias"]:
                    found[f"bias_ih_l{layer}{suffix}"] = (gates * hidden,)
                    found[f"bias_hh_l{layer}{suffix}"] = (gates * hidden,)
        return found

    return Op(
        inputs=(1, 1),
        attrs={
            "input_size": size(),
            "hidden_size": size(),
            "num_layers": Attr(kind="int", low=1, high=MAX_LAYERS, default=1, required=False),
            "bias": flag(default=True),
            "batch_first": flag(default=True),
            "dropout": number(0.0, high=0.999),
            "bidirectional": flag(default=False),
            **({"nonlinearity": _choice("tanh", "relu")} if gates == 1 else {}),
        },
        parameters=shapes,
    )


def _choice(*choices: str) -> Attr:
    return Attr(kind="choice", choices=choices, default=choices[0], required=False)


def _attention(attrs: Mapping[str, Any]) -> Shapes:
    width = attrs["embed_dim"]
    found: dict[str, tuple[int, ...]] = {"in_proj_weight": (3 * width, width), "out_proj.weight": (width, width)}
    if attrs["bias"]:
        found |= {"in_proj_bias": (3 * width,), "out_proj.bias": (width,)}
    return found


def _encoder_layer(attrs: Mapping[str, Any]) -> Shapes:
    width, inner = attrs["d_model"], attrs["dim_feedforward"]
    found = {f"self_attn.{name}": shape for name, shape in _attention({"embed_dim": width, "bias": True}).items()}
    found |= {"linear1.weight": (inner, width), "linear1.bias": (inner,)}
    found |= {"linear2.weight": (width, inner), "linear2.bias": (width,)}
    for norm in ("norm1", "norm2"):
        found |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    return found


def _encoder(attrs: Mapping[str, Any]) -> Shapes:
    layer = _encoder_layer(attrs)
    return {f"layers.{at}.{name}": shape for at in range(attrs["num_layers"]) for name, shape in layer.items()}


_LAYER_ATTRS: Final = {
    "d_model": size(),
    "nhead": size(high=256),
    "dim_feedforward": size(),
    "dropout": number(0.1, high=0.999),
    "activation": _choice("relu", "gelu"),
    "norm_first": flag(default=False),
    "layer_norm_eps": number(1e-5, low=1e-12, high=1.0),
    "batch_first": flag(default=True),
    "causal": flag(default=False),
}


def _unary(**attrs: Attr) -> Op:
    return Op(inputs=(1, 1), attrs=attrs)


_DIM: Final = Attr(kind="dim", low=-8, high=7)
_KEEP: Final = flag(default=False)
_SCALAR: Final = Attr(kind="float", low=-1e30, high=1e30, default=None, required=False)

OPS: Final[Mapping[str, Op]] = {
    "linear": Op(
        inputs=(1, 1),
        attrs={"in_features": size(), "out_features": size(), "bias": flag(default=True)},
        parameters=_linear,
    ),
    "conv1d": _conv_op(1),
    "conv2d": _conv_op(2),
    "max_pool1d": _pool_op(average=False),
    "max_pool2d": _pool_op(average=False),
    "avg_pool1d": _pool_op(average=True),
    "avg_pool2d": _pool_op(average=True),
    "adaptive_avg_pool1d": _unary(output_size=sizes(low=1, required=True)),
    "adaptive_avg_pool2d": _unary(output_size=sizes(low=1, required=True)),
    "batch_norm1d": _BATCH_NORM,
    "batch_norm2d": _BATCH_NORM,
    "group_norm": Op(
        inputs=(1, 1),
        attrs={
            "num_groups": size(),
            "num_channels": size(),
            "eps": number(1e-5, low=1e-12, high=1.0),
            "affine": flag(default=True),
        },
        parameters=_affine_pair("num_channels"),
    ),
    "layer_norm": Op(
        inputs=(1, 1),
        attrs={
            "normalized_shape": Attr(kind="ints", low=1, high=MAX_WIDTH),
            "eps": number(1e-5, low=1e-12, high=1.0),
            "affine": flag(default=True),
            "bias": flag(default=True),
        },
        parameters=_layer_norm,
    ),
    "embedding": Op(
        inputs=(1, 1),
        attrs={
            "num_embeddings": size(high=1 << 24),
            "embedding_dim": size(),
            "padding_idx": Attr(kind="int", low=0, high=1 << 24, default=None, required=False),
        },
        parameters=lambda attrs: {"weight": (attrs["num_embeddings"], attrs["embedding_dim"])},
    ),
    "rnn": _recurrent(1),
    "lstm": _recurrent(4),
    "gru": _recurrent(3),
    "multihead_attention": Op(
        inputs=(1, 3),
        attrs={
            "embed_dim": size(),
            "num_heads": size(high=256),
            "dropout": number(0.0, high=0.999),
            "bias": flag(default=True),
            "batch_first": flag(default=True),
            "causal": flag(default=False),
        },
        parameters=_attention,
    ),
    "transformer_encoder_layer": Op(inputs=(1, 1), attrs=_LAYER_ATTRS, parameters=_encoder_layer),
    "transformer_encoder": Op(
        inputs=(1, 1),
        attrs={**_LAYER_ATTRS, "num_layers": size(high=MAX_LAYERS)},
        parameters=_encoder,
    ),
    "dropout": _unary(p=number(0.5, high=0.999)),
    "relu": _unary(),
    "gelu": _unary(approximate=_choice("none", "tanh")),
    "silu": _unary(),
    "tanh": _unary(),
    "sigmoid": _unary(),
    "softplus": _unary(),
    "elu": _unary(alpha=number(1.0)),
    "leaky_relu": _unary(negative_slope=number(0.01)),
    "softmax": _unary(dim=_DIM),
    "log_softmax": _unary(dim=_DIM),
    "identity": _unary(),
    "affine": _unary(scale=Attr(kind="floats", low=-1e30, high=1e30), shift=Attr(kind="floats", low=-1e30, high=1e30)),
    "add": Op(inputs=(1, 2), attrs={"scalar": _SCALAR}),
    "sub": Op(inputs=(1, 2), attrs={"scalar": _SCALAR, "reverse": flag(default=False)}),
    "mul": Op(inputs=(1, 2), attrs={"scalar": _SCALAR}),
    "div": Op(inputs=(1, 2), attrs={"scalar": _SCALAR, "reverse": flag(default=False)}),
    "matmul": Op(inputs=(2, 2)),
    "cat": Op(inputs=(1, 64), attrs={"dim": _DIM}),
    "flatten": _unary(
        start_dim=Attr(kind="dim", low=-8, high=7, default=1, required=False),
        end_dim=Attr(kind="dim", low=-8, high=7, default=-1, required=False),
    ),
    "reshape": _unary(shape=Attr(kind="ints", low=-1, high=1 << 24)),
    "permute": _unary(dims=Attr(kind="ints", low=-8, high=7)),
    "transpose": _unary(dim0=_DIM, dim1=_DIM),
    "squeeze": _unary(dim=_DIM),
    "unsqueeze": _unary(dim=_DIM),
    "mean": _unary(dim=Attr(kind="ints", low=-8, high=7), keepdim=_KEEP),
    "sum": _unary(dim=Attr(kind="ints", low=-8, high=7), keepdim=_KEEP),
    "select": _unary(dim=_DIM, index=Attr(kind="dim", low=-(1 << 24), high=1 << 24)),
}

PARAMETRISED: Final = frozenset(
    {"linear", "conv1d", "conv2d", "batch_norm1d", "batch_norm2d", "group_norm", "layer_norm", "embedding", "rnn"}
    | {"lstm", "gru", "multihead_attention", "transformer_encoder_layer", "transformer_encoder"}
)
