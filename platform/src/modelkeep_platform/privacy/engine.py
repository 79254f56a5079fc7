"""The private training step: per-sample gradients, clipped, summed, noised once. Worker only: imports torch.

For each micro-batch one forward and one backward pass keep each layer's inputs and output gradients. They give every
record's gradient norm (`engine_sums`; the rules are Opacus'), each record's whole gradient is scaled to norm at most
C, and the sums add up over micro-batches. Then N(0, σ²C²) is added once and the result divided by the public
q · N_public.

What it guarantees
- One record changes the sum by at most C: a record whose loss or gradient is not finite contributes zero.
- An empty batch is a noise-only step, and counts. Micro-batches change memory, never the result's distribution.
- Nothing about the realised batch leaves: the report says how many steps ran and no more.

Hooks sit on the outputs of layers rather than on modules (as in Opacus' GradSampleModule): a layer used twice keeps
each input with its own gradient, no gradients of weights are computed only to be thrown away, and nothing warns.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeAlias

import torch
from torch import nn

from modelkeep_platform.core.errors import UnprocessableError
from modelkeep_platform.privacy.engine_batch import check_separate
from modelkeep_platform.privacy.engine_layers import private_layers, rules
from modelkeep_platform.privacy.engine_sums import Rule, Use, contributions
from modelkeep_platform.privacy.noise import GaussianNoise
from modelkeep_platform.privacy.plan import MechanismPlan

Inputs: TypeAlias = torch.Tensor | tuple[torch.Tensor, ...] | Mapping[str, torch.Tensor]
"""One tensor, several in the order of the module's arguments, or by their names; dimension 0 is the batch."""
Loss: TypeAlias = Callable[[Any, torch.Tensor], torch.Tensor]
"""(what the module returned, targets) -> one loss for each record, shape [B]."""

_ROUNDING: Final = 1.0 - 2.0**-16  # float32 norms of large layers may be short by some 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What a step may tell: how many noisy steps have run so far. Batch sizes and losses are private."""

    ran_steps: int


class PrivateGradient:
    """Computes the noisy gradient of each step and puts it on the parameters' `.grad`.

    Args:
        module: the model; only layers of `engine_layers.LAYERS` may have parameters.
        loss_fn: gives one loss for each record; no reduction.
        plan: what is charged.
        noise: drawn once a step; its σ and C must be the plan's.

    Raises:
        UnprocessableError: code ``layer_not_private``, naming the layer and the alternative.
        ValueError: `noise` is not the plan's.
    """

    def __init__(self, *, module: nn.Module, loss_fn: Loss, plan: MechanismPlan, noise: GaussianNoise) -> None:
        if (noise.noise_multiplier, noise.clip_norm) != (plan.noise_multiplier, plan.clip_norm):
            message = "the noise was not made for this plan"
            raise ValueError(message)
        self._module = module
        self._loss = loss_fn
        self._plan = plan
        self._noise = noise
        layers = list(private_layers(module))
        known = rules() if layers else {}
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._uses: list[Use] = []
        self._records = 0
        self._checked: set[tuple[Any, ...]] = set()
        self._buffers = _versions(module)
        for name, layer in layers:
            layer.register_forward_hook(partial(self._keep, name, known[type(layer)]))

    def compute(self, batches: Iterable[tuple[Inputs, torch.Tensor]]) -> StepReport:
        """Run one step over the micro-batches of one Poisson sample and set `.grad`.

        Args:
            batches: pairs of inputs and targets, first dimension B of any size; none at all for an empty sample.

        Returns:
            How many steps ran.

        Raises:
            UnprocessableError: code ``batch_coupled``: an operation of the model mixes records.
        """
        sums = [torch.zeros_like(parameter, requires_grad=False) for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.requires_grad = False
        try:
            for inputs, targets in batches:
                if len(targets):
                    self._add(inputs, targets, sums)
        finally:
            self._uses.clear()
            self._records = 0
            for parameter in self._parameters:
                parameter.requires_grad = True
        self._set_gradients(sums)
        return StepReport(ran_steps=self._noise.ran_steps)

    def _add(self, inputs: Inputs, targets: torch.Tensor, sums: list[torch.Tensor]) -> None:
        self._check_separate(inputs)
        self._uses.clear()
        self._records = len(targets)
        with torch.enable_grad():
            positional, named = arguments(inputs)
            outputs = self._module(*positional, **named)
            losses = self._loss(outputs, targets)
            if losses.shape != (self._records,):
                message = "the loss must give one number for each record"
                raise ValueError(message)
            self._check_buffers()
            if losses.requires_grad:
                losses.sum().backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            self._accumulate(losses.detach(), sums)

    def _accumulate(self, losses: torch.Tensor, sums: list[torch.Tensor]) -> None:
        for parameter in self._parameters:
            parameter.requires_grad = True  # the rules leave out what is not trained
        found = contributions(self._uses, self._parameters, self._records)
        for parameter in self._parameters:
            parameter.requires_grad = False
        if not found:
            return
        norms = torch.linalg.vector_norm(torch.stack([part.norms() for part in found]).double(), dim=0)
        # INVARIANT: what is not finite contributes zero; a norm that overflows is not finite.
        bad = ~(torch.isfinite(norms) & torch.isfinite(losses))
        factors = (self._plan.clip_norm * _ROUNDING / norms).clamp(max=1.0)
        factors[bad] = 0.0
        left_out = bad if bool(bad.any()) else None
        into: dict[torch.Tensor, torch.Tensor] = dict(zip(self._parameters, sums, strict=True))
        for part in found:
            into[part.parameter].add_(part.total(factors, left_out))

    def _set_gradients(self, sums: list[torch.Tensor]) -> None:
        count = sum(total.numel() for total in sums)
        noise = torch.from_numpy(self._noise.step(count))
        begin = 0
        for parameter, total in zip(self._parameters, sums, strict=True):
            end = begin + total.numel()
            noisy = noise[begin:end].view(total.shape).to(total.device)
            noisy += total
            noisy /= self._plan.denominator
            parameter.grad = noisy.to(total.dtype)
            begin = end

    def _keep(self, name: str, rule: Rule, layer: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> Any:  # noqa: ANN401 -- a torch hook
        if not self._records:
            return None  # not within a step: the module is used for something else
        if len(inputs) != 1:
            message = "layers of a private module are called with one positional tensor"
            raise ValueError(message)
        if not output.requires_grad:
            # Its inputs and (frozen) parameters need no gradient; its output must.
            output = output + torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True)
        output.register_hook(  # type: ignore[no-untyped-call]
            partial(self._collect, name, rule, layer, inputs[0].detach())
        )
        return output

    def _collect(self, name: str, rule: Rule, layer: nn.Module, inputs: torch.Tensor, gradients: torch.Tensor) -> None:
        self._uses.append(Use(name=name, layer=layer, rule=rule, inputs=inputs, gradients=gradients.detach()))

    def _check_separate(self, inputs: Inputs) -> None:
        positional, named = arguments(inputs)
        tensors = (*positional, *named.values())
        shape = (tuple(named), *((tensor.dtype, tuple(tensor.shape[1:])) for tensor in tensors))
        if shape not in self._checked:
            check_separate(self._module, positional, named)
            self._checked.add(shape)

    def _check_buffers(self) -> None:
        # Statistics kept in a buffer would carry records past the noise.
        if _versions(self._module) != self._buffers:
            message = "the model keeps statistics of its inputs, which cannot be trained privately"
            raise UnprocessableError(message, code="batch_coupled", details={"operation": "buffer"})


def arguments(inputs: Inputs) -> tuple[tuple[torch.Tensor, ...], Mapping[str, torch.Tensor]]:
    """Return inputs as positional and named arguments of the module."""
    if isinstance(inputs, Mapping):
        return (), inputs
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def _versions(module: nn.Module) -> list[tuple[str, int, int]]:
    return [(name, id(buffer), buffer._version) for name, buffer in module.named_buffers()]  # noqa: SLF001 -- torch's


def rows_within(module: nn.Module, *, memory_bytes: int) -> int:
    """Return how many records a micro-batch may hold so that per-sample gradients stay within `memory_bytes`.

    Twice the gradients are counted: the rules make each layer's in one piece before it is kept. Activations are not
    counted. At least 1.
    """
    row = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
    return max(1, memory_bytes // max(1, 2 * row))
