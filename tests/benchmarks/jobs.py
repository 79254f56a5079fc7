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
chosen = optimizer(Optimizer(name="adam", learning_rate=0.1), net.parameters())
net(torch.ones(1, 2)).sum().backward()
chosen.step()
"""
_TORCHS = """
import tempfile
tempfile.tempdir = "/nonexistent"
import torch
net = torch.nn.Linear(2, 2)
chosen = torch.optim.Adam(net.parameters(), 0.1)
net(torch.ones(1, 2)).sum().backward()
chosen.step()
"""


def measure(folder: Path) -> list[Figure]:
    """Measure our Adam against torch's, in fresh interpreters; `import torch` is in both. SGD's loads the same."""
    ours, theirs = interleave(partial(_took, _OURS), partial(_took, _TORCHS), rounds=2)
    return [
        Figure(
            name="interpreter, torch, a first step of Adam",
            unit="s",
            ours=ours,
            against="`torch.optim.Adam`",
            theirs=theirs,
        )
    ]


def _took(code: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - began
