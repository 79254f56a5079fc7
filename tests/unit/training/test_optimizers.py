"""The worker's optimizers make torch's steps, and do not load torch's compiler."""

import subprocess
import sys
from typing import Any

import pytest

from modelkeep_platform.training.optimizers import optimizer
from modelkeep_platform.training.spec import Optimizer
from modelkeep_platform.training.state import slots

pytestmark = pytest.mark.torch

CASES: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
    ({"name": "gd"}, "SGD", {}),
    ({"name": "sgd"}, "SGD", {}),
    ({"name": "sgd", "weight_decay": 0.3}, "SGD", {"weight_decay": 0.3}),
    ({"name": "momentum", "momentum": 0.9}, "SGD", {"momentum": 0.9}),
    (
        {"name": "momentum", "momentum": 0.5, "weight_decay": 0.1},
        "SGD",
        {"momentum": 0.5, "weight_decay": 0.1},
    ),
    ({"name": "adam"}, "Adam", {}),
    (
        {"name": "adam", "betas": [0.5, 0.75], "eps": 0.01, "weight_decay": 0.2},
        "Adam",
        {"betas": (0.5, 0.75), "eps": 0.01, "weight_decay": 0.2},
    ),
    ({"name": "adam", "betas": [0.0, 0.0]}, "Adam", {"betas": (0.0, 0.0)}),
]


@pytest.mark.parametrize(("declared", "name", "options"), CASES, ids=lambda value: str(value)[:40])
def test_steps_are_torchs_own(declared: dict[str, Any], name: str, options: dict[str, Any]) -> None:
    import torch

    torch.manual_seed(7)
    net = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2)).double()
    twin = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2)).double()
    twin.load_state_dict(net.state_dict())
    chosen = Optimizer(learning_rate=0.05, **declared)
    pairs: list[tuple[Any, Any]] = [
        (net, optimizer(chosen, net.parameters())),
        (twin, getattr(torch.optim, name)(twin.parameters(), lr=0.05, **options)),
    ]
    rows = torch.randn(30, 8, 4, dtype=torch.float64)
    for at in range(30):
        for module, stepping in pairs:
            stepping.zero_grad()
            module(rows[at]).square().sum().backward()
            if at % 5 == 2:
                # A parameter without a gradient is left alone, its averages and its count of steps too.
                module[0].bias.grad = None
            stepping.step()
    for mine, torchs in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, torchs, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize(("declared", "name", "options"), CASES, ids=lambda value: str(value)[:40])
def test_what_is_kept_goes_on_as_if_it_had_never_stopped(
    declared: dict[str, Any], name: str, options: dict[str, Any]
) -> None:
    del name, options
    import torch

    torch.manual_seed(7)
    chosen = Optimizer(learning_rate=0.05, **declared)
    whole, parted = torch.nn.Linear(4, 2).double(), torch.nn.Linear(4, 2).double()
    parted.load_state_dict(whole.state_dict())
    steppings = [optimizer(chosen, net.parameters()) for net in (whole, parted)]
    rows = torch.randn(12, 8, 4, dtype=torch.float64)
    for at in range(12):
        if at == 5:
            kept = [steppings[1].kept(number) for number in range(2)]
            assert {*kept[0]} == {*slots(chosen)}
            steppings[1] = optimizer(chosen, parted.parameters())
            for number, one in enumerate(kept):
                if one:
                    steppings[1].keep(number, one)
        for net, stepping in zip((whole, parted), steppings, strict=True):
            stepping.zero_grad()
            net(rows[at]).square().sum().backward()
            stepping.step()
    for mine, other in zip(whole.parameters(), parted.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_a_step_loads_no_compiler() -> None:
    code = (
        "import sys, torch\n"
        "from modelkeep_platform.training.optimizers import Adam, Sgd\n"
        "for kind in (Adam, Sgd):\n"
        "    net = torch.nn.Linear(2, 2)\n"
        "    net(torch.ones(1, 2)).sum().backward()\n"
        "    kind(net.parameters(), learning_rate=0.1).step()\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
