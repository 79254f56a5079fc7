"""Per-sample gradients of one micro-batch, as norms and clipped sums. Worker only: imports torch.

A linear layer that is used once, on one row a record, has the per-sample gradient g aᵀ: its norm is ‖g‖·‖a‖ and the
clipped sum is one product, so the gradients themselves are never made. Every other layer's are made by its rule.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from modelkeep_platform.core.errors import UnprocessableError

Rule: TypeAlias = Callable[[Any, list[torch.Tensor], torch.Tensor], Mapping[nn.Parameter, torch.Tensor]]
"""(layer, inputs, gradients of its output) -> per-sample gradient of each of its parameters."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Use:
    """One call of a layer: what went in, and the loss's gradient of what came out."""

    name: str
    layer: nn.Module
    rule: Rule
    inputs: torch.Tensor
    gradients: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Instantiated:
    """Per-sample gradients, one row a record: shape [B, number of values]."""

    parameter: torch.Tensor
    samples: torch.Tensor

    def norms(self) -> torch.Tensor:
        """Return each record's norm."""
        norms: torch.Tensor = torch.linalg.vector_norm(self.samples, dim=1)
        return norms

    def total(self, factors: torch.Tensor, bad: torch.Tensor | None) -> torch.Tensor:
        """Return the sum of records times `factors`, those in `bad` left out, in the parameter's shape."""
        return torch.mv(_without(self.samples, bad).t(), factors.to(self.samples.dtype)).view_as(self.parameter)


@dataclass(frozen=True, slots=True, eq=False)
class Outer:
    """Per-sample gradients g aᵀ of a linear layer's weight, kept as their two factors."""

    parameter: torch.Tensor
    inputs: torch.Tensor
    gradients: torch.Tensor

    def norms(self) -> torch.Tensor:
        """Return each record's norm, ‖g‖·‖a‖."""
        return torch.mul(torch.linalg.vector_norm(self.gradients, dim=1), torch.linalg.vector_norm(self.inputs, dim=1))

    def total(self, factors: torch.Tensor, bad: torch.Tensor | None) -> torch.Tensor:
        """Return the sum of records times `factors`, those in `bad` left out, in the parameter's shape."""
        weighted = _without(self.gradients, bad) * factors.to(self.gradients.dtype)[:, None]
        return torch.mm(weighted.t(), _without(self.inputs, bad))


Contribution: TypeAlias = Instantiated | Outer
"""What the records of a micro-batch add to one parameter's gradient."""


def contributions(uses: Iterable[Use], trained: Sequence[nn.Parameter], records: int) -> list[Contribution]:
    """Turn the uses of layers in one micro-batch into contributions, one for each parameter that was used.

    Args:
        uses: every call of a layer, with its gradient.
        trained: the parameters to train.
        records: B.

    Raises:
        UnprocessableError: code ``batch_coupled``: a layer got other than one first-dimension row for each record.
    """
    uses = list(uses)
    wanted: set[torch.Tensor] = set(trained)
    times = Counter(parameter for use in uses for parameter in use.layer.parameters(recurse=False))
    found: list[Contribution] = []
    summed: dict[nn.Parameter, torch.Tensor] = {}
    for use in uses:
        if use.inputs.shape[0] != records:
            raise _folded(use.name)
        once = all(times[parameter] == 1 for parameter in use.layer.parameters(recurse=False))
        if once and isinstance(use.layer, nn.Linear) and use.inputs.dim() == 2:  # noqa: PLR2004 -- [B, features]
            found += _linear(use.layer, use, wanted)
            continue
        for parameter, samples in use.rule(use.layer, [use.inputs], use.gradients).items():
            if samples.shape != (records, *parameter.shape):
                raise _folded(use.name)
            earlier = summed.get(parameter)
            summed[parameter] = samples if earlier is None else earlier + samples
    return found + [
        Instantiated(parameter, samples.flatten(1)) for parameter, samples in summed.items() if parameter in wanted
    ]


def _linear(layer: nn.Linear, use: Use, wanted: set[torch.Tensor]) -> list[Contribution]:
    found: list[Contribution] = []
    if layer.weight in wanted:
        found.append(Outer(layer.weight, use.inputs.to(use.gradients.dtype), use.gradients))
    if layer.bias in wanted:
        found.append(Instantiated(layer.bias, use.gradients))
    return found


def _without(values: torch.Tensor, bad: torch.Tensor | None) -> torch.Tensor:
    # A factor of zero is not enough: zero times infinity is not a number.
    return values if bad is None else torch.where(bad[:, None], 0.0, values)


def _folded(name: str) -> UnprocessableError:
    return UnprocessableError(
        f"layer `{name[:80]}` does not get one row for each record; keep the batch in the first dimension of its input",
        code="batch_coupled",
        details={"node": name[:80]},
    )
