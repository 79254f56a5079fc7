"""The private step against a naive loop over records, and what it refuses."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import pytest

from fakes.core import FakeEntropy
from modelkeep_platform.core.errors import UnprocessableError
from modelkeep_platform.privacy.noise import GaussianNoise, Normals
from modelkeep_platform.privacy.plan import MechanismPlan

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402 -- after the skip
from torch.nn import functional as F  # noqa: E402, N812 -- torch's own name

from modelkeep_platform.privacy.engine import PrivateGradient, rows_within  # noqa: E402

pytestmark = pytest.mark.torch

PLAN = MechanismPlan(
    noise_multiplier=2.0, sample_rate=0.5, steps=9, clip_norm=0.3, n_public=20, delta=1e-5, epsilon=1.0
)


class NoNoise(GaussianNoise):
    """Counts steps and adds nothing, so that the clipped sum shows."""

    def step(self, count: int) -> Normals:
        self._ran += 1
        return np.zeros(count)


def no_noise(plan: MechanismPlan = PLAN) -> NoNoise:
    return NoNoise(entropy=FakeEntropy(), noise_multiplier=plan.noise_multiplier, clip_norm=plan.clip_norm)


def cross_entropy(outputs: Any, targets: Any) -> Any:
    return F.cross_entropy(outputs, targets, reduction="none")


class Attention(nn.Module):
    """Embedding, layer norm and products within a record; a linear layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6, padding_idx=0)
        self.norm = nn.LayerNorm(6)
        self.mix = nn.Linear(6, 6)
        self.out = nn.Linear(6, 4)

    def forward(self, tokens: Any) -> Any:
        x = self.norm(self.embed(tokens))
        left, right = self.mix(x), self.mix(torch.tanh(x))
        weights = torch.softmax(left @ right.transpose(1, 2), dim=-1)
        return self.out((weights @ x).mean(dim=1) + self.mix(x[:, 0]))


def images(*shape: int) -> Callable[[Any], Any]:
    return lambda generator: torch.randn(8, *shape, generator=generator)


MODELS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(inplace=True), nn.Linear(6, 4)), images(5)),
    "no bias": (lambda: nn.Sequential(nn.Linear(5, 6, bias=False), nn.Tanh(), nn.Linear(6, 4)), images(5)),
    "conv2d": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.GroupNorm(2, 4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 4, (2, 1), stride=2, dilation=(1, 2), groups=2, bias=False),
            nn.Flatten(),
            nn.Linear(8, 4),
        ),
        images(2, 6, 6),
    ),
    "conv2d same": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding="same"), nn.Flatten(), nn.Linear(48, 4)),
        images(2, 4, 4),
    ),
    "conv1d": (
        lambda: nn.Sequential(
            nn.Conv1d(3, 4, 3, padding=2, dilation=2, stride=2),
            nn.SiLU(),
            nn.Conv1d(4, 4, 3, groups=4, padding="same"),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(4, 4),
        ),
        images(3, 9),
    ),
    "attention": (Attention, lambda generator: torch.randint(0, 7, (8, 5), generator=generator)),
}


def naive(module: Any, inputs: Any, targets: Any, plan: MechanismPlan) -> list[Any]:
    """Clip each record's gradient by itself and add them up."""
    total = [torch.zeros_like(parameter) for parameter in module.parameters()]
    for place in range(len(targets)):
        module.zero_grad()
        cross_entropy(module(inputs[place : place + 1]), targets[place : place + 1]).sum().backward()
        found = [p.grad if p.grad is not None else torch.zeros_like(p) for p in module.parameters()]
        norm = torch.sqrt(sum(part.double().pow(2).sum() for part in found))
        if not torch.isfinite(norm):
            continue
        for part, into in zip(found, total, strict=True):
            into.add_(part * min(1.0, plan.clip_norm / max(float(norm), 1e-30)))
    module.zero_grad()
    return [part / plan.denominator for part in total]


@pytest.fixture
def generator() -> Any:
    return torch.Generator().manual_seed(1)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("micro", [8, 3])
@pytest.mark.parametrize("norm", [0.3, 1e3])
def test_gradients_equal_a_loop_over_records(name: str, micro: int, norm: float, generator: Any) -> None:
    make, data = MODELS[name]
    plan = MechanismPlan(
        noise_multiplier=2.0, sample_rate=0.5, steps=9, clip_norm=norm, n_public=20, delta=1e-5, epsilon=1.0
    )
    torch.manual_seed(0)
    module = make()
    inputs, targets = data(generator), torch.randint(0, 4, (8,), generator=generator)
    expected = naive(module, inputs, targets, plan)
    engine = PrivateGradient(module=module, loss_fn=cross_entropy, plan=plan, noise=no_noise(plan))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = engine.compute(
            (inputs[begin : begin + micro], targets[begin : begin + micro]) for begin in range(0, 8, micro)
        )
    assert report.ran_steps == 1
    for parameter, wanted in zip(module.parameters(), expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-4, atol=1e-6)
        assert parameter.requires_grad


def simple() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def gradient(engine: PrivateGradient, module: Any, batches: Iterator[Any] | list[Any]) -> Any:
    engine.compute(batches)
    return torch.cat([parameter.grad.flatten() for parameter in module.parameters()])


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e38])
def test_a_record_that_is_not_finite_contributes_nothing(poison: float) -> None:
    module = simple()
    engine = PrivateGradient(module=module, loss_fn=cross_entropy, plan=PLAN, noise=no_noise())
    inputs, targets = torch.randn(6, 3), torch.zeros(6, dtype=torch.int64)
    clean = gradient(engine, module, [(inputs, targets)])
    bad = torch.cat([inputs[:3], torch.full((1, 3), poison), inputs[3:]])
    found = gradient(engine, module, [(bad, torch.zeros(7, dtype=torch.int64))])
    assert torch.isfinite(found).all()
    # 1e38 is finite, saturates the tanh, and may contribute up to the clipping norm and no more.
    allowed = PLAN.clip_norm / PLAN.denominator if poison == 1e38 else 1e-7
    assert (found - clean).norm() <= allowed


def test_a_loss_that_is_not_finite_contributes_nothing() -> None:
    module = simple()

    def loss(outputs: Any, targets: Any) -> Any:
        return targets + outputs.sum(dim=1)

    engine = PrivateGradient(module=module, loss_fn=loss, plan=PLAN, noise=no_noise())
    inputs = torch.randn(4, 3)
    without = gradient(engine, module, [(inputs[:3], torch.zeros(3))])
    found = gradient(engine, module, [(inputs, torch.tensor([0.0, 0.0, 0.0, float("inf")]))])
    torch.testing.assert_close(found, without)


def test_one_record_changes_the_sum_by_at_most_the_clipping_norm() -> None:
    module = simple()
    engine = PrivateGradient(module=module, loss_fn=cross_entropy, plan=PLAN, noise=no_noise())
    inputs, targets = torch.randn(5, 3) * 100, torch.ones(5, dtype=torch.int64)
    for left_out in range(5):
        kept = [place for place in range(5) if place != left_out]
        change = gradient(engine, module, [(inputs, targets)]) - gradient(
            engine, module, [(inputs[kept], targets[kept])]
        )
        assert float(change.double().norm()) * PLAN.denominator <= PLAN.clip_norm


@pytest.mark.parametrize("batches", [[], [(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))]])
def test_an_empty_batch_is_a_noise_only_step_and_counts(batches: list[Any]) -> None:
    module = simple()
    entropy = FakeEntropy(5)
    noise = GaussianNoise(entropy=entropy, noise_multiplier=2.0, clip_norm=0.3)
    engine = PrivateGradient(module=module, loss_fn=cross_entropy, plan=PLAN, noise=noise)
    found = gradient(engine, module, batches)
    count = sum(parameter.numel() for parameter in module.parameters())
    expected = GaussianNoise(entropy=FakeEntropy(5), noise_multiplier=2.0, clip_norm=0.3).step(count)
    np.testing.assert_allclose(found.numpy(), expected / PLAN.denominator, rtol=1e-6)
    assert noise.ran_steps == 1
    assert engine.compute(batches).ran_steps == 2


def test_noise_is_added_once_a_step_whatever_the_micro_batches() -> None:
    inputs, targets = torch.randn(6, 3), torch.zeros(6, dtype=torch.int64)
    found = []
    for micro in (6, 2):
        module = simple()
        noise = GaussianNoise(entropy=FakeEntropy(5), noise_multiplier=2.0, clip_norm=0.3)
        engine = PrivateGradient(module=module, loss_fn=cross_entropy, plan=PLAN, noise=noise)
        batches = [(inputs[begin : begin + micro], targets[begin : begin + micro]) for begin in range(0, 6, micro)]
        found.append(gradient(engine, module, batches))
        assert noise.ran_steps == 1
    torch.testing.assert_close(found[0], found[1])


def test_a_layer_that_is_not_used_gets_noise_too() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: Any) -> Any:
            return self.used(x)

    module = Unused()
    noise = GaussianNoise(entropy=FakeEntropy(), noise_multiplier=2.0, clip_norm=0.3)
    engine = PrivateGradient(module=module, loss_fn=cross_entropy, plan=PLAN, noise=noise)
    engine.compute([(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64))])
    assert module.idle.weight.grad is not None
    assert bool((module.idle.weight.grad != 0).all())


def test_a_module_that_uses_none_of_its_layers_gets_noise_alone() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.idle = nn.Linear(3, 2)

        def forward(self, x: Any) -> Any:
            return x[:, :2]

    module = Idle()
    engine = PrivateGradient(module=module, loss_fn=cross_entropy, plan=PLAN, noise=no_noise())
    found = gradient(engine, module, [(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64))])
    assert not bool(found.any())


def test_a_layer_called_by_keyword_is_refused() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(3, 2)

        def forward(self, x: Any) -> Any:
            return self.out(input=x)

    engine = PrivateGradient(module=Odd(), loss_fn=cross_entropy, plan=PLAN, noise=no_noise())
    with pytest.raises(ValueError, match="one positional tensor"):
        engine.compute([(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64))])


def test_an_output_that_is_not_of_the_batch_is_refused() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(3, 2)

        def forward(self, x: Any) -> Any:
            return self.out(torch.ones(4, 3))

    engine = PrivateGradient(module=Constant(), loss_fn=cross_entropy, plan=PLAN, noise=no_noise())
    with pytest.raises(UnprocessableError) as raised:
        engine.compute([(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64))])
    assert (raised.value.error_code, raised.value.details["operation"]) == ("batch_coupled", "output")


def test_frozen_parameters_stay_as_they_are() -> None:
    module = simple()
    module[0].weight.requires_grad = False
    engine = PrivateGradient(module=module, loss_fn=cross_entropy, plan=PLAN, noise=no_noise())
    engine.compute([(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64))])
    assert module[0].weight.grad is None
    assert not module[0].weight.requires_grad
    assert module[0].bias.grad is not None


def test_several_inputs_in_order() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(3, 2), nn.Linear(2, 2)

        def forward(self, x: Any, y: Any) -> Any:
            return self.left(x) + self.right(y)

    module = Two()
    engine = PrivateGradient(module=module, loss_fn=cross_entropy, plan=PLAN, noise=no_noise())
    engine.compute([((torch.randn(4, 3), torch.randn(4, 2)), torch.zeros(4, dtype=torch.int64))])
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_inputs_by_name_and_modules_used_outside_of_a_step() -> None:
    module = simple()
    engine = PrivateGradient(module=module, loss_fn=cross_entropy, plan=PLAN, noise=no_noise())
    inputs, targets = torch.randn(4, 3), torch.zeros(4, dtype=torch.int64)
    positional = gradient(engine, module, [(inputs, targets)])
    by_name = gradient(engine, module, [({"input": inputs}, targets)])
    torch.testing.assert_close(positional, by_name)
    assert module(inputs).shape == (4, 2)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_torch_optimizers_take_the_gradients(optimizer: str) -> None:
    module = simple()
    engine = PrivateGradient(module=module, loss_fn=cross_entropy, plan=PLAN, noise=no_noise())
    before = [parameter.detach().clone() for parameter in module.parameters()]
    engine.compute([(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64))])
    getattr(torch.optim, optimizer)(module.parameters(), lr=0.1).step()
    assert all(not torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))


class Raw(nn.Module):
    """A parameter of its own, outside of any layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "BatchNorm1d": (lambda: nn.BatchNorm1d(3), "batch_norm1d"),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(3), "batch_norm2d"),
    "BatchNorm without parameters": (
        lambda: nn.BatchNorm1d(3, affine=False, track_running_stats=False),
        "batch_norm1d",
    ),
    "RNN": (lambda: nn.RNN(3, 3), "rnn"),
    "LSTM": (lambda: nn.LSTM(3, 3), "lstm"),
    "GRU": (lambda: nn.GRU(3, 3), "gru"),
    "MultiheadAttention": (lambda: nn.MultiheadAttention(4, 2), "multihead_attention"),
    "TransformerEncoderLayer": (lambda: nn.TransformerEncoderLayer(4, 2), "transformer_encoder_layer"),
    "PReLU": (nn.PReLU, "PReLU"),
    "raw parameter": (Raw, "Raw"),
    "circular padding": (lambda: nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), "Conv2d"),
    "max_norm": (lambda: nn.Embedding(3, 2, max_norm=1.0), "Embedding"),
    "scale_grad_by_freq": (lambda: nn.Embedding(3, 2, scale_grad_by_freq=True), "Embedding"),
    "LayerNorm without bias": (lambda: nn.LayerNorm(3, bias=False), "LayerNorm"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_layers_that_cannot_be_private_are_refused_by_name(name: str) -> None:
    make, operation = REFUSED[name]
    module = nn.Sequential(nn.Linear(3, 3), make())
    with pytest.raises(UnprocessableError) as raised:
        PrivateGradient(module=module, loss_fn=cross_entropy, plan=PLAN, noise=no_noise())
    assert raised.value.error_code == "layer_not_private"
    assert raised.value.details["node"] == "1"
    assert raised.value.details["operation"] == operation
    assert raised.value.details["alternative"]


def test_noise_of_another_plan_is_refused() -> None:
    noise = GaussianNoise(entropy=FakeEntropy(), noise_multiplier=1.0, clip_norm=0.3)
    with pytest.raises(ValueError, match="not made for this plan"):
        PrivateGradient(module=simple(), loss_fn=cross_entropy, plan=PLAN, noise=noise)


def test_a_reduced_loss_is_refused() -> None:
    engine = PrivateGradient(
        module=simple(),
        loss_fn=lambda outputs, targets: cast("Any", F.cross_entropy(outputs, targets)),
        plan=PLAN,
        noise=no_noise(),
    )
    with pytest.raises(ValueError, match="one number for each record"):
        engine.compute([(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64))])


def test_micro_batches_keep_within_memory() -> None:
    module = simple()  # 26 parameters of 4 bytes
    assert rows_within(module, memory_bytes=26 * 4 * 2 * 10) == 10
    assert rows_within(module, memory_bytes=1) == 1


class Sequence(nn.Module):
    """Wraps a function of the batch between two layers."""

    def __init__(self, function: Callable[[Any], Any], features: int = 4) -> None:
        super().__init__()
        self.first, self.last, self.function = nn.Linear(3, 4), nn.Linear(features, 2), function

    def forward(self, x: Any) -> Any:
        return self.last(self.function(self.first(x)))


COUPLED: dict[str, Callable[[Any], Any]] = {
    "mean over the batch": lambda x: x - x.mean(dim=0),
    "mean over everything": lambda x: x * x.mean(),
    "softmax over the batch": lambda x: torch.softmax(x, dim=0),
    "sum over the batch": lambda x: x + x.sum(dim=0, keepdim=True),
    "cumulative sum": lambda x: torch.cumsum(x, dim=0),
    "flip": lambda x: torch.flip(x, (0,)),
    "roll": lambda x: torch.roll(x, 1, 0),
    "roll of the flattened": lambda x: torch.roll(x, 1),
    "sort": lambda x: torch.sort(x, dim=0).values,
    "transpose": lambda x: x.t().reshape(x.shape),
    "batch times batch": lambda x: (x @ x.t()) @ x,
    "concatenation": lambda x: torch.cat([x, x.detach()], dim=0)[: len(x)],
    "padding that shifts": lambda x: F.pad(F.pad(x, (0, 0, 1, 0)), (0, 0, 0, -1)),
    "layer norm over the batch": lambda x: F.layer_norm(x.t(), (x.shape[0],)).t(),
    "batch norm": lambda x: F.batch_norm(x, None, None, training=True),
    "values by place": lambda x: x + torch.arange(x.shape[0])[:, None],
    "norm over the batch": lambda x: x / x.norm(dim=0),
    "attention over the batch": lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None])[0],
    "largest of all": lambda x: x / x.max(),
    "standard deviation": lambda x: x / x.std(dim=0),
    "a number drawn from the batch": lambda x: x * float(x.sum()),
    "a shape that depends on values": lambda x: x + len(torch.nonzero(torch.eye(2))),
    "gather from another record": lambda x: x.index_select(0, torch.zeros(x.shape[0], dtype=torch.int64)),
}


@pytest.mark.parametrize("name", COUPLED)
def test_operations_that_mix_records_are_refused(name: str) -> None:
    engine = PrivateGradient(module=Sequence(COUPLED[name]), loss_fn=cross_entropy, plan=PLAN, noise=no_noise())
    with pytest.raises(UnprocessableError) as raised:
        engine.compute([(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64))])
    assert raised.value.error_code == "batch_coupled"
    assert raised.value.details["operation"]


def test_a_layer_that_sees_several_rows_of_a_record_at_once_is_refused() -> None:
    def fold(x: Any) -> Any:
        return nn.functional.relu(x)

    class Folded(Sequence):
        def forward(self, x: Any) -> Any:
            return self.last(self.first(x.reshape(-1, 3)).reshape(x.shape[0], -1))

    engine = PrivateGradient(module=Folded(fold, 8), loss_fn=cross_entropy, plan=PLAN, noise=no_noise())
    with pytest.raises(UnprocessableError) as raised:
        engine.compute([(torch.randn(4, 6), torch.zeros(4, dtype=torch.int64))])
    assert raised.value.error_code == "batch_coupled"
    assert raised.value.details["node"] == "first"


def test_a_module_that_keeps_statistics_is_refused() -> None:
    class Statistics(Sequence):
        def __init__(self) -> None:
            super().__init__(self._keep)
            self.seen: Any
            self.register_buffer("seen", torch.zeros(4))

        def _keep(self, x: Any) -> Any:
            if x.device.type != "meta":
                self.seen.add_(x.detach().sum(dim=0))
            return x

    engine = PrivateGradient(module=Statistics(), loss_fn=cross_entropy, plan=PLAN, noise=no_noise())
    with pytest.raises(UnprocessableError) as raised:
        engine.compute([(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64))])
    assert raised.value.error_code == "batch_coupled"
    assert raised.value.details["operation"] == "buffer"


SEPARATE: dict[str, Callable[[Any], Any]] = {
    "reshape": lambda x: x.reshape(x.shape[0], 2, 2).flatten(1),
    "softmax": lambda x: torch.softmax(x, dim=-1),
    "mean of features": lambda x: x - x.mean(dim=1, keepdim=True),
    "dropout": lambda x: F.dropout(x, 0.5),
    "cat": lambda x: torch.cat([x[:, :2], torch.tanh(x[:, 2:])], dim=1),
    "stack": lambda x: torch.stack([x, x], dim=1).sum(dim=1),
    "constant": lambda x: x + torch.ones(x.shape[0], 4),
    "pad": lambda x: F.pad(x, (1, 1))[:, 1:-1],
    "split": lambda x: torch.cat(torch.chunk(x, 2, dim=1)[::-1], dim=1),
    "pairs within a record": lambda x: (x.unsqueeze(2) @ x.unsqueeze(1)).sum(dim=2),
    "gelu": F.gelu,
    "pooling": lambda x: F.avg_pool1d(x.unsqueeze(1), 3, 1, 1).squeeze(1),
}


@pytest.mark.parametrize("name", SEPARATE)
def test_operations_within_a_record_are_allowed(name: str) -> None:
    module = Sequence(SEPARATE[name])
    engine = PrivateGradient(module=module, loss_fn=cross_entropy, plan=PLAN, noise=no_noise())
    engine.compute([(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64))])
    assert module.first.weight.grad is not None
    assert float(module.first.weight.grad.norm()) > 0.0
