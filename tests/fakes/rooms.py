"""The rooms of datasets and training over real storage, uploads, ledger and queue, with the ports of `core` faked."""

import contextlib
import hashlib
import json
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any, cast

from fakes.core import (
    ACME,
    GLOBEX,
    FakeAuthorizer,
    FakeClock,
    FakeEntropy,
    FakeEpoch,
    FakeRecorder,
    FakeSealer,
    tenant_caller,
)
from modelkeep_platform.core.callers import TenantCaller
from modelkeep_platform.core.ids import PrincipalId, TenantId
from modelkeep_platform.datasets.service import DatasetService
from modelkeep_platform.jobs.queue import JobQueue
from modelkeep_platform.models.service import ModelService
from modelkeep_platform.models.trained import TrainedModels
from modelkeep_platform.models.versions import Versions
from modelkeep_platform.privacy.ledger import BudgetLedger
from modelkeep_platform.storage.blobs import BlobStore
from modelkeep_platform.storage.database import Database
from modelkeep_platform.training.dispatcher import Dispatcher, Runner
from modelkeep_platform.training.entitlement import Entitlement
from modelkeep_platform.training.run import Parts
from modelkeep_platform.training.service import TrainingService
from modelkeep_platform.training.values import TrainingJob
from modelkeep_platform.uploads.service import Upload, UploadService
from modelkeep_platform.workers.channel_sync import SyncChannel
from modelkeep_platform.workers.child import READY
from modelkeep_platform.workers.errors import WorkerDiedError, WorkerError
from modelkeep_platform.workers.frames import Frame
from modelkeep_platform.workers.process import WorkerProcess

SLUGS = {"acme": ACME, "globex": GLOBEX}


class Slugs:
    """Two tenants."""

    def id_of(self, slug: str) -> TenantId | None:
        return SLUGS.get(slug)

    def slug_of(self, tenant: TenantId) -> str:
        return next(slug for slug, known in SLUGS.items() if known == tenant)


class Ground:
    """What every room stands on: real storage and uploads, the ports of `core` faked."""

    def __init__(
        self, database: Database, blobs: BlobStore, clock: FakeClock, entropy: FakeEntropy, recorder: FakeRecorder
    ) -> None:
        self.database, self.blobs, self.clock, self.entropy, self.recorder = database, blobs, clock, entropy, recorder
        self.sealer, self.authorizer, self.epoch = FakeSealer(), FakeAuthorizer(), FakeEpoch()
        self.uploads = UploadService(
            database=database,
            blobs=blobs,
            sealer=self.sealer,
            clock=clock,
            entropy=entropy,
            authorizer=self.authorizer,
        )
        self.versions = Versions(database=database, sealer=self.sealer)

    def make_models(self) -> ModelService:
        """Return a registry of models."""
        return ModelService(
            database=self.database,
            authorizer=self.authorizer,
            recorder=self.recorder,
            uploads=self.uploads,
            versions=self.versions,
            tenants=Slugs(),
            epoch=self.epoch,
        )

    def make_trained(self) -> TrainedModels:
        """Return what takes trained versions."""
        return TrainedModels(
            database=self.database,
            recorder=self.recorder,
            uploads=self.uploads,
            versions=self.versions,
            clock=self.clock,
            entropy=self.entropy,
            epoch=self.epoch,
        )


class DataRoom(Ground):
    """The datasets room and what it stands on."""

    def __init__(
        self, database: Database, blobs: BlobStore, clock: FakeClock, entropy: FakeEntropy, recorder: FakeRecorder
    ) -> None:
        super().__init__(database, blobs, clock, entropy, recorder)
        self.ledger = BudgetLedger(clock=clock, entropy=entropy)
        self.datasets = DatasetService(
            database=database,
            authorizer=self.authorizer,
            recorder=recorder,
            uploads=self.uploads,
            ledger=self.ledger,
            tenants=Slugs(),
            clock=clock,
            entropy=entropy,
            epoch=self.epoch,
        )

    def send(self, declared: dict[str, Any], data: bytes, caller: TenantCaller | None = None) -> Upload:
        """Declare a dataset and send its one part."""
        caller = caller or tenant_caller()
        digest = hashlib.sha256(data)
        upload = self.datasets.create(caller, declared, len(data), digest.hexdigest()).upload
        self.uploads.put_part(caller, upload.id, 0, data, digest.digest())
        return upload

    def add(self, declared: dict[str, Any], data: bytes, caller: TenantCaller | None = None) -> str:
        """Declare, send and complete a dataset; return its id."""
        upload = self.send(declared, data, caller)
        return str(self.datasets.complete(caller or tenant_caller(), upload.id).id)


class FakePrincipals:
    """Everybody may act, until said otherwise."""

    def __init__(self) -> None:
        self.gone: set[str] = set()

    def present(self, tenant: TenantId, principal: PrincipalId) -> TenantCaller | None:
        return None if tenant in self.gone or principal in self.gone else tenant_caller(tenant)

    def is_active(self, tenant: TenantId) -> bool:
        return tenant not in self.gone


class TrainingRoom(DataRoom):
    """Datasets, models, the queue and the training service over one database."""

    def __init__(
        self, database: Database, blobs: BlobStore, clock: FakeClock, entropy: FakeEntropy, recorder: FakeRecorder
    ) -> None:
        super().__init__(database, blobs, clock, entropy, recorder)
        self.queue = JobQueue(clock=clock, entropy=entropy)
        self.models, self.trained = self.make_models(), self.make_trained()
        self.principals = FakePrincipals()
        self.training = TrainingService(
            uploads=self.uploads,
            database=database,
            authorizer=self.authorizer,
            recorder=recorder,
            queue=self.queue,
            ledger=self.ledger,
            datasets=self.datasets,
            models=self.models,
            sealer=self.sealer,
        )

    def dispatcher(self, runner: Runner, *, max_job_s: float = 60.0) -> Dispatcher:
        """Make a dispatcher that is not started: tests call `run_one`."""
        return Dispatcher(
            parts=Parts(
                database=self.database,
                queue=self.queue,
                ledger=self.ledger,
                datasets=self.datasets,
                models=self.models,
                trained=self.trained,
                uploads=self.uploads,
                sealer=self.sealer,
                entitlement=Entitlement(principals=self.principals, authorizer=self.authorizer),
                epoch=self.epoch,
                max_job_s=max_job_s,
            ),
            recorder=self.recorder,
            runner=runner,
            entropy=self.entropy,
        )

    def run(self, script: Callable[[SyncChannel], None], **changes: object) -> TrainingJob:
        """Create a job, run it with a scripted worker, see that the worker is gone, and return how it ended."""
        me = tenant_caller()
        job = self.training.create(me, training_spec(**changes))
        runner = ScriptedRunner(script)
        assert self.dispatcher(runner).run_one()
        assert all(worker.killed for worker in runner.started)
        return self.training.get(me, job.id)


def training_spec(**changes: object) -> dict[str, Any]:
    """Declare a job on the dataset `cells`: 2 features, 2 classes, ε = 1."""
    return {
        "dataset": "cells",
        "into": "cells-model",
        "model": {"graph": small_graph()},
        "loss": "cross_entropy",
        "optimizer": {"name": "sgd", "learning_rate": 0.5},
        "steps": 8,
        "sample_rate": 0.5,
        "privacy": {"epsilon": 1.0, "clip_norm": 1.0},
        **changes,
    }


def small_graph(*, inputs: int = 2, outputs: int = 2, op: str = "linear") -> dict[str, Any]:
    """Describe one layer from `inputs` numbers to `outputs`."""
    attrs = {"in_features": inputs, "out_features": outputs} if op == "linear" else {"num_features": inputs}
    roles = ["weight", "bias"]
    if op != "linear":
        roles += ["running_mean", "running_var", "num_batches_tracked"]
    return {
        "format": "modelkeep.graph/1",
        "inputs": [{"name": "x", "dtype": "float32", "shape": [-1, inputs]}],
        "nodes": [{"id": "n", "op": op, "inputs": ["x"], "attrs": attrs, "params": {role: role for role in roles}}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": [-1, outputs], "node": "n"}],
    }


CELLS: dict[str, Any] = {
    "name": "cells",
    "format": "csv",
    "schema": {
        "columns": [
            {"name": "size", "type": "float", "min": 0.0, "max": 10.0},
            {"name": "age", "type": "float", "min": 0.0, "max": 100.0},
            {"name": "label", "type": "category", "categories": ["no", "yes"]},
        ],
        "target": "label",
    },
    "privacy": {"visibility": "private", "unit": "row", "n_public": 100, "budget": {"epsilon": 2.5, "delta": 1e-5}},
}
OPEN_CELLS = {**CELLS, "name": "open", "privacy": {"visibility": "public", "reason": "made up"}}


def cells(rows: int = 40) -> bytes:
    """Rows of which the large ones are `yes`."""
    lines = [f"{i % 10},{(i * 37) % 100},{'yes' if i % 10 > 4 else 'no'}" for i in range(rows)]
    return ("size,age,label\n" + "\n".join(lines) + "\n").encode()


class ScriptedWorker:
    """A worker that is a thread of the test: it says what its script says, over a real socket.

    Args:
        script: called with the worker's end of the channel, after it said that it is ready.
    """

    def __init__(self, script: Callable[[SyncChannel], None]) -> None:
        self.connection, theirs = socket.socketpair()
        self.killed = False
        self._thread = threading.Thread(target=self._play, args=(script, theirs), daemon=True)
        self._thread.start()

    def _play(self, script: Callable[[SyncChannel], None], theirs: socket.socket) -> None:
        channel = SyncChannel(theirs)
        with contextlib.suppress(WorkerError):
            channel.send(Frame(kind=READY))
            script(channel)
        channel.close()

    def alive(self) -> bool:
        return self._thread.is_alive()

    def death(self) -> WorkerDiedError:
        return WorkerDiedError("the worker process ended: signal SIGKILL; try again")

    def kill_soon(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def kill(self) -> None:
        self.killed = True
        self.connection.close()
        self._thread.join(timeout=5)


class ScriptedRunner:
    """Starts workers that follow a script, and remembers them."""

    def __init__(self, script: Callable[[SyncChannel], None]) -> None:
        self._script = script
        self.started: list[ScriptedWorker] = []

    def start(self) -> WorkerProcess:
        worker = ScriptedWorker(self._script)
        self.started.append(worker)
        return cast("WorkerProcess", worker)


def hear_brief(channel: SyncChannel) -> tuple[dict[str, Any], bytes]:
    """Take a job's brief as a worker does; return its fields and the rows."""
    job = channel.receive()
    kinds, rows = (["rows", "weights"] if job.fields["base"] else ["rows"]), b""
    for kind in kinds:
        while not (frame := channel.receive()).fields["last"]:
            rows += bytes(frame.buffers[0]) if kind == "rows" else b""
    return dict(job.fields), rows


def ask(channel: SyncChannel, number: int, steps: int) -> None:
    """Ask for a segment and wait for its charge."""
    channel.send(Frame(kind="segment", fields={"number": number, "steps": steps}))
    channel.receive()


def honest(channel: SyncChannel) -> None:
    """Run every step as declared and send zeros as weights."""
    fields, _ = hear_brief(channel)
    steps, size = fields["spec"]["steps"], fields["segment_steps"]
    for number, begin in enumerate(range(0, steps, size)):
        ask(channel, number, min(size, steps - begin))
    finish(channel, fields)


def finish(channel: SyncChannel, fields: Mapping[str, Any], weights: bytes | None = None, **ran: object) -> None:
    """Say what ran and send weights; `ran` replaces what an honest worker would say."""
    say_done(channel, fields, **ran)
    send_blob(channel, zeros() if weights is None else weights)


def say_done(channel: SyncChannel, fields: Mapping[str, Any], **ran: object) -> None:
    """Say what ran; weights must follow."""
    plan = fields["plan"]
    done = {}
    if plan is not None:
        done = {key: plan[key] for key in ("steps", "noise_multiplier", "sample_rate", "clip_norm")} | ran
    channel.send(Frame(kind="done", fields=done))


def send_blob(channel: SyncChannel, data: bytes, *, step: int = 0) -> None:
    """Send bytes as a worker sends weights."""
    for at in range(0, len(data), 64):
        channel.send(Frame(kind="blob", fields={"step": step, "last": False}, buffers=[data[at : at + 64]]))
    channel.send(Frame(kind="blob", fields={"step": step, "last": True}))


def zeros() -> bytes:
    """A safetensors file with the weights of `small_graph`, all zero."""
    header = {
        "bias": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [8, 24]},
    }
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(24)
