"""Proof by shape that a module treats the records of a batch separately. Worker only: imports torch.

Per-sample gradients mean something only when output row i depends on input row i alone. A graph without any
forbidden layer can still mix records: a mean over the batch, a transpose, a matrix product of the batch with itself.
The module is therefore run once on the meta device (shapes, no values: nothing private is read, and nothing depends
on values) with a batch of p records, p a prime that divides no other dimension, so that the batch can be followed:

- every tensor that carries the batch has it in dimension 0, as a multiple of p (a `[p, h]` seen as `[p·h]` is in
  order of records still), and p divides no other dimension;
- an operation that takes a batch gives one, so a reduction over the batch is seen;
- operations that keep the shape but could move values along dimension 0 are allowed on other dimensions only;
- every operation is on a list; what is not on it is refused.
"""

import math
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from modelkeep_platform.core.errors import UnprocessableError

_SIZES: Final = range(1009, 2003, 2)  # where primes are looked for; drawn at random, so that no graph can count on one

_Bound: TypeAlias = Mapping[str, Any]
"""An operation's arguments by the names of its schema."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Each value of the result comes from the values at the same place of (broadcast) operands; in-place forms too.
_ELEMENTWISE: Final = _names("""
    abs add addcdiv addcmul alias bernoulli bitwise_and bitwise_not bitwise_or ceil celu clamp clamp_max clamp_min
    clone copy cos detach div elu empty_like eq erf exp expm1 fill floor floor_divide fmod full_like ge gelu gt
    hardsigmoid hardswish hardtanh isfinite isinf isnan le leaky_relu lift_fresh log log1p log2
    log_sigmoid_forward logical_and logical_not logical_or lt masked_fill maximum minimum mish mul native_dropout ne
    neg ones_like pow reciprocal relu remainder round rsqrt rsub selu sigmoid sign silu sin softplus sqrt square sub
    tan tanh threshold _to_copy where zero zeros_like
""")
# Row-major, or by dimension: whether the batch stayed in front shows in the shape. `bmm` pairs equal places of it.
_RESHAPES: Final = _names("view _unsafe_view _reshape_alias unsqueeze squeeze expand permute transpose t bmm baddbmm")
# Look along trailing dimensions; a change of the batch's length shows in the shape.
_WINDOWS: Final = _names("""
    convolution max_pool2d_with_indices avg_pool1d avg_pool2d adaptive_avg_pool2d _adaptive_avg_pool2d
    adaptive_max_pool2d upsample_nearest1d upsample_nearest2d upsample_bilinear2d
""")
# Work along the dimensions they name, which must not be the batch's.
_ALONG: Final = _names("""
    sum mean amax amin max min var var_mean std prod argmax argmin norm linalg_vector_norm logsumexp any all _softmax
    _log_softmax cumsum cumprod flip roll sort topk select slice split split_with_sizes unbind cat stack gather
    index_select glu
""")
# May make a batch out of nothing: the same constant for every record.
_CREATE: Final = _names("expand zeros ones full new_zeros new_ones new_full zeros_like ones_like full_like")


def check_separate(
    module: nn.Module, positional: Sequence[torch.Tensor], named: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Refuse a module that mixes the records of its batch.

    Args:
        module: the model.
        positional: its inputs; only shapes and types are looked at.
        named: inputs by name.

    Raises:
        UnprocessableError: code ``batch_coupled``, naming the operation.
    """
    named = named or {}
    prime = _prime(module, [*positional, *named.values()])
    state = {
        name: torch.empty_like(tensor, device="meta")
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }

    def probe(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty((prime, *tensor.shape[1:]), dtype=tensor.dtype, device="meta")

    arguments = tuple(probe(tensor) for tensor in positional), {name: probe(tensor) for name, tensor in named.items()}
    try:
        with torch.no_grad(), torch.device("meta"), _Follow(prime):
            outputs = torch.func.functional_call(module, state, *arguments)
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as exc:
        raise _coupled("module", "its shapes cannot be followed through it") from exc
    for tensor in _tensors(outputs):
        if not _carries(tensor, prime) or tensor.shape[0] != prime:
            raise _coupled("output", "its first dimension is not the batch")


class _Follow(TorchDispatchMode):
    """Follows the batch through every operation that is really run."""

    def __init__(self, prime: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._prime = prime

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 -- a torch operation
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        name: str = func.overloadpacket.__name__
        batched = sum(self._is_batch(name, tensor) for tensor in _tensors((args, kwargs))) > 0
        if batched:
            reason = _objection(name, _bind(func, args, kwargs), self._prime)
            if reason is not None:
                raise _coupled(name, reason)
        result: object = func(*args, **kwargs)
        for tensor in _tensors(result):
            carries = self._is_batch(name, tensor)
            if batched and not carries:
                raise _coupled(name, "it reduces or moves the batch")
            if carries and not batched and name not in _CREATE:
                raise _coupled(name, "it makes values that differ between records")
        return result

    def _is_batch(self, name: str, tensor: torch.Tensor) -> bool:
        if any(size and size % self._prime == 0 for size in tensor.shape[1:]):
            raise _coupled(name, "it moves the batch out of the first dimension")
        return _carries(tensor, self._prime)


def _objection(name: str, bound: _Bound, prime: int) -> str | None:
    # Why this operation, on at least one tensor that carries the batch, might mix records; None when it cannot.
    plain = name.removesuffix("_")
    if plain in _ELEMENTWISE or name in _RESHAPES or name in _WINDOWS:
        return None
    if name in _ALONG:
        return _along(name, bound)
    known = _SPECIAL.get(name)
    if known is None:
        return "it is not known to treat records separately"
    allowed, reason = known
    return None if allowed(bound, prime) else reason


def _along(name: str, bound: _Bound) -> str | None:
    operands = list(_tensors(bound.get("tensors", bound.get("self"))))
    rank = max(tensor.dim() for tensor in operands) + (1 if name == "stack" else 0)
    named = bound.get("dim", bound.get("dims"))
    dims = named if isinstance(named, list | tuple) and named else [named]
    if any(not isinstance(dim, int) or dim % rank == 0 for dim in dims):
        return "it works along the batch"
    return None


def _unbatched(*operands: str) -> Callable[[_Bound, int], bool]:
    return lambda bound, prime: not any(_carries(bound[operand], prime) for operand in operands)


_SPECIAL: Final[Mapping[str, tuple[Callable[[_Bound, int], bool], str]]] = {
    # On the right of a product, the batch would be summed over.
    "mm": (_unbatched("mat2"), "it multiplies the batch with itself"),
    "addmm": (_unbatched("self", "mat2"), "it multiplies the batch with itself"),
    "mv": (_unbatched("vec"), "it multiplies the batch with itself"),
    "embedding": (_unbatched("weight"), "it looks records up in the batch"),
    # Two numbers a dimension, from the last: the batch is reached by the first dimension's pair only.
    "constant_pad_nd": (
        lambda bound, _prime: len(bound["pad"]) < 2 * bound["self"].dim(),
        "it pads the batch",
    ),
    "native_layer_norm": (
        lambda bound, _prime: len(bound["normalized_shape"]) < bound["input"].dim(),
        "it normalises over the batch",
    ),
    "native_group_norm": (
        lambda bound, _prime: bound["N"] == bound["input"].shape[0],
        "it normalises over the batch",
    ),
}


def _bind(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Bound:  # noqa: ANN401 -- a torch operation
    return {
        argument.name: args[place] if place < len(args) else kwargs.get(argument.name, argument.default_value)
        for place, argument in enumerate(func._schema.arguments)  # noqa: SLF001 -- torch's way to ask for it
    }


def _prime(module: nn.Module, inputs: Iterable[torch.Tensor]) -> int:
    sizes = {size for tensor in (*module.parameters(), *module.buffers()) for size in tensor.shape}
    sizes |= {size for tensor in inputs for size in tensor.shape[1:]}
    primes = [size for size in _SIZES if all(size % divisor for divisor in range(3, math.isqrt(size) + 1, 2))]
    return secrets.choice([prime for prime in primes if not any(size % prime == 0 for size in sizes if size)])


def _carries(tensor: object, prime: int) -> bool:
    return isinstance(tensor, torch.Tensor) and tensor.dim() > 0 and tensor.shape[0] % prime == 0 < tensor.shape[0]


def _tensors(found: object) -> Iterator[torch.Tensor]:
    if isinstance(found, torch.Tensor):
        yield found
    elif isinstance(found, Mapping):
        for part in found.values():
            yield from _tensors(part)
    elif isinstance(found, list | tuple):
        for part in found:
            yield from _tensors(part)


def _coupled(operation: str, reason: str) -> UnprocessableError:
    return UnprocessableError(
        f"operation `{operation[:40]}` cannot be trained privately: {reason}; "
        "keep the batch in the first dimension and each record to itself",
        code="batch_coupled",
        details={"operation": operation[:40]},
    )
