"""How long a training worker takes to begin: from the start of the process to its first step's end."""

import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from benchmarks.harness import Figure, interleave

TITLE = "Start of a training job"
_OURS = """
import torch
from modelkeep_platform.training.optimizers import optimizer
from modelkeep_platform.training.spec import Optimizer
net = torch.nn.Linear(2, 2)
chosen = optimizer(Optimizer(name="{name}", learning_rate=0.1), net.parameters())
net(torch.ones(1, 2)).sum().backward()
chosen.step()
"""
_TORCHS = """
import tempfile
tempfile.tempdir = "/nonexistent"
import torch
net = torch.nn.Linear(2, 2)
chosen = torch.optim.{name}(net.parameters(), 0.1)
net(torch.ones(1, 2)).sum().backward()
chosen.step()
"""


def measure(folder: Path) -> list[Figure]:
    """Measure both optimizers against the classes of torch.optim, in fresh interpreters; `import torch` is in both."""
    figures = []
    for ours, theirs in (("sgd", "SGD"), ("adam", "Adam")):
        mine, torchs = interleave(
            partial(_took, _OURS.format(name=ours)),
            partial(_took, _TORCHS.format(name=theirs)),
            rounds=2,
        )
        figures.append(
            Figure(
                name=f"interpreter, torch, a first step of `{ours}`",
                unit="s",
                ours=mine,
                against=f"`torch.optim.{theirs}`",
                theirs=torchs,
            )
        )
    return figures


def _took(code: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - began
