"""A server that is told to stop answers what it took, keeps what jobs have trained, and goes on when it is back."""

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from modelkeep import Client
from modelkeep._core import safetensors
from modelkeep.errors import ModelkeepError
from services.house import PRIVATE, ROWS, SCHEMA, Installation, ServerProcess, Tenant, job, join, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.torch]

LENGTH, HIDDEN = 12_000, 192
SLOW: dict[str, Any] = {
    "format": "modelkeep.graph/1",
    "inputs": [{"name": "x", "dtype": "float32", "shape": [-1, LENGTH, 1]}],
    "nodes": [
        {
            "id": "lstm",
            "op": "lstm",
            "inputs": ["x"],
            "attrs": {"input_size": 1, "hidden_size": HIDDEN},
            "params": {name: name for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")},
        },
        {
            "id": "y",
            "op": "linear",
            "inputs": ["lstm"],
            "attrs": {"in_features": HIDDEN, "out_features": 1, "bias": False},
            "params": {"weight": "w"},
        },
    ],
    "outputs": [{"name": "y", "dtype": "float32", "shape": [-1, LENGTH, 1], "node": "y"}],
}
"""A recurrent net over so many steps that it takes the better part of a second."""


def slow_weights() -> bytes:
    gates = 4 * HIDDEN
    tensors = {
        "weight_ih_l0": [[0.01]] * gates,
        "weight_hh_l0": [[0.001] * HIDDEN] * gates,
        "bias_ih_l0": [0.0] * gates,
        "bias_hh_l0": [0.0] * gates,
        "w": [[0.1] * HIDDEN],
    }
    return safetensors.write(tensors, dtypes=dict.fromkeys(tensors, "float32"))


class Served:
    """One installation, its server in a process of its own."""

    def __init__(self, folder: Path, options: tuple[str, ...]) -> None:
        self.options = options
        self.made = Installation(folder).init()
        self.start()
        self.acme: Tenant = join(self.made, "acme")
        self.app: Client = self.acme.clients["developer"]

    def start(self) -> None:
        self.server = ServerProcess(self.made, options=self.options).ready()

    def close(self) -> None:
        for client in (self.acme.admin, *self.acme.clients.values()):
            client.close()
        self.server.stop()


@pytest.fixture(params=[(), ("--workers", "2")], ids=["one server", "two servers"])
def served(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Served]:
    served = Served(tmp_path, request.param)
    yield served
    served.close()


def test_what_was_taken_is_answered_and_a_job_goes_on_where_it_was(served: Served) -> None:
    app = served.app
    app.models.upload("slow", graph=SLOW, weights=slow_weights())
    app.datasets.upload_csv("rows", ROWS, schema=SCHEMA, privacy=PRIVATE)
    row = [[[0.5]] * LENGTH]
    expected = app.predict("slow", row)
    began = time.monotonic()
    app.predict("slow", row)
    takes_s = time.monotonic() - began
    steps = 2000
    created = app.jobs.create(
        job(steps=steps, sample_rate=0.01, optimizer={"name": "adam", "learning_rate": 0.01}, privacy=PAID)
    )
    wait_until(lambda: app.jobs.get(created.id).progress.step > 0, "the first steps")
    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(app.predict, "slow", row)
        time.sleep(takes_s / 4)
        assert not under_way.done()
        served.server.process.send_signal(signal.SIGTERM)
        assert under_way.result(timeout=60) == expected
    assert served.server.stop() == 0
    with pytest.raises(ModelkeepError):
        app.predict("slow", row)
    served.start()
    waiting = app.jobs.get(created.id)
    assert waiting.state in ("queued", "running")
    reached = waiting.progress.step
    assert reached > 0
    ended = app.jobs.wait(created.id, timeout_s=180)
    assert (ended.state, ended.progress.step) == ("succeeded", steps)
    lines = [line.text for line in app.jobs.logs(created.id)]
    assert f"training goes on after step {reached}" in lines
    (charge,) = app.budgets.get("rows").charges
    assert (charge.steps, charge.state) == (steps, "committed")


PAID = {"epsilon": 2.0, "clip_norm": 1.0}
