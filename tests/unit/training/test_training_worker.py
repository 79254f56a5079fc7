"""The real worker process: it trains, its model takes raw units, and it stops when it is told to."""

import json

import numpy as np
import pytest

from fakes.core import tenant_caller
from fakes.rooms import CELLS, TrainingRoom, cells, honest, training_spec
from modelkeep_platform.core.limits import GIB
from modelkeep_platform.jobs.queue import Lease
from modelkeep_platform.models.graph.format import parse
from modelkeep_platform.storage.pages import PageRequest
from modelkeep_platform.storage.transactions import TenantTransaction
from modelkeep_platform.training.runners.local import LocalRunner
from modelkeep_platform.workers.limits import Limits
from modelkeep_platform.workers.sandbox import ProcessSandbox

pytestmark = pytest.mark.torch
ME = tenant_caller()
RUNNER = LocalRunner(limits=Limits(memory_bytes=3 * GIB), sandbox=ProcessSandbox())


def train(room: TrainingRoom, **changes: object) -> None:
    job = room.training.create(ME, training_spec(**changes))
    room.dispatcher(RUNNER).run_one()
    ended = room.training.get(ME, job.id)
    assert (ended.state, ended.error) == ("succeeded", None)
    assert ended.progress.step == ended.progress.steps


def scores(
    room: TrainingRoom, rows: list[list[float]], name: str = "cells-model"
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Run the newest model in this process."""
    import safetensors.torch
    import torch

    from modelkeep_platform.models.graph.torch_build import build

    module = build(parse(room.models.export_graph(ME, name, "1")))
    version, chunks = room.models.export_weights(ME, name, "1")
    assert version.version == 1
    module.load_named(safetensors.torch.load(b"".join(chunks)))
    with torch.no_grad():
        result = module(torch.tensor(rows))
    assert isinstance(result, torch.Tensor)
    found: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = result.numpy()
    return found


def test_a_private_job_trains_and_is_charged_what_it_declared(room: TrainingRoom) -> None:
    optimizer = {"name": "momentum", "learning_rate": 0.1, "momentum": 0.5}
    train(room, steps=20, checkpoint_every=5, microbatch=7, optimizer=optimizer)
    budget = room.datasets.budget(ME, "cells")
    assert [(charge.steps, charge.state) for charge in budget.charges] == [(20, "committed")]
    assert (budget.epsilon_reserved, budget.epsilon_spent <= 1.0) == (0.0, True)
    assert np.isfinite(scores(room, [[1.0, 1.0]])).all()


@pytest.mark.parametrize(
    "optimizer",
    [{"name": "adam", "learning_rate": 0.1, "betas": [0.9, 0.99]}, {"name": "gd", "learning_rate": 1.0}],
    ids=["adam", "gd"],
)
def test_a_job_on_public_data_learns_in_raw_units(room: TrainingRoom, optimizer: dict[str, object]) -> None:
    rate = 1.0 if optimizer["name"] == "gd" else 0.5
    train(room, dataset="open", privacy=None, steps=300, sample_rate=rate, optimizer=optimizer)
    found = scores(room, [[0.0, 50.0], [2.0, 10.0], [8.0, 90.0], [9.0, 50.0]])
    assert found.argmax(axis=1).tolist() == [0, 0, 1, 1]


OPTIMIZERS: list[dict[str, object]] = [
    {"name": "momentum", "learning_rate": 0.3, "momentum": 0.5},
    {"name": "adam", "learning_rate": 0.1},
]


def stopped_at(room: TrainingRoom, monkeypatch: pytest.MonkeyPatch, job_id: str, steps: int) -> None:
    """Run a job until so many of its steps are charged, and stop the server then."""
    dispatcher = room.dispatcher(RUNNER)
    progress = room.queue.progress

    def told(tx: TenantTransaction, lease: Lease, *, step: int, epsilon_charged: float | None) -> None:
        progress(tx, lease, step=step, epsilon_charged=epsilon_charged)
        if step >= steps:
            dispatcher._stopping.set()

    with monkeypatch.context() as patched:
        patched.setattr(room.queue, "progress", told)
        assert dispatcher.run_one()
    job = room.training.get(ME, job_id)
    assert (job.state, steps <= job.progress.step < job.progress.steps) == ("queued", True)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda one: str(one["name"]))
def test_a_job_that_was_stopped_twice_trains_as_if_it_never_was(
    room: TrainingRoom, monkeypatch: pytest.MonkeyPatch, optimizer: dict[str, object]
) -> None:
    room.run(honest, dataset="open", privacy=None, steps=1)
    # From weights that are given, with every row in each step, nothing is left to chance.
    declared = {
        "dataset": "open",
        "privacy": None,
        "steps": 80,
        "sample_rate": 1.0,
        "optimizer": optimizer,
        "model": {"name": "cells-model", "version": 1},
    }
    train(room, **declared, into="whole")
    job = room.training.create(ME, training_spec(**declared, into="parted"))
    for steps in (10, 40):
        stopped_at(room, monkeypatch, job.id, steps)
    assert room.dispatcher(RUNNER).run_one()
    assert room.training.get(ME, job.id).state == "succeeded"
    rows = [[0.0, 50.0], [2.0, 10.0], [8.0, 90.0]]
    begun, whole, parted = (scores(room, rows, name) for name in ("cells-model", "whole", "parted"))
    # The rows come in another order, which moves the last digits of a sum, and Adam divides by them.
    np.testing.assert_allclose(parted, whole, rtol=2e-3, atol=1e-4)
    assert not np.allclose(begun, whole, rtol=1e-2)


def test_a_private_job_that_was_stopped_is_charged_each_step_once(
    room: TrainingRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = room.training.create(ME, training_spec(steps=20, optimizer={"name": "adam", "learning_rate": 0.1}))
    stopped_at(room, monkeypatch, job.id, 7)
    held = room.datasets.budget(ME, "cells")
    assert sum(charge.steps for charge in held.charges) == room.training.get(ME, job.id).progress.step
    assert room.dispatcher(RUNNER).run_one()
    ended = room.training.get(ME, job.id)
    assert (ended.state, ended.error) == ("succeeded", None)
    budget = room.datasets.budget(ME, "cells")
    assert [(charge.steps, charge.state) for charge in budget.charges] == [(20, "committed")]
    assert (budget.epsilon_reserved, budget.epsilon_spent <= 1.0) == (0.0, True)


def test_training_goes_on_from_a_version(room: TrainingRoom) -> None:
    train(room, dataset="open", privacy=None, steps=200)
    job = room.training.create(
        ME, training_spec(dataset="open", privacy=None, steps=1, model={"name": "cells-model", "version": 1})
    )
    room.dispatcher(RUNNER).run_one()
    ended = room.training.get(ME, job.id)
    assert ended.result is not None
    assert ended.result.version == 2
    graph = json.loads(room.models.export_graph(ME, "cells-model", "2"))
    assert [node["op"] for node in graph["nodes"]] == ["affine", "linear"]


def test_a_table_learns_its_own_rows(room: TrainingRoom) -> None:
    schema = {"columns": CELLS["schema"]["columns"][:2], "target": None}
    declared = {**CELLS, "name": "own", "schema": schema, "privacy": {"visibility": "public", "reason": "made up"}}
    room.add(declared, b"\n".join(line.rpartition(b",")[0] for line in cells().splitlines()))
    train(room, dataset="own", privacy=None, loss="mse", steps=5)


def test_weights_that_are_not_finite_fail_the_job(room: TrainingRoom) -> None:
    job = room.training.create(
        ME,
        training_spec(
            dataset="open",
            privacy=None,
            loss="cross_entropy",
            steps=60,
            optimizer={"name": "sgd", "learning_rate": 1000.0, "weight_decay": 10.0},
        ),
    )
    room.dispatcher(RUNNER).run_one()
    ended = room.training.get(ME, job.id)
    assert ended.error is not None
    assert ended.error.code == "diverged"
    assert room.models.list(ME, PageRequest()).items == []
