"""Function and method calls: which operation of a graph each is.

A handler has the signature of the torch function it stands for and returns what the call becomes. Values that are
not tensors arrive as they were when the module ran on the example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import torch
from torch.nn import functional

from modelkeep.torch._layers import UnsupportedError


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the graph, by the name of what gives it; its rank and dtype when the module ran on the example."""

    name: str
    rank: int
    floating: bool


@dataclass(frozen=True, slots=True)
class Emit:
    """A call becomes one operation."""

    op: str
    inputs: Sequence[Value]
    attrs: Mapping[str, Any] = field(default_factory=dict)


Outcome = Emit | Value
"""An operation; or a tensor that is there already, when the call changes nothing that a graph can see."""


class Shape(Protocol):
    """What a handler may ask about the call's own result."""

    def shape(self) -> list[int]:
        """Return the result's shape, -1 where it varies."""


Handler = Callable[..., Outcome]


def _unary(op: str) -> Handler:
    def handle(_at: Shape, x: Value, inplace: bool = False) -> Outcome:  # noqa: FBT001, FBT002 -- torch's signature
        del inplace
        return Emit(op, [x])

    return handle


def _same(_at: Shape, x: Value, *_args: object, **_kwargs: object) -> Outcome:
    return x


def _binary(op: str) -> Handler:
    def handle(_at: Shape, left: Any, right: Any, alpha: float = 1, rounding_mode: object = None) -> Outcome:  # noqa: ANN401
        if alpha != 1 or rounding_mode is not None:
            raise UnsupportedError("leave `alpha` and `rounding_mode` out")
        if isinstance(left, Value) and isinstance(right, Value):
            return Emit(op, [left, right])
        if isinstance(left, Value):
            return Emit(op, [left], {"scalar": _scalar(right)})
        if not isinstance(right, Value):
            raise UnsupportedError("neither side is a tensor of the graph")
        attrs = {"scalar": _scalar(left)}
        return Emit(op, [right], {**attrs, "reverse": True} if op in {"sub", "div"} else attrs)

    return handle


def _scalar(value: object) -> float:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UnsupportedError(
            "it mixes a tensor of the graph with one that is a constant or a parameter of its own; "
            "only numbers and layers are taken (for positions, use an Embedding over an input of positions)"
        )
    return float(value)


def _power(_at: Shape, x: Value, exponent: object) -> Outcome:
    if exponent != 2:  # noqa: PLR2004 -- the square is a product
        raise UnsupportedError("only the square is taken; write other powers as products")
    return Emit("mul", [x, x])


def _negative(_at: Shape, x: Value) -> Outcome:
    return Emit("mul", [x], {"scalar": -1.0})


def _softmax(op: str) -> Handler:
    def handle(_at: Shape, x: Value, dim: int | None = None, _stacklevel: int = 3, dtype: object = None) -> Outcome:
        del _stacklevel
        if dim is None or dtype is not None:
            raise UnsupportedError("give `dim`, and leave `dtype` out")
        return Emit(op, [x], {"dim": dim})

    return handle


def _reduce(op: str) -> Handler:
    def handle(_at: Shape, x: Value, dim: Any = None, keepdim: bool = False, dtype: object = None) -> Outcome:  # noqa: ANN401, FBT001, FBT002
        if dtype is not None:
            raise UnsupportedError("leave `dtype` out")
        if dim is None:
            dim = list(range(x.rank))
        return Emit(op, [x], {"dim": list(dim) if isinstance(dim, tuple | list) else dim, "keepdim": keepdim})

    return handle


def _reshape(at: Shape, x: Value, *_shape: object, **_kwargs: object) -> Outcome:
    shape = at.shape()
    if shape.count(-1) > 1:
        raise UnsupportedError("more than one dimension of the new shape varies; only one may")
    return Emit("reshape", [x], {"shape": shape})


def _flatten(at: Shape, x: Value, start_dim: int = 0, end_dim: int = -1) -> Outcome:
    if start_dim == 0 and x.rank > 1:
        return _reshape(at, x)
    return Emit("flatten", [x], {"start_dim": start_dim, "end_dim": end_dim})


def _permute(_at: Shape, x: Value, *dims: Any) -> Outcome:  # noqa: ANN401 -- integers, or one list of them
    order = list(dims[0]) if len(dims) == 1 and isinstance(dims[0], list | tuple) else list(dims)
    return Emit("permute", [x], {"dims": order})


def _transpose(_at: Shape, x: Value, dim0: int, dim1: int) -> Outcome:
    return Emit("transpose", [x], {"dim0": dim0, "dim1": dim1})


def _dim(op: str) -> Handler:
    def handle(_at: Shape, x: Value, dim: object = None) -> Outcome:
        if not isinstance(dim, int):
            raise UnsupportedError("give one `dim`")
        return Emit(op, [x], {"dim": dim})

    return handle


def _select(_at: Shape, x: Value, dim: int, index: int) -> Outcome:
    return Emit("select", [x], {"dim": dim, "index": index})


def _cat(_at: Shape, tensors: Sequence[Value], dim: int = 0) -> Outcome:
    return Emit("cat", list(tensors), {"dim": dim})


def _matmul(_at: Shape, left: object, right: object) -> Outcome:
    if not (isinstance(left, Value) and isinstance(right, Value)):
        raise UnsupportedError("a product with a matrix of your own is a Linear layer without bias")
    return Emit("matmul", [left, right])


def _dropout(_at: Shape, x: Value, p: float = 0.5, training: bool = True, inplace: bool = False) -> Outcome:  # noqa: FBT001, FBT002
    del training, inplace
    return Emit("dropout", [x], {"p": p})


def _gelu(_at: Shape, x: Value, approximate: str = "none") -> Outcome:
    return Emit("gelu", [x], {"approximate": approximate})


def _softplus(_at: Shape, x: Value, beta: float = 1.0, threshold: float = 20.0) -> Outcome:
    if (beta, threshold) != (1.0, 20.0):
        raise UnsupportedError("leave `beta` and `threshold` out")
    return Emit("softplus", [x])


def _elu(_at: Shape, x: Value, alpha: float = 1.0, inplace: bool = False) -> Outcome:  # noqa: FBT001, FBT002
    del inplace
    return Emit("elu", [x], {"alpha": alpha})


def _leaky(_at: Shape, x: Value, negative_slope: float = 0.01, inplace: bool = False) -> Outcome:  # noqa: FBT001, FBT002
    del inplace
    return Emit("leaky_relu", [x], {"negative_slope": negative_slope})


def _sizes(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _max_pool(op: str) -> Handler:
    def handle(
        _at: Shape,
        x: Value,
        kernel_size: object,
        stride: object = None,
        padding: object = 0,
        dilation: object = 1,
        ceil_mode: bool = False,  # noqa: FBT001, FBT002
        return_indices: bool = False,  # noqa: FBT001, FBT002
    ) -> Outcome:
        if ceil_mode or return_indices:
            raise UnsupportedError("leave `ceil_mode` and `return_indices` out")
        attrs = {"kernel_size": kernel_size, "stride": stride or kernel_size, "padding": padding, "dilation": dilation}
        return Emit(op, [x], {name: _sizes(value) for name, value in attrs.items()})

    return handle


def _average_pool(op: str) -> Handler:
    def handle(
        _at: Shape, x: Value, kernel_size: object, stride: object = None, padding: object = 0, **more: object
    ) -> Outcome:
        if any(value not in (None, False) for name, value in more.items() if name != "count_include_pad"):
            raise UnsupportedError("leave every option after `padding` out")
        attrs = {"kernel_size": kernel_size, "stride": stride or kernel_size, "padding": padding}
        return Emit(op, [x], {name: _sizes(value) for name, value in attrs.items()})

    return handle


def _adaptive(op: str) -> Handler:
    def handle(_at: Shape, x: Value, output_size: object) -> Outcome:
        return Emit(op, [x], {"output_size": _sizes(output_size)})

    return handle


FUNCTIONS: Final[Mapping[str, Handler]] = {
    **{name: _unary(name) for name in ("relu", "silu", "tanh", "sigmoid")},
    **{f"{name}_": _unary(name) for name in ("relu", "tanh", "sigmoid")},
    **dict.fromkeys(("contiguous", "clone", "detach", "float", "identity"), _same),
    "gelu": _gelu,
    "softplus": _softplus,
    "elu": _elu,
    "leaky_relu": _leaky,
    "softmax": _softmax("softmax"),
    "log_softmax": _softmax("log_softmax"),
    "add": _binary("add"),
    "iadd": _binary("add"),
    "add_": _binary("add"),
    "sub": _binary("sub"),
    "isub": _binary("sub"),
    "subtract": _binary("sub"),
    "mul": _binary("mul"),
    "imul": _binary("mul"),
    "multiply": _binary("mul"),
    "div": _binary("div"),
    "divide": _binary("div"),
    "truediv": _binary("div"),
    "itruediv": _binary("div"),
    "true_divide": _binary("div"),
    "pow": _power,
    "square": lambda at, x: _power(at, x, 2),
    "neg": _negative,
    "matmul": _matmul,
    "bmm": _matmul,
    "mm": _matmul,
    "cat": _cat,
    "concat": _cat,
    "flatten": _flatten,
    "reshape": _reshape,
    "view": _reshape,
    "unflatten": _reshape,
    "permute": _permute,
    "transpose": _transpose,
    "swapaxes": _transpose,
    "squeeze": _dim("squeeze"),
    "unsqueeze": _dim("unsqueeze"),
    "mean": _reduce("mean"),
    "sum": _reduce("sum"),
    "select": _select,
    "dropout": _dropout,
    "max_pool1d": _max_pool("max_pool1d"),
    "max_pool2d": _max_pool("max_pool2d"),
    "avg_pool1d": _average_pool("avg_pool1d"),
    "avg_pool2d": _average_pool("avg_pool2d"),
    "adaptive_avg_pool1d": _adaptive("adaptive_avg_pool1d"),
    "adaptive_avg_pool2d": _adaptive("adaptive_avg_pool2d"),
}
"""By the function's or method's name."""

NAMED: Final[Mapping[object, str]] = {
    functional.max_pool1d: "max_pool1d",
    functional.max_pool2d: "max_pool2d",
}
"""Functions whose own name says nothing."""

ALTERNATIVES: Final[Mapping[str, str]] = {
    "einsum": "write it with `matmul`, `permute` and `reshape`",
    "scaled_dot_product_attention": "use nn.MultiheadAttention",
    "linear": "use an nn.Linear layer, so that its weights have a name",
    "conv1d": "use an nn.Conv1d layer",
    "conv2d": "use an nn.Conv2d layer",
    "embedding": "use an nn.Embedding layer",
    "layer_norm": "use an nn.LayerNorm layer",
    "batch_norm": "use an nn.BatchNorm layer",
    "stack": "use `unsqueeze` on each, then `torch.cat`",
    "chunk": "use one Linear layer for each part",
    "split": "use one Linear layer for each part",
    "expand": "arithmetic broadcasts by itself; leave it out",
    "repeat": "arithmetic broadcasts by itself; leave it out",
    "max": "use a pooling layer, or `mean`",
    "argmax": "give the scores out and take the largest in your own code",
    "where": "a graph has no conditions; use arithmetic",
    "masked_fill": "a graph has no conditions; use `causal` attention, or arithmetic",
    "floordiv": "a graph has no whole-number division of tensors",
}
