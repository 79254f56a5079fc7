"""The networks of the demo: ordinary torch modules, nothing of Modelkeep in them."""

import torch
from torch import nn


def two_layers() -> nn.Module:
    """Train the two-layer example outside: 1000 epochs of SGD towards its own input."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 10))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    rows = torch.randn(64, 10)
    for _ in range(1000):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(module(rows), rows)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return module


def tumour() -> nn.Module:
    """Return the untrained network for the breast cancer table."""
    return nn.Sequential(nn.Linear(30, 16), nn.Tanh(), nn.Linear(16, 2))


def digits() -> nn.Module:
    """Return the untrained convolutional network for 8 x 8 images."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.Tanh(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
