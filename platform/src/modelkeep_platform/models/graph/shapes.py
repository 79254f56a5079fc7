"""The shapes that a graph's operations give: plain arithmetic for each operation of the closed list, no torch.

A graph whose operations do not fit together, whose outputs are not what it declares, or that holds an enormous tensor
already for a single record, is refused before anything is built. Dtypes and values are not followed.

A dimension that varies is a negative number here: minus the size it has when everything that varies in the inputs is
1. So ``-1`` of a declaration keeps its meaning, and what a reshape folds into a varying dimension is not lost.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from modelkeep_platform.models.graph.description import MAX_RANK, Graph, InvalidGraphError
from modelkeep_platform.models.graph.ops import OPS, spread

Shape = tuple[int, ...]
Attrs = Mapping[str, Any]
MAX_VALUES: Final = 1 << 28
"""The most values that one tensor between two operations may hold for a single record (1 GiB of float32)."""

_MATRIX: Final = 2


class _DoesNotFitError(Exception):
    """An operation cannot be applied to shapes; the message says why."""


def check(graph: Graph) -> None:
    """Check that the operations of `graph` fit together and give what it declares.

    Raises:
        InvalidGraphError: they do not, or a tensor is enormous; the message names the node or output.
    """
    known: dict[str, Shape] = {}
    for tensor in graph.inputs:
        if _count(tensor.shape) > MAX_VALUES:
            raise InvalidGraphError(f"the input `{tensor.name}` holds more than {MAX_VALUES} values for one record")
        known[tensor.name] = tensor.shape
    for node in graph.nodes:
        try:
            known[node.id] = infer(node.op, node.attrs, [known[source] for source in node.inputs])
        except _DoesNotFitError as exc:
            raise InvalidGraphError(f"node `{node.id}` cannot be a `{node.op}` here: {exc}") from None
    for output in graph.outputs:
        given = known[output.node]
        if len(given) != len(output.shape) or not all(map(_may_be, given, output.shape)):
            raise InvalidGraphError(
                f"the output `{output.name}` is declared {list(output.shape)}; `{output.node}` gives {_shown(given)}"
            )


def infer(op: str, attrs: Attrs, shapes: Sequence[Shape]) -> Shape:
    """Return the shape that an operation gives.

    Args:
        op: its name.
        attrs: its checked attributes.
        shapes: of what it reads; a negative dimension varies.
    """
    given = _RULES[op](attrs, *shapes)
    if len(given) > MAX_RANK:
        raise _DoesNotFitError(f"it gives {len(given)} dimensions; {MAX_RANK} are the most")
    _bounded(_count(given))
    return given


# --- arithmetic of dimensions -----------------------------------------------------------------------


def _count(shape: Shape) -> int:
    return abs(math.prod(shape))


def _bounded(values: int) -> None:
    if values > MAX_VALUES:
        raise _DoesNotFitError(f"it holds {values} values for one record; {MAX_VALUES} are the most")


def _product(dims: Shape) -> int:
    return -_count(dims) if any(dim < 0 for dim in dims) else math.prod(dims)


def _may_be(one: int, other: int) -> bool:
    return one < 0 or other < 0 or one == other


def _agreed(one: int, other: int, what: str) -> int:
    """Return the size of two dimensions that must be equal."""
    if not _may_be(one, other):
        raise _DoesNotFitError(f"{what} differ: {one} and {other}")
    return max(one, other) if one > 0 or other > 0 else min(one, other)


def _broadcast(left: Shape, right: Shape) -> Shape:
    rank = max(len(left), len(right))
    pairs = zip((1,) * (rank - len(left)) + left, (1,) * (rank - len(right)) + right, strict=True)
    return tuple(other if one == 1 else one if other == 1 else _agreed(one, other, "sizes") for one, other in pairs)


def _shown(shape: Shape) -> list[int]:
    return [dim if dim > 0 else -1 for dim in shape]


def _need(size: int, wanted: int, attr: str) -> None:
    if not _may_be(size, wanted):
        raise _DoesNotFitError(f"it reads {size} where `{attr}` is {wanted}")


def _need_rank(shape: Shape, low: int, high: int = MAX_RANK) -> None:
    if not low <= len(shape) <= high:
        wanted = str(low) if low == high else f"{low} to {high}"
        raise _DoesNotFitError(f"it reads {len(shape)} dimensions and takes {wanted}")


def _at(dim: int, rank: int) -> int:
    """Return a dimension counted from the front."""
    rank = max(rank, 1)  # of a single number, 0 and -1 are the dimension that it has not
    if not -rank <= dim < rank:
        raise _DoesNotFitError(f"there is no dimension {dim} among {rank}")
    return dim % rank


def _ints(value: int | list[int]) -> list[int]:
    return [value] if isinstance(value, int) else value


# --- operations -------------------------------------------------------------------------------------


def _same(_attrs: Attrs, x: Shape) -> Shape:
    return x


def _along(attrs: Attrs, x: Shape) -> Shape:
    _at(attrs["dim"], len(x))
    return x


def _linear(attrs: Attrs, x: Shape) -> Shape:
    _need_rank(x, 1)
    _need(x[-1], attrs["in_features"], "in_features")
    return (*x[:-1], attrs["out_features"])


def _window(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Return how often a window fits; sizes that vary fit at least once."""
    count = (abs(size) + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    if size < 0:
        return -max(count, 1)
    if count < 1:
        raise _DoesNotFitError(f"its kernel is larger than what it reads, {size} with padding {padding}")
    return count


def _windows(attrs: Attrs, x: Shape, dims: int) -> Shape:
    stride = attrs["kernel_size"] if attrs["stride"] is None else attrs["stride"]
    settings = [attrs["kernel_size"], stride, attrs["padding"], attrs.get("dilation", 1)]
    each = zip(x[-dims:], *(spread(value, dims) for value in settings), strict=True)
    return tuple(_window(*one) for one in each)


def _conv(dims: int) -> Callable[[Attrs, Shape], Shape]:
    def rule(attrs: Attrs, x: Shape) -> Shape:
        _need_rank(x, dims + 1, dims + 2)
        _need(x[-dims - 1], attrs["in_channels"], "in_channels")
        return (*x[: -dims - 1], attrs["out_channels"], *_windows(attrs, x, dims))

    return rule


def _pool(dims: int) -> Callable[[Attrs, Shape], Shape]:
    def rule(attrs: Attrs, x: Shape) -> Shape:
        _need_rank(x, dims + 1, dims + 2)
        return (*x[:-dims], *_windows(attrs, x, dims))

    return rule


def _adaptive(dims: int) -> Callable[[Attrs, Shape], Shape]:
    def rule(attrs: Attrs, x: Shape) -> Shape:
        _need_rank(x, dims + 1, dims + 2)
        return (*x[:-dims], *spread(attrs["output_size"], dims))

    return rule


def _channels(low: int, high: int, attr: str) -> Callable[[Attrs, Shape], Shape]:
    def rule(attrs: Attrs, x: Shape) -> Shape:
        _need_rank(x, low, high)
        _need(x[1], attrs[attr], attr)
        return x

    return rule


def _layer_norm(attrs: Attrs, x: Shape) -> Shape:
    wanted = _ints(attrs["normalized_shape"])
    _need_rank(x, len(wanted))
    for size, want in zip(x[-len(wanted) :], wanted, strict=True):
        _need(size, want, "normalized_shape")
    return x


def _embedding(attrs: Attrs, x: Shape) -> Shape:
    return (*x, attrs["embedding_dim"])


def _recurrent(attrs: Attrs, x: Shape) -> Shape:
    _need_rank(x, 2, 3)
    _need(x[-1], attrs["input_size"], "input_size")
    return (*x[:-1], attrs["hidden_size"] * (2 if attrs["bidirectional"] else 1))


def _attention(attrs: Attrs, *read: Shape) -> Shape:
    query, key, value = read * 3 if len(read) == 1 else read
    width = attrs["embed_dim"]
    for one in (query, key, value):
        _sequence(one, width, "embed_dim", causal=attrs["causal"])
        _need_rank(one, len(query), len(query))
    batch, steps = _axes(query, batch_first=attrs["batch_first"])
    longest = _agreed(key[steps], value[steps], "the lengths of key and value")
    if batch is not None:
        _agreed(_agreed(query[batch], key[batch], "batches"), value[batch], "batches")
    if attrs["causal"]:
        _agreed(query[steps], longest, "the lengths of query and key of causal attention")
    _bounded(abs(attrs["num_heads"] * query[steps] * longest))
    return query


def _encoder(attrs: Attrs, x: Shape) -> Shape:
    _sequence(x, attrs["d_model"], "d_model", causal=attrs["causal"])
    steps = x[_axes(x, batch_first=attrs["batch_first"])[1]]
    _bounded(attrs["nhead"] * steps * steps)
    _bounded(_count(x[:-1]) * attrs["dim_feedforward"])
    return x


def _sequence(x: Shape, width: int, attr: str, *, causal: bool) -> None:
    # The mask of causal attention is made for batches of sequences.
    _need_rank(x, 3 if causal else 2, 3)
    _need(x[-1], width, attr)


def _axes(x: Shape, *, batch_first: bool) -> tuple[int | None, int]:
    """Return where the batch and the steps are."""
    if len(x) == _MATRIX:
        return None, 0
    return (0, 1) if batch_first else (1, 0)


def _affine(attrs: Attrs, x: Shape) -> Shape:
    return _broadcast(x, (len(attrs["scale"]),))


def _arithmetic(_attrs: Attrs, left: Shape, right: Shape | None = None) -> Shape:
    return left if right is None else _broadcast(left, right)


def _matmul(_attrs: Attrs, left: Shape, right: Shape) -> Shape:
    _need_rank(left, 1)
    _need_rank(right, 1)
    rows = left[-2:-1]
    columns = right[-1:] if len(right) >= _MATRIX else ()
    _agreed(left[-1], right[-2] if len(right) >= _MATRIX else right[0], "the inner sizes")
    return (*_broadcast(left[:-2], right[:-2]), *rows, *columns)


def _cat(attrs: Attrs, *read: Shape) -> Shape:
    first = read[0]
    _need_rank(first, 1)
    at = _at(attrs["dim"], len(first))
    total = list(first)
    for other in read[1:]:
        _need_rank(other, len(first), len(first))
        for dim, size in enumerate(other):
            if dim == at:
                whole = abs(total[dim]) + abs(size)
                total[dim] = -whole if total[dim] < 0 or size < 0 else whole
            else:
                total[dim] = _agreed(total[dim], size, "sizes beside the dimension that grows")
    return tuple(total)


def _flatten(attrs: Attrs, x: Shape) -> Shape:
    start, end = _at(attrs["start_dim"], len(x)), _at(attrs["end_dim"], len(x))
    if start > end:
        raise _DoesNotFitError("`start_dim` comes after `end_dim`")
    return (*x[:start], _product(x[start : end + 1]), *x[end + 1 :])


def _reshape(attrs: Attrs, x: Shape) -> Shape:
    wanted = _ints(attrs["shape"])
    if wanted.count(-1) > 1 or 0 in wanted:
        raise _DoesNotFitError("one size of `shape` may be -1 and none 0")
    fixed = math.prod(size for size in wanted if size > 0)
    certain = math.prod(size for size in x if size > 0)
    varies = any(size < 0 for size in x)
    if -1 not in wanted:
        # With sizes that vary there are as many values as some multiple of those that do not.
        if fixed % certain if varies else fixed != certain:
            raise _DoesNotFitError(f"{_shown(x)} has not as many values as {wanted}")
        return tuple(wanted)
    if not varies and certain % fixed:
        raise _DoesNotFitError(f"{_shown(x)} cannot be divided into {wanted}")
    rest = -max(_count(x) // fixed, 1) if varies else certain // fixed
    return tuple(rest if size == -1 else size for size in wanted)


def _permute(attrs: Attrs, x: Shape) -> Shape:
    dims = [_at(dim, len(x)) for dim in _ints(attrs["dims"])]
    if sorted(dims) != list(range(len(x))):
        raise _DoesNotFitError(f"`dims` names each of {len(x)} dimensions once")
    return tuple(x[dim] for dim in dims)


def _transpose(attrs: Attrs, x: Shape) -> Shape:
    one, other = _at(attrs["dim0"], len(x)), _at(attrs["dim1"], len(x))
    swapped = list(x)
    if x:
        swapped[one], swapped[other] = x[other], x[one]
    return tuple(swapped)


def _squeeze(attrs: Attrs, x: Shape) -> Shape:
    at = _at(attrs["dim"], len(x))
    if x and x[at] < 0:
        raise _DoesNotFitError(f"dimension {attrs['dim']} varies, and would be dropped only where it is 1")
    return (*x[:at], *x[at + 1 :]) if x and x[at] == 1 else x


def _unsqueeze(attrs: Attrs, x: Shape) -> Shape:
    at = _at(attrs["dim"], len(x) + 1)
    return (*x[:at], 1, *x[at:])


def _reduce(attrs: Attrs, x: Shape) -> Shape:
    dims = [_at(dim, len(x)) for dim in _ints(attrs["dim"])]
    if len(set(dims)) != len(dims):
        raise _DoesNotFitError("`dim` names a dimension twice")
    if attrs["keepdim"]:
        return tuple(1 if at in dims else size for at, size in enumerate(x))
    return tuple(size for at, size in enumerate(x) if at not in dims)


def _select(attrs: Attrs, x: Shape) -> Shape:
    _need_rank(x, 1)
    at, index = _at(attrs["dim"], len(x)), attrs["index"]
    if x[at] > 0 and not -x[at] <= index < x[at]:
        raise _DoesNotFitError(f"there is no `index` {index} among {x[at]}")
    return (*x[:at], *x[at + 1 :])


_RULES: Final[Mapping[str, Callable[..., Shape]]] = {
    "linear": _linear,
    "conv1d": _conv(1),
    "conv2d": _conv(2),
    "max_pool1d": _pool(1),
    "max_pool2d": _pool(2),
    "avg_pool1d": _pool(1),
    "avg_pool2d": _pool(2),
    "adaptive_avg_pool1d": _adaptive(1),
    "adaptive_avg_pool2d": _adaptive(2),
    "batch_norm1d": _channels(2, 3, "num_features"),
    "batch_norm2d": _channels(4, 4, "num_features"),
    "group_norm": _channels(2, MAX_RANK, "num_channels"),
    "layer_norm": _layer_norm,
    "embedding": _embedding,
    **dict.fromkeys(("rnn", "lstm", "gru"), _recurrent),
    "multihead_attention": _attention,
    **dict.fromkeys(("transformer_encoder_layer", "transformer_encoder"), _encoder),
    **dict.fromkeys(("dropout", "relu", "gelu", "silu", "tanh", "sigmoid", "softplus", "elu", "leaky_relu"), _same),
    "identity": _same,
    **dict.fromkeys(("softmax", "log_softmax"), _along),
    "affine": _affine,
    **dict.fromkeys(("add", "sub", "mul", "div"), _arithmetic),
    "matmul": _matmul,
    "cat": _cat,
    "flatten": _flatten,
    "reshape": _reshape,
    "permute": _permute,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    **dict.fromkeys(("mean", "sum"), _reduce),
    "select": _select,
}
if frozenset(_RULES) != frozenset(OPS):
    raise AssertionError("every operation has a rule for its shape")
