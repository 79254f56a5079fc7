"""Uploads and downloads through the platform, sealed and fsynced, against copying the same file with fsync."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Figure, interleave
from benchmarks.place import Place
from modelkeep._core import safetensors

TITLE = "Transfer of a model"
MIB = 2**20
SIDE = 2048
GRAPH: dict[str, Any] = {
    "format": "modelkeep.graph/1",
    "inputs": [{"name": "x", "dtype": "float32", "shape": [-1, SIDE]}],
    "nodes": [
        {
            "id": "linear",
            "op": "linear",
            "inputs": ["x"],
            "attrs": {"in_features": SIDE, "out_features": SIDE, "bias": False},
            "params": {"weight": "w"},
        }
    ],
    "outputs": [{"name": "y", "dtype": "float32", "shape": [-1, SIDE], "node": "linear"}],
}
"""One layer with 16 MiB of weights."""


def measure_at(at: Place) -> list[Figure]:
    """Measure MiB per second of a model's weights, up until the version is admitted, and down with digests checked."""
    values = np.random.default_rng(7).standard_normal((SIDE, SIDE), dtype=np.float32)
    weights = safetensors.write({"w": values}, dtypes={"w": "float32"})
    client = at.acme.clients["developer"]
    source, target = at.made.folder / "source", at.made.folder / "target"
    source.write_bytes(weights)

    def upload() -> None:
        client.models.upload("large", graph=GRAPH, weights=source)

    def rate(work: Callable[[], object]) -> Callable[[], float]:
        def side() -> float:
            began = time.perf_counter()
            work()
            return len(weights) / (time.perf_counter() - began) / MIB

        return side

    upload()
    up, down, copied = interleave(
        rate(upload), rate(lambda: client.models.download("large", 1)), rate(lambda: _copy(source, target)), rounds=3
    )
    size, against = f"{len(weights) / MIB:.0f} MiB", "copying the file, with fsync"
    return [
        Figure(name=f"{name} of {size}", unit="MiB/s", ours=values, against=against, theirs=copied, more_is_better=True)
        for name, values in (("upload", up), ("download", down))
    ]


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as begin, target.open("wb") as end:
        while chunk := begin.read(MIB):
            end.write(chunk)
        end.flush()
        os.fsync(end.fileno())
