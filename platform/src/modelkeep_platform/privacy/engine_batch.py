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

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from modelkeep_platform.core.errors import UnprocessableError

_PRIMES: Final = (1009, 1013, 1019, 1021, 1031, 1033, 1039, 1049, 1051, 1061)

_ELEMENTWISE: Final = frozenset(
    """
    abs add addcdiv addcmul bernoulli_ bitwise_and bitwise_not bitwise_or ceil celu clamp clamp_max clamp_min clone
    copy_ cos detach div div_ elu eq erf exp expm1 fill_ floor floor_divide fmod ge gelu gt hardsigmoid hardswish
    hardtanh isfinite isinf isnan le leaky_relu leaky_relu_ lift_fresh log log1p log2 log_sigmoid_forward logical_and
    logical_not logical_or lt masked_fill maximum minimum mish mul mul_ native_dropout ne neg ones_like pow
    reciprocal relu relu_ remainder round rsqrt rsub scalar_tensor selu sigmoid sign silu sin softplus sqrt square
    sub tan tanh to_copy _to_copy where zero_ zeros_like full_like empty_like add_ sub_ tanh_ sigmoid_ threshold
    alias _conj
    """.split()
)
"""Each value of the result comes from the values at the same place (of broadcast operands)."""

_RESHAPES: Final = frozenset("view _unsafe_view _reshape_alias unsqueeze squeeze expand permute transpose t".split())
"""Row-major or by dimension; whether the batch stayed in front shows in the shape."""

_WINDOWS: Final = frozenset(
    """
    convolution max_pool2d_with_indices avg_pool1d avg_pool2d adaptive_avg_pool2d _adaptive_avg_pool2d
    adaptive_max_pool2d constant_pad_nd upsample_nearest1d upsample_nearest2d upsample_bilinear2d
    """.split()
)
"""Look along trailing dimensions; a change of the batch's length shows in the shape."""

_ALONG: Final = frozenset(
    """
    sum mean amax amin max min var std prod argmax argmin norm linalg_vector_norm logsumexp any all _softmax
    _log_softmax cumsum cumprod flip roll sort topk select slice split split_with_sizes unbind cat stack gather
    index_select glu var_mean
    """.split()
)
"""Work along the dimensions they name; these must not be the batch's."""

_CREATE: Final = frozenset("expand zeros ones full new_zeros new_ones new_full zeros_like ones_like full_like".split())
"""May make a batch out of nothing: the same constant for every record."""


def check_separate(module: nn.Module, inputs: torch.Tensor | Mapping[str, torch.Tensor]) -> None:
    """Refuse a module that mixes the records of its batch.

    Args:
        module: the model.
        inputs: any micro-batch; only shapes and types are looked at.

    Raises:
        UnprocessableError: code ``batch_coupled``, naming the operation.
    """
    tensors = list(inputs.values()) if isinstance(inputs, Mapping) else [inputs]
    prime = _prime(module, tensors)
    meta = copy.deepcopy(module).to("meta")
    for part in meta.modules():
        part._forward_hooks.clear()  # noqa: SLF001 -- the copy carries the engine's hooks, and torch has no call for it

    def probe(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty((prime, *tensor.shape[1:]), dtype=tensor.dtype, device="meta")

    with torch.no_grad():
        arguments: Any = {name: probe(tensor) for name, tensor in inputs.items()} if isinstance(inputs, Mapping) else {}
        positional = [] if isinstance(inputs, Mapping) else [probe(inputs)]
        with _Follow(prime):
            outputs = meta(*positional, **arguments)
    for tensor in _tensors(outputs):
        if not _carries(tensor, prime) or tensor.shape[0] != prime:
            raise _coupled("output", "its first dimension is not the batch")


class _Follow(TorchDispatchMode):
    """Follows the batch through every operation that is really run."""

    def __init__(self, prime: int) -> None:
        super().__init__()
        self._prime = prime

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401 -- torch's own types
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        batched = [t for t in _tensors((args, kwargs)) if self._is_batch(name, t)]
        if batched:
            self._check(name, args, kwargs)
        result = func(*args, **kwargs)
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

    def _check(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name in _ELEMENTWISE or name in _RESHAPES or name in _WINDOWS:
            return
        if name in _ALONG:
            self._check_along(name, args, kwargs)
        elif name in ("mm", "addmm", "mv"):
            # The batch is on the left: on the right it would be summed over.
            right = args[2] if name == "addmm" else args[1]
            if _carries(right, self._prime) or (name == "addmm" and _carries(args[0], self._prime)):
                raise _coupled(name, "it multiplies the batch with itself")
        elif name in ("bmm", "baddbmm"):
            return
        elif name == "embedding":
            if _carries(args[0], self._prime):
                raise _coupled(name, "it looks records up in the batch")
        elif name == "native_layer_norm":
            if len(args[1]) >= args[0].dim():
                raise _coupled(name, "it normalises over the batch")
        elif name == "native_group_norm":
            if args[3] != args[0].shape[0]:
                raise _coupled(name, "it normalises over the batch")
        else:
            raise _coupled(name, "it is not known to treat records separately")

    def _check_along(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = list(_tensors(args[0]))
        rank = max(tensor.dim() for tensor in tensors) + (1 if name == "stack" else 0)
        named = kwargs.get(
            "dim",
            kwargs.get("dims", args[_DIM_AT.get(name, 1)] if len(args) > _DIM_AT.get(name, 1) else _DEFAULT.get(name)),
        )
        dims = named if isinstance(named, Iterable) else [named]
        for dim in dims:
            if not isinstance(dim, int) or dim % rank == 0:
                raise _coupled(name, "it works along the batch")


_DIM_AT: Final = {"roll": 2, "norm": 2, "linalg_vector_norm": 2, "split": 2, "split_with_sizes": 2, "topk": 2}
_DEFAULT: Final = {"sort": -1, "topk": -1, "glu": -1, "select": 0, "slice": 0, "split": 0, "split_with_sizes": 0}


def _prime(module: nn.Module, inputs: Iterable[torch.Tensor]) -> int:
    sizes = {size for tensor in (*module.parameters(), *module.buffers()) for size in tensor.shape}
    sizes |= {size for tensor in inputs for size in tensor.shape[1:]}
    return next(prime for prime in _PRIMES if not any(size % prime == 0 for size in sizes if size))


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
