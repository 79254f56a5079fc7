"""SGD, with momentum, and Adam, as a job declares them: torch's own arithmetic, operation by operation.

Constructing a class of `torch.optim` imports torch's compiler, some four seconds of every job (docs/adr/0060). Only
what a declaration can say is here: no schedules, parameters on the processor. `training.state` names what is kept.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

from modelkeep_platform.training import spec
from modelkeep_platform.training.state import STEPS

if TYPE_CHECKING:
    import torch

_EPS = 1e-8
_BETAS = (0.9, 0.999)


class Stepping(Protocol):
    """Changes parameters by their gradients."""

    def step(self) -> None:
        """Make one step; a parameter without a gradient stays as it is."""

    def zero_grad(self) -> None:
        """Forget every gradient."""

    def kept(self, at: int) -> "dict[str, torch.Tensor]":
        """Return what is kept of the parameter at that place: slot to tensor; empty before its first step."""

    def keep(self, at: int, kept: "Mapping[str, torch.Tensor]") -> None:
        """Go on with what `kept` returned for that place."""


class _Parameters:
    def __init__(self, parameters: "Iterable[torch.nn.Parameter]", *, weight_decay: float) -> None:
        self._parameters = list(parameters)
        self._weight_decay = weight_decay

    def zero_grad(self) -> None:
        """Forget every gradient."""
        for parameter in self._parameters:
            parameter.grad = None

    def _gradient(self, parameter: "torch.nn.Parameter") -> "torch.Tensor | None":
        gradient = parameter.grad
        if gradient is None or self._weight_decay == 0.0:
            return gradient
        return gradient.add(parameter, alpha=self._weight_decay)


class Sgd(_Parameters):
    """Stochastic gradient descent (torch.optim.SGD without dampening and Nesterov's momentum).

    Args:
        parameters: what changes.
        learning_rate: of each step.
        momentum: how much of the last step stays; 0 for none.
        weight_decay: how much of a parameter is added to its gradient.
    """

    def __init__(
        self,
        parameters: "Iterable[torch.nn.Parameter]",
        *,
        learning_rate: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, weight_decay=weight_decay)
        self._learning_rate, self._momentum = learning_rate, momentum
        self._buffers: dict[int, torch.Tensor] = {}

    def step(self) -> None:
        """Make one step; a parameter without a gradient stays as it is."""
        import torch

        with torch.no_grad():
            for at, parameter in enumerate(self._parameters):
                gradient = self._gradient(parameter)
                if gradient is None:
                    continue
                if self._momentum != 0.0:
                    buffer = self._buffers.get(at)
                    if buffer is None:
                        buffer = self._buffers[at] = gradient.detach().clone()
                    else:
                        buffer.mul_(self._momentum).add_(gradient)
                    gradient = buffer
                parameter.add_(gradient, alpha=-self._learning_rate)

    def kept(self, at: int) -> "dict[str, torch.Tensor]":
        """Return the momentum of a parameter."""
        buffer = self._buffers.get(at)
        return {} if buffer is None else {"momentum": buffer}

    def keep(self, at: int, kept: "Mapping[str, torch.Tensor]") -> None:
        """Go on with a momentum."""
        if self._momentum != 0.0:
            self._buffers[at] = kept["momentum"].clone()


class Adam(_Parameters):
    """Adam (Kingma and Ba 2015, algorithm 1; torch.optim.Adam without AMSGrad).

    Args:
        parameters: what changes.
        learning_rate: of each step.
        betas: how much of both running averages stays.
        eps: added to the denominator.
        weight_decay: how much of a parameter is added to its gradient.
    """

    def __init__(
        self,
        parameters: "Iterable[torch.nn.Parameter]",
        *,
        learning_rate: float,
        betas: tuple[float, float] = _BETAS,
        eps: float = _EPS,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, weight_decay=weight_decay)
        self._learning_rate, self._betas, self._eps = learning_rate, betas, eps
        self._moments: dict[int, tuple[torch.Tensor, torch.Tensor, int]] = {}

    def step(self) -> None:
        """Make one step; a parameter without a gradient stays as it is."""
        import torch

        first_beta, second_beta = self._betas
        with torch.no_grad():
            for at, parameter in enumerate(self._parameters):
                gradient = self._gradient(parameter)
                if gradient is None:
                    continue
                # Each parameter counts its own steps, as torch does: one without a gradient was not stepped.
                first, second, steps = self._moments.get(at) or (
                    torch.zeros_like(parameter),
                    torch.zeros_like(parameter),
                    0,
                )
                steps += 1
                first.lerp_(gradient, 1 - first_beta)
                second.mul_(second_beta).addcmul_(gradient, gradient, value=1 - second_beta)
                self._moments[at] = (first, second, steps)
                size = self._learning_rate / (1 - first_beta**steps)
                denominator = (second.sqrt() / (1 - second_beta**steps) ** 0.5).add_(self._eps)
                parameter.addcdiv_(first, denominator, value=-size)

    def kept(self, at: int) -> "dict[str, torch.Tensor]":
        """Return both moments of a parameter, and how many steps they are of."""
        import torch

        found = self._moments.get(at)
        return {} if found is None else {"first": found[0], "second": found[1], STEPS: torch.tensor([found[2]])}

    def keep(self, at: int, kept: "Mapping[str, torch.Tensor]") -> None:
        """Go on with moments; those of no step are where Adam begins."""
        self._moments[at] = (kept["first"].clone(), kept["second"].clone(), int(kept[STEPS]))


def optimizer(chosen: spec.Optimizer, parameters: "Iterable[torch.nn.Parameter]") -> Stepping:
    """Return the optimizer that a job declares."""
    decay = chosen.weight_decay or 0.0
    if chosen.name == "adam":
        first, second = chosen.betas or _BETAS
        return Adam(
            parameters,
            learning_rate=chosen.learning_rate,
            betas=(first, second),
            eps=chosen.eps or _EPS,
            weight_decay=decay,
        )
    return Sgd(parameters, learning_rate=chosen.learning_rate, momentum=chosen.momentum or 0.0, weight_decay=decay)
