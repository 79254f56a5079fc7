"""The training child: receives a declaration and rows, trains, returns weights. The only part of training with torch.

It asks before each segment of steps and waits until the segment is charged. It tells how far it is and no more: no
loss, no accuracy, no count of records leaves a job.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from modelkeep_platform.training.optimizers import optimizer as make_optimizer
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
        _Job(channel, job).work()
    except ModelkeepError as exc:
        # The code alone: the platform has words of its own for it.
        channel.send(Frame(kind=FAULT, fields={"code": exc.error_code}))
    except RuntimeError as exc:
        if "allocate memory" not in str(exc):
            raise
        channel.send(Frame(kind=FAULT, fields={"code": "out_of_memory"}))


class _Job:
    def __init__(self, channel: SyncChannel, job: Frame) -> None:
        import msgspec

        from modelkeep_platform.datasets.spec import parse as parse_dataset
        from modelkeep_platform.models.graph.format import parse as parse_graph
        from modelkeep_platform.privacy.plan import MechanismPlan
        from modelkeep_platform.training.spec import JobSpec

        self._channel = channel
        self._spec: JobSpec = msgspec.convert(job.fields["spec"], JobSpec)
        plan = job.fields["plan"]
        self._plan = None if plan is None else MechanismPlan(**plan)
        self._dataset: DatasetSpec = parse_dataset(job.fields["dataset"])
        self._segment_steps = int(job.fields["segment_steps"])
        self._graph = parse_graph(bytes(job.buffers[0]))
        self._base = bool(job.fields["base"])

    def work(self) -> None:
        import torch

        from modelkeep_platform.core.errors import UnprocessableError
        from modelkeep_platform.models.graph.torch_build import build

        features, targets = self._records()
        module = build(self._graph)
        if self._base:
            self._load_base(module)
        else:
            # Bounds are public: features are scaled to [-1, 1]; the platform puts the same scaling before the model.
            features = _scaled(features, *self._dataset.scaling())
        module.train()
        ran = self._private(module, features, targets) if self._plan else self._public(module, features, targets)
        if not all(bool(torch.isfinite(weight).all()) for weight in module.named_weights().values()):
            raise UnprocessableError("the weights are not finite", code="diverged")
        self._channel.send(Frame(kind="done", fields=ran))
        self._send_weights(module, 0)

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

    def _load_base(self, module: "GraphModule") -> None:
        import safetensors.torch

        module.load_named(safetensors.torch.load(b"".join(self._incoming("weights"))))

    def _private(
        self, module: "GraphModule", features: "torch.Tensor", targets: "torch.Tensor | None"
    ) -> dict[str, Any]:
        import dataclasses

        from modelkeep_platform.privacy.engine import PrivateGradient
        from modelkeep_platform.privacy.mechanism import build_mechanism
        from modelkeep_platform.telemetry.system import SystemEntropy

        if self._plan is None:
            raise RuntimeError("a private job has a plan")
        mechanism = build_mechanism(self._plan, entropy=SystemEntropy(), records=len(features))
        gradient = PrivateGradient(module=module, loss_fn=self._loss(), plan=self._plan, noise=mechanism.noise)
        optimizer = make_optimizer(self._spec.optimizer, module.parameters())
        for step in self._steps(module):
            del step
            indices = mechanism.sampler.sample()
            gradient.compute(self._microbatches(features, targets, indices))
            optimizer.step()
        return dataclasses.asdict(mechanism.ran())

    def _public(
        self, module: "GraphModule", features: "torch.Tensor", targets: "torch.Tensor | None"
    ) -> dict[str, Any]:
        import torch

        loss_fn, optimizer = self._loss(), make_optimizer(self._spec.optimizer, module.parameters())
        count = max(1, round(self._spec.sample_rate * len(features)))
        order = torch.randperm(len(features))
        at = 0
        for step in self._steps(module):
            del step
            if at + count > len(order):
                order, at = torch.randperm(len(features)), 0
            indices = order[at : at + count].numpy()
            at += count
            optimizer.zero_grad()
            for rows, wanted in self._microbatches(features, targets, indices):
                loss = loss_fn(module(rows), wanted).sum() / count
                loss.backward()
            optimizer.step()
        return {}

    def _steps(self, module: "GraphModule") -> Iterator[int]:
        """Yield the number of each step, asking before each segment."""
        total, every = self._spec.steps, self._spec.checkpoint_every
        for number, begin in enumerate(range(0, total, self._segment_steps)):
            end = min(begin + self._segment_steps, total)
            self._channel.send(Frame(kind="segment", fields={"number": number, "steps": end - begin}))
            if self._channel.receive().kind != "go":
                raise RuntimeError("the platform stopped the job")
            for step in range(begin, end):
                yield step
                if every is not None and (step + 1) % every == 0 and step + 1 < total:
                    self._send_weights(module, step + 1)

    def _microbatches(
        self, features: "torch.Tensor", targets: "torch.Tensor | None", indices: "npt.NDArray[np.int64]"
    ) -> "Iterator[tuple[torch.Tensor, torch.Tensor]]":
        import torch

        size = self._spec.microbatch or _MICROBATCH
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

    def _send_weights(self, module: "GraphModule", step: int) -> None:
        import safetensors.torch

        data = safetensors.torch.save(module.named_weights())
        for at in range(0, len(data), _CHUNK):
            chunk = data[at : at + _CHUNK]
            self._channel.send(Frame(kind="blob", fields={"last": False, "step": step}, buffers=[chunk]))
        self._channel.send(Frame(kind="blob", fields={"last": True, "step": step}))


def _scaled(features: "torch.Tensor", scale: list[float], shift: list[float]) -> "torch.Tensor":
    import torch

    return features * torch.tensor(scale, dtype=features.dtype) + torch.tensor(shift, dtype=features.dtype)


if __name__ == "__main__":
    run(train)
