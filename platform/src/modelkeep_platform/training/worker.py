"""The training child: receives a declaration and rows, trains, returns weights. The only part of training with torch.

It asks before each segment of steps and waits until the segment is charged. When it is told to stop instead, it sends
what it takes to go on (`training.state`), and another worker begins there. It tells how far it is and no more: no loss,
no accuracy, no count of records leaves a job.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from modelkeep_platform.training.optimizers import Stepping
from modelkeep_platform.training.optimizers import optimizer as make_optimizer
from modelkeep_platform.training.state import STEPS, WEIGHTS, slots
from modelkeep_platform.workers.channel_sync import SyncChannel
from modelkeep_platform.workers.child import FAULT, READY, run
from modelkeep_platform.workers.frames import Frame
from modelkeep_platform.workers.limits import Limits

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from modelkeep_platform.datasets.spec import DatasetSpec
    from modelkeep_platform.models.graph.torch_build import GraphModule

_CHUNK: Final = 4 * 1024 * 1024
_MICROBATCH: Final = 256
_GRADIENTS_PART: Final = 4
"""Of the worker's memory, so much is for per-sample gradients when the job does not say how many rows at once."""


def train(channel: SyncChannel, limits: Limits) -> None:
    """Do one job."""
    import torch

    from modelkeep_platform.core.errors import ModelkeepError

    torch.set_num_threads(limits.threads)
    # Torch starts every process with one and the same seed; initial weights come from the operating system instead.
    # Noise and sampling have a generator of their own.
    torch.seed()
    channel.send(Frame(kind=READY))
    job = channel.receive()
    try:
        _Job(channel, job, memory_bytes=limits.memory_bytes).work()
    except _StoppedError:
        return
    except ModelkeepError as exc:
        # The code alone: the platform has words of its own for it.
        channel.send(Frame(kind=FAULT, fields={"code": exc.error_code}))
    except RuntimeError as exc:
        if "allocate memory" not in str(exc):
            raise
        channel.send(Frame(kind=FAULT, fields={"code": "out_of_memory"}))


class _StoppedError(Exception):
    """The job goes on in another worker."""


class _Job:
    def __init__(self, channel: SyncChannel, job: Frame, *, memory_bytes: int) -> None:
        import msgspec

        from modelkeep_platform.datasets.spec import parse as parse_dataset
        from modelkeep_platform.models.graph.format import parse as parse_graph
        from modelkeep_platform.privacy.plan import MechanismPlan
        from modelkeep_platform.training.spec import JobSpec

        self._channel = channel
        self._memory_bytes = memory_bytes
        self._spec: JobSpec = msgspec.convert(job.fields["spec"], JobSpec)
        plan = job.fields["plan"]
        self._plan = None if plan is None else MechanismPlan(**plan)
        self._dataset: DatasetSpec = parse_dataset(job.fields["dataset"])
        self._segment_steps = int(job.fields["segment_steps"])
        self._graph = parse_graph(bytes(job.buffers[0]))
        self._base = bool(job.fields["base"])
        self._begin = int(job.fields["begin"])

    def work(self) -> None:
        import torch

        from modelkeep_platform.core.errors import UnprocessableError
        from modelkeep_platform.models.graph.torch_build import build

        features, targets = self._records()
        module = build(self._graph)
        if self._base and not self._begin:
            module.load_named(self._tensors("weights"))
        if not self._base:
            # Bounds are public: features are scaled to [-1, 1]; the platform puts the same scaling before the model.
            features = _scaled(features, *self._dataset.scaling())
        module.train()
        ran = self._private(module, features, targets) if self._plan else self._public(module, features, targets)
        if not all(bool(torch.isfinite(weight).all()) for weight in module.named_weights().values()):
            raise UnprocessableError("the weights are not finite", code="diverged")
        self._channel.send(Frame(kind="done", fields=ran))
        self._send(module.named_weights(), 0)

    def _records(self) -> "tuple[torch.Tensor, torch.Tensor | None]":
        import torch

        from modelkeep_platform.datasets import readers

        features, targets = readers.read(self._dataset, self._incoming("rows"))
        return torch.from_numpy(features), None if targets is None else torch.from_numpy(targets)

    def _incoming(self, kind: str) -> Iterator[bytes]:
        while True:
            frame = self._channel.receive()
            if frame.kind != kind:
                raise RuntimeError("the platform sent what was not expected")
            if frame.fields["last"]:
                return
            yield bytes(frame.buffers[0])

    def _tensors(self, kind: str) -> "dict[str, torch.Tensor]":
        import safetensors.torch

        return safetensors.torch.load(b"".join(self._incoming(kind)))

    def _optimizer(self, module: "GraphModule") -> Stepping:
        """Return the job's optimizer; it and `module` stand where the job goes on."""
        optimizer = make_optimizer(self._spec.optimizer, module.trained().values())
        if self._begin:
            state = self._tensors("state")
            module.load_named({name: state[f"{WEIGHTS}/{name}"] for name in module.named_weights()})
            for at, name in enumerate(module.trained()):
                optimizer.keep(at, {kind: state[f"{kind}/{name}"] for kind in slots(self._spec.optimizer)})
        return optimizer

    def _state(self, module: "GraphModule", optimizer: Stepping) -> "dict[str, torch.Tensor]":
        import torch

        weights = module.named_weights()
        found = {f"{WEIGHTS}/{name}": weight for name, weight in weights.items()}
        places = {name: at for at, name in enumerate(module.trained())}
        for name, weight in weights.items():
            kept = optimizer.kept(places[name]) if name in places else {}
            for kind in slots(self._spec.optimizer):
                none = torch.zeros(1, dtype=torch.int64) if kind == STEPS else torch.zeros_like(weight)
                found[f"{kind}/{name}"] = kept.get(kind, none)
        return found

    def _private(
        self, module: "GraphModule", features: "torch.Tensor", targets: "torch.Tensor | None"
    ) -> dict[str, Any]:
        import dataclasses

        from modelkeep_platform.privacy.engine import PrivateGradient, rows_within
        from modelkeep_platform.privacy.mechanism import build_mechanism
        from modelkeep_platform.telemetry.system import SystemEntropy

        if self._plan is None:
            raise RuntimeError("a private job has a plan")
        optimizer = self._optimizer(module)
        mechanism = build_mechanism(self._plan, entropy=SystemEntropy(), records=len(features))
        gradient = PrivateGradient(module=module, loss_fn=self._loss(), plan=self._plan, noise=mechanism.noise)
        # By the model alone, which says nothing of the rows.
        fitting = rows_within(module, memory_bytes=self._memory_bytes // _GRADIENTS_PART)
        size = self._spec.microbatch or min(_MICROBATCH, fitting)
        for _ in self._steps(module, optimizer):
            indices = mechanism.sampler.sample()
            gradient.compute(self._microbatches(features, targets, indices, size))
            optimizer.step()
        return dataclasses.asdict(mechanism.ran())

    def _public(
        self, module: "GraphModule", features: "torch.Tensor", targets: "torch.Tensor | None"
    ) -> dict[str, Any]:
        import torch

        loss_fn, optimizer = self._loss(), self._optimizer(module)
        count = max(1, round(self._spec.sample_rate * len(features)))
        order = torch.randperm(len(features))
        at = 0
        for _ in self._steps(module, optimizer):
            if at + count > len(order):
                order, at = torch.randperm(len(features)), 0
            indices = order[at : at + count].numpy()
            at += count
            optimizer.zero_grad()
            for rows, wanted in self._microbatches(features, targets, indices, self._spec.microbatch or _MICROBATCH):
                loss = loss_fn(module(rows), wanted).sum() / count
                loss.backward()
            optimizer.step()
        return {}

    def _steps(self, module: "GraphModule", optimizer: Stepping) -> Iterator[int]:
        """Yield the number of each step that is to run, asking before each segment."""
        total, every, size = self._spec.steps, self._spec.checkpoint_every, self._segment_steps
        for begin in range(self._begin, total, size):
            end = min(begin + size, total)
            self._channel.send(Frame(kind="segment", fields={"number": begin // size, "steps": end - begin}))
            answer = self._channel.receive().kind
            if answer == "stop":
                self._send(self._state(module, optimizer), begin)
                raise _StoppedError
            if answer != "go":
                raise RuntimeError("the platform sent what was not expected")
            for step in range(begin, end):
                yield step
                if every is not None and (step + 1) % every == 0 and step + 1 < total:
                    self._send(self._state(module, optimizer), step + 1)

    def _microbatches(
        self, features: "torch.Tensor", targets: "torch.Tensor | None", indices: "npt.NDArray[np.int64]", size: int
    ) -> "Iterator[tuple[torch.Tensor, torch.Tensor]]":
        import torch

        for at in range(0, len(indices), size):
            chosen = torch.from_numpy(indices[at : at + size])
            rows = features[chosen]
            yield rows, rows if targets is None else targets[chosen]

    def _loss(self) -> Any:  # noqa: ANN401 -- a loss function
        from torch.nn import functional

        if self._spec.loss == "cross_entropy":
            return lambda scores, wanted: functional.cross_entropy(scores, wanted, reduction="none")

        def squared(given: "torch.Tensor", wanted: "torch.Tensor") -> "torch.Tensor":
            shaped = wanted.view(given.shape)
            return functional.mse_loss(given, shaped, reduction="none").flatten(1).mean(1)

        return squared

    def _send(self, tensors: "dict[str, torch.Tensor]", step: int) -> None:
        import safetensors.torch

        data = safetensors.torch.save(tensors)
        for at in range(0, len(data), _CHUNK):
            chunk = data[at : at + _CHUNK]
            self._channel.send(Frame(kind="blob", fields={"last": False, "step": step}, buffers=[chunk]))
        self._channel.send(Frame(kind="blob", fields={"last": True, "step": step}))


def _scaled(features: "torch.Tensor", scale: list[float], shift: list[float]) -> "torch.Tensor":
    import torch

    return features * torch.tensor(scale, dtype=features.dtype) + torch.tensor(shift, dtype=features.dtype)


if __name__ == "__main__":
    run(train)
