"""Tracing: what a module becomes, equal to the module and to what the platform builds; how refusals say what to do."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional

from modelkeep.errors import TraceError
from modelkeep.torch import GraphModule, Traced, load, trace
from modelkeep_platform.models.graph.format import parse
from modelkeep_platform.models.graph.ops import OPS
from modelkeep_platform.models.graph.torch_build import build

pytestmark = pytest.mark.torch


def tokens() -> torch.Tensor:
    return torch.randint(1, 50, (3, 6), generator=torch.Generator().manual_seed(1))


def rows(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


class Recurrent(nn.Module):
    def __init__(self, kind: Any, *, layers: int = 1, both: bool = False, last: str = "state") -> None:
        super().__init__()
        self.words = nn.Embedding(50, 8, padding_idx=0)
        self.layer = kind(8, 12, num_layers=layers, batch_first=True, bidirectional=both)
        self.out = nn.Linear(24 if both else 12, 3)
        self.last = last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps, state = self.layer(self.words(x))
        if self.last == "steps":
            return functional.softmax(self.out(steps[:, -1]), dim=-1)
        hidden = state[0] if isinstance(self.layer, nn.LSTM) else state
        return functional.softmax(self.out(hidden[-1]), dim=-1)


class Attention(nn.Module):
    def __init__(self, *, causal: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True, activation="gelu", norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.register_buffer("mask", torch.triu(torch.ones(6, 6, dtype=torch.bool), 1) if causal else None)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.encoder(self.words(x) * 4.0, mask=self.mask)
        attended, _ = self.attention(y, y, y, attn_mask=self.mask)
        return {"steps": self.norm(y + attended), "pooled": (1 - y).mean(dim=1)}


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1, stride=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.group = nn.GroupNorm(2, 8)
        self.drop = nn.Dropout(0.3)
        self.out = nn.Linear(8 * 4 * 4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.norm(self.first(x)))
        x = functional.max_pool2d(self.group(x), 2)
        x = functional.avg_pool2d(x, 1)
        y: torch.Tensor = self.out(self.drop(x.view(x.size(0), -1)))
        return y.log_softmax(-1)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        both = torch.cat([self.left(x), self.right(y)], 1)
        return both, (x[:, 0] * y[:, 1] - 2.0 / (1.0 + x[:, 2] ** 2)).unsqueeze(1)


class Lines(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 6, 3, padding=1, dilation=1, groups=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.gelu(self.conv(x), approximate="tanh")
        y = functional.max_pool1d(y, 2).permute(0, 2, 1)
        z = torch.matmul(y, y.transpose(1, 2))
        return torch.sigmoid(functional.elu(z)).sum(dim=(1, 2), keepdim=True).squeeze(2)


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[torch.Tensor, ...]]] = {
    "a layer by itself": (lambda: nn.Linear(4, 2), (rows(3, 4),)),
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2), nn.Softmax(dim=-1)), (rows(3, 4),)),
    "lstm": (lambda: Recurrent(nn.LSTM), (tokens(),)),
    "lstm of two layers": (lambda: Recurrent(nn.LSTM, layers=2), (tokens(),)),
    "gru": (lambda: Recurrent(nn.GRU), (tokens(),)),
    "rnn": (lambda: Recurrent(nn.RNN), (tokens(),)),
    "both directions": (lambda: Recurrent(nn.LSTM, both=True, last="steps"), (tokens(),)),
    "transformer": (lambda: Attention(causal=False), (tokens(),)),
    "causal transformer": (lambda: Attention(causal=True), (tokens(),)),
    "images": (Images, (rows(2, 1, 8, 8),)),
    "two inputs": (TwoInputs, (rows(2, 3), rows(2, 3))),
    "lines": (Lines, (rows(2, 2, 8),)),
}


def flat(result: Any) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    return list(result.values()) if isinstance(result, dict) else list(result)


def served(traced: Traced) -> nn.Module:
    """Build it as the platform's worker does."""
    module = build(parse(json.dumps(traced.graph).encode()))
    module.load_named(safetensors.torch.load(traced.weights))
    return module.eval()


@pytest.mark.parametrize("name", MODULES)
def test_what_is_traced_computes_what_the_module_does(name: str) -> None:
    make, example = MODULES[name]
    torch.manual_seed(0)
    module = make()
    module.train()
    traced = trace(module, *example)
    assert module.training, "tracing leaves the module as it was"
    module.eval()
    wanted = flat(module(*example))
    for other in (load(traced), served(traced)):
        for one, two in zip(wanted, flat(other(*example)), strict=True):
            assert torch.allclose(one, two, atol=1e-6)
    again = [tensor.repeat(2, *[1] * (tensor.dim() - 1)) for tensor in example]
    for one, two in zip(flat(module(*again)), flat(served(traced)(*again)), strict=True):
        assert torch.allclose(one, two, atol=1e-5)


@pytest.mark.parametrize("name", MODULES)
def test_shapes_say_what_varies(name: str) -> None:
    make, example = MODULES[name]
    traced = trace(make(), *example)
    for tensor, given in zip(traced.graph["inputs"], example, strict=True):
        assert tensor["shape"] == [-1, *given.shape[1:]]
    assert all(output["shape"][0] == -1 for output in traced.graph["outputs"])
    fixed = trace(make(), *example, varying=())
    assert fixed.graph["inputs"][0]["shape"] == list(example[0].shape)


def test_a_sequence_may_vary_too() -> None:
    traced = trace(Recurrent(nn.GRU), tokens(), varying=(0, 1))
    assert traced.graph["inputs"][0]["shape"] == [-1, -1]
    longer = torch.randint(1, 50, (2, 11))
    assert load(traced)(longer).shape == (2, 3)


def test_names_of_outputs_and_inputs_are_those_of_forward() -> None:
    graph = trace(Attention(causal=True), tokens()).graph
    assert [output["name"] for output in graph["outputs"]] == ["steps", "pooled"]
    assert [tensor["name"] for tensor in graph["inputs"]] == ["x"]
    assert [node["attrs"]["causal"] for node in graph["nodes"] if "causal" in node["attrs"]] == [True, True]


def test_the_sdk_builds_every_operation_that_the_platform_knows() -> None:
    from modelkeep.torch import _build

    assert set(_build._LAYERS) | set(_build._FUNCTIONS) == set(OPS)


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(3, 3)
        self.own = nn.Parameter(torch.zeros(3))
        self.prelu = nn.PReLU()


class Condition(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = x if x.sum() > 0 else self.line(x)
        return y


class Shared(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.line(self.line(x))
        return y


class OwnParameter(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.line(x)
        return y + self.own


class Einsum(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("ij,ij->i", x, self.line(x))


class Unknown(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.prelu(x)
        return y


class FixedBatch(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.line(x).view(2, 3)
        return y


class Slice(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 0:2]


class Random(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.line(x) * torch.rand(3)
        return y


class BySize(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.line(x) / x.size(0)
        return y


class NoTensor(Base):
    def forward(self, x: torch.Tensor) -> int:
        return x.dim()


class OtherMask(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(3, 1, batch_first=True)
        self.register_buffer("mask", torch.eye(2, dtype=torch.bool))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.attention(x, x, x, attn_mask=self.mask)[0]
        return y


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (Condition, ["test_trace.py:", "control flow", "layers and arithmetic"]),
        (Shared, ["`line` (Linear)", "test_trace.py:", "copy_shared=True"]),
        (OwnParameter, ["`add`", "test_trace.py:", "only numbers and layers are taken"]),
        (Einsum, ["`einsum`", "`matmul`"]),
        (Unknown, ["`prelu` (PReLU)", "use LeakyReLU"]),
        (FixedBatch, ["dimension 0", "`varying`"]),
        (Slice, ["`getitem`", "`x[:, 0]`"]),
        (Random, ["`mul`", "only numbers and layers"]),
        (BySize, ["`truediv`", "only numbers and layers"]),
        (NoTensor, ["no tensor"]),
    ],
)
def test_refusals_name_layer_or_line_and_what_to_do(module: type[nn.Module], says: list[str]) -> None:
    with pytest.raises(TraceError) as caught:
        trace(module(), torch.zeros(2, 3))
    for part in says:
        assert part in str(caught.value), str(caught.value)


def test_a_mask_that_is_not_causal_is_refused() -> None:
    with pytest.raises(TraceError, match="another than the causal one"):
        trace(OtherMask(), torch.zeros(2, 2, 3))


def test_a_shared_layer_becomes_two_on_demand() -> None:
    module = Shared().eval()
    traced = trace(module, torch.zeros(2, 3), copy_shared=True)
    x = rows(4, 3)
    assert torch.allclose(load(traced)(x), module(x), atol=1e-6)
    assert len(safetensors.torch.load(traced.weights)) == 4


def test_weights_are_float32() -> None:
    with pytest.raises(TraceError, match=r"module\.float\(\)"):
        trace(nn.Linear(3, 3).double(), torch.zeros(2, 3, dtype=torch.float64))


@pytest.mark.parametrize(
    "example", [(), ("text",), (torch.zeros(2, 3, dtype=torch.complex64),)], ids=["none", "no tensor", "complex"]
)
def test_an_example_is_tensors_of_known_dtypes(example: tuple[Any, ...]) -> None:
    with pytest.raises(TraceError):
        trace(nn.Linear(3, 3), *example)


def hostile(change: Callable[[dict[str, Any]], object]) -> tuple[dict[str, Any], bytes]:
    traced = trace(nn.Sequential(nn.Linear(3, 2)), torch.zeros(1, 3))
    graph: dict[str, Any] = json.loads(json.dumps(traced.graph))
    change(graph)
    return graph, traced.weights


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda graph: graph.update(format="modelkeep.graph/2"), id="another format"),
        pytest.param(lambda graph: graph["nodes"][0].update(op="eval"), id="unknown operation"),
        pytest.param(lambda graph: graph["nodes"][0].update(op="__class__"), id="dunder"),
        pytest.param(lambda graph: graph["nodes"][0]["attrs"].update(out_features=3), id="another shape"),
        pytest.param(lambda graph: graph["nodes"][0]["attrs"].update(out_features="2"), id="text for a number"),
        pytest.param(lambda graph: graph["nodes"][0]["params"].update(weight="nothing"), id="missing weights"),
        pytest.param(lambda graph: graph["nodes"][0].update(params={}), id="no parameters"),
        pytest.param(lambda graph: graph.pop("nodes"), id="no nodes"),
        pytest.param(lambda graph: graph.update(nodes="nodes"), id="text for nodes"),
        pytest.param(lambda graph: graph.update(nodes=[{}] * 5000), id="too many"),
    ],
)
def test_a_hostile_download_is_refused(change: Callable[[dict[str, Any]], object]) -> None:
    graph, weights = hostile(change)
    with pytest.raises(TraceError):
        load(Traced(graph, weights))


def test_weights_that_are_no_safetensors_are_refused_and_nothing_runs(tmp_path: Any) -> None:
    import pickle

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (open, (str(tmp_path / "ran"), "w"))

    graph, _ = hostile(lambda graph: None)
    for weights in (pickle.dumps(Bomb()), b"", b"\xff" * 64):
        with pytest.raises(TraceError, match="not safetensors"):
            load(Traced(graph, weights))
    assert not (tmp_path / "ran").exists()


def test_a_graph_module_is_a_module() -> None:
    module = load(trace(nn.Sequential(nn.Linear(3, 2)), torch.zeros(1, 3)))
    assert isinstance(module, GraphModule)
    assert not module.training
    assert sum(parameter.numel() for parameter in module.parameters()) == 8
