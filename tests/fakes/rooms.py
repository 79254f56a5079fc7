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
    FakeLimits,
    FakeRecorder,
    FakeSealer,
    tenant_caller,
)
from modelkeep_platform.core.callers import TenantCaller
from modelkeep_platform.core.ids import ObjectId, PrincipalId, TenantId
from modelkeep_platform.core.ports import Transaction
from modelkeep_platform.core.refs import Kind
from modelkeep_platform.datasets.service import DatasetService
from modelkeep_platform.datasets.service import drop_pending as drop_dataset
from modelkeep_platform.jobs.queue import JobQueue
from modelkeep_platform.models.rows import drop_pending as drop_version
from modelkeep_platform.models.service import ModelService
from modelkeep_platform.models.trained import TrainedModels
from modelkeep_platform.models.versions import Versions
from modelkeep_platform.privacy.ledger import BudgetLedger
from modelkeep_platform.storage.blobs import BlobStore
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.tables.keys import wrapped_deks, wrapped_keks
from modelkeep_platform.storage.transactions import PlatformTransaction, TenantTransaction
from modelkeep_platform.training.dispatcher import Dispatcher, Runner
from modelkeep_platform.training.endings import JobEndings
from modelkeep_platform.training.entitlement import Entitlement
from modelkeep_platform.training.run import Parts
from modelkeep_platform.training.service import TrainingService
from modelkeep_platform.training.values import TrainingJob
from modelkeep_platform.uploads.artifacts import Artifacts
from modelkeep_platform.uploads.endings import UploadEndings
from modelkeep_platform.uploads.orphans import Orphans
from modelkeep_platform.uploads.rows import Upload
from modelkeep_platform.uploads.service import UploadService
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


class StoredSealer(FakeSealer):
    """Keeps a row of every key, as the real one does: what looks for bytes without a key looks there."""

    def __init__(self) -> None:
        super().__init__()
        self._tenants: set[TenantId] = set()

    def create_key(self, tx: Transaction, owner: TenantId, object_id: ObjectId) -> None:
        super().create_key(tx, owner, object_id)
        owned = self._owned(tx, owner)
        if owner not in self._tenants:
            self._tenants.add(owner)
            owned.insert(wrapped_keks, version=1, root_id="root", wrapped=b"", created_at=1)
        owned.insert(wrapped_deks, object_id=object_id, kek_version=1, wrapped=b"", created_at=1)

    def destroy_key(self, tx: Transaction, owner: TenantId, object_id: ObjectId) -> None:
        super().destroy_key(tx, owner, object_id)
        owned = self._owned(tx, owner)
        owned.change(owned.delete(wrapped_deks).where(wrapped_deks.c.object_id == object_id))

    @staticmethod
    def _owned(tx: Transaction, owner: TenantId) -> TenantTransaction:
        assert isinstance(tx, PlatformTransaction | TenantTransaction)
        return tx.as_tenant(owner) if isinstance(tx, PlatformTransaction) else tx


class Ground:
    """What every room stands on: real storage and uploads, the ports of `core` faked."""

    def __init__(
        self, database: Database, blobs: BlobStore, clock: FakeClock, entropy: FakeEntropy, recorder: FakeRecorder
    ) -> None:
        self.database, self.blobs, self.clock, self.entropy, self.recorder = database, blobs, clock, entropy, recorder
        self.sealer, self.authorizer, self.epoch = StoredSealer(), FakeAuthorizer(), FakeEpoch()
        self.artifacts = Artifacts(blobs=blobs, sealer=self.sealer)
        self.upload_endings = UploadEndings(
            database=database,
            artifacts=self.artifacts,
            drops={
                Kind.MODEL: lambda tx, upload: drop_version(tx, self.sealer, upload.object_id, upload.version),
                Kind.DATASET: lambda tx, upload: drop_dataset(tx, self.sealer, upload.object_id),
            },
            sealer=self.sealer,
            recorder=recorder,
            clock=clock,
        )
        self.limits = FakeLimits()
        self.uploads = UploadService(
            database=database,
            artifacts=self.artifacts,
            endings=self.upload_endings,
            sealer=self.sealer,
            recorder=recorder,
            clock=clock,
            entropy=entropy,
            authorizer=self.authorizer,
            limits=self.limits,
        )
        self.versions = Versions(database=database, sealer=self.sealer)
        self.orphans = Orphans(database=database, blobs=blobs)

    def make_models(self) -> ModelService:
        """Return a registry of models."""
        return ModelService(
            database=self.database,
            authorizer=self.authorizer,
            recorder=self.recorder,
            artifacts=self.artifacts,
            endings=self.upload_endings,
            versions=self.versions,
            tenants=Slugs(),
            epoch=self.epoch,
            limits=self.limits,
        )

    def make_trained(self) -> TrainedModels:
        """Return what takes trained versions."""
        return TrainedModels(
            recorder=self.recorder,
            artifacts=self.artifacts,
            sealer=self.sealer,
            versions=self.versions,
            clock=self.clock,
            entropy=self.entropy,
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
            endings=self.upload_endings,
            artifacts=self.artifacts,
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
        self.queue = JobQueue(clock=clock, entropy=entropy, limits=self.limits)
        self.models, self.trained = self.make_models(), self.make_trained()
        self.principals = FakePrincipals()
        self.job_endings = JobEndings(
            database=database,
            queue=self.queue,
            ledger=self.ledger,
            trained=self.trained,
            artifacts=self.artifacts,
            sealer=self.sealer,
            recorder=recorder,
            epoch=self.epoch,
        )
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
            endings=self.job_endings,
        )

    def dispatcher(
        self, runner: Runner, *, max_job_s: float = 600.0, max_silence_s: float = 600.0, slots: int = 2
    ) -> Dispatcher:
        """Make a dispatcher that is not started: tests call `run_one`."""
        return Dispatcher(
            parts=Parts(
                database=self.database,
                queue=self.queue,
                ledger=self.ledger,
                datasets=self.datasets,
                models=self.models,
                trained=self.trained,
                artifacts=self.artifacts,
                sealer=self.sealer,
                entitlement=Entitlement(principals=self.principals, authorizer=self.authorizer, models=self.models),
                endings=self.job_endings,
                epoch=self.epoch,
                max_job_s=max_job_s,
                max_silence_s=max_silence_s,
            ),
            runner=runner,
            entropy=self.entropy,
            slots=slots,
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
    fields, sent = hear_all(channel)
    return fields, sent["rows"]


def hear_all(channel: SyncChannel) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Take a job's brief; return its fields, and what was streamed by kind."""
    job = channel.receive()
    kinds = ["rows"]
    if job.fields["begin"] or job.fields["base"]:
        kinds.append("state" if job.fields["begin"] else "weights")
    sent = dict.fromkeys(kinds, b"")
    for kind in kinds:
        while not (frame := channel.receive()).fields["last"]:
            assert frame.kind == kind
            sent[kind] += bytes(frame.buffers[0])
    return dict(job.fields), sent


def ask(channel: SyncChannel, number: int, steps: int) -> str:
    """Ask for a segment, wait for its charge, and return what is answered: go or stop."""
    channel.send(Frame(kind="segment", fields={"number": number, "steps": steps}))
    return channel.receive().kind


def honest(channel: SyncChannel) -> None:
    """Run every step that is left as declared and send zeros as weights."""
    fields, _ = hear_brief(channel)
    steps, size = fields["spec"]["steps"], fields["segment_steps"]
    for begin in range(fields["begin"], steps, size):
        ask(channel, begin // size, min(size, steps - begin))
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
        done = {key: plan[key] for key in ("steps", "noise_multiplier", "sample_rate", "clip_norm")}
        done = done | {"steps": plan["steps"] - fields["begin"]} | ran
    channel.send(Frame(kind="done", fields=done))


def send_blob(channel: SyncChannel, data: bytes, *, step: int = 0) -> None:
    """Send bytes as a worker sends weights."""
    for at in range(0, len(data), 64):
        channel.send(Frame(kind="blob", fields={"step": step, "last": False}, buffers=[data[at : at + 64]]))
    channel.send(Frame(kind="blob", fields={"step": step, "last": True}))


def send_checkpoint(channel: SyncChannel, step: int) -> None:
    """Send what it takes to go on after `step` with the optimizer `sgd`: zeros."""
    send_blob(channel, zeros("weights/"), step=step)


def zeros(prefix: str = "") -> bytes:
    """A safetensors file with the weights of `small_graph`, all zero, their names after `prefix`."""
    header = {
        f"{prefix}bias": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        f"{prefix}weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [8, 24]},
    }
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(24)
