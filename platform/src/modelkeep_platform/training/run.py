"""One job, from claim to weights: briefs the worker, charges each segment before it runs, takes what was trained.

The worker is not believed: segments are counted here, the trained graph is made here, its weights are admitted like an
upload, and of its failures only a code from a closed list is shown (its words could hold a row).
"""

import builtins
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Final

import msgspec

from modelkeep_platform.core.errors import IntegrityError, UnprocessableError
from modelkeep_platform.core.ids import ObjectId, TenantId
from modelkeep_platform.core.ports import EpochSource, Sealer
from modelkeep_platform.core.refs import Kind, ResourceRef
from modelkeep_platform.core.sealing import Purpose, Suite
from modelkeep_platform.datasets.service import DatasetService
from modelkeep_platform.datasets.spec import DatasetSpec, to_builtins
from modelkeep_platform.jobs.queue import JobQueue, Lease
from modelkeep_platform.models import safetensors_check
from modelkeep_platform.models.graph.format import Graph, with_affine
from modelkeep_platform.models.graph.format import parse as parse_graph
from modelkeep_platform.models.service import ModelService
from modelkeep_platform.models.trained import TrainedModels
from modelkeep_platform.privacy.grid import fit_grid
from modelkeep_platform.privacy.ledger import BudgetLedger
from modelkeep_platform.privacy.plan import MechanismPlan, RanMechanism
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.tables.training import training_jobs
from modelkeep_platform.storage.transactions import System
from modelkeep_platform.training.entitlement import Entitlement
from modelkeep_platform.training.service import Payload
from modelkeep_platform.uploads.service import UploadService
from modelkeep_platform.workers.channel_sync import SyncChannel
from modelkeep_platform.workers.child import FAULT, READY
from modelkeep_platform.workers.errors import FrameError, WorkerDiedError
from modelkeep_platform.workers.frames import Frame
from modelkeep_platform.workers.process import WorkerProcess

LEASE_S: Final = 30
MAX_JOB_S: Final = 6 * 3600.0
MAX_SEGMENT_STEPS: Final = 50
_SEGMENTS: Final = 40
_RENEW_S: Final = 1.0
_WAIT_S: Final = 0.5
_SEND_S: Final = 60.0
_SYSTEM: Final = System(reason="run a job")

_log = logging.getLogger(__name__)

FAULTS: Final[Mapping[str, str]] = {
    "batch_coupled": "an operation of the model mixes the records of a batch; keep the batch in the first dimension",
    "diverged": "the weights are not finite numbers any more; take a smaller learning rate",
    "layer_not_private": "a layer of the model cannot be trained privately; plan the job to see which",
    "out_of_memory": "the job ran out of memory; take a smaller `microbatch` or a smaller model",
}
"""Every failure a worker may name, in our own words; anything else is shown as `job_failed`."""


class JobFailedError(UnprocessableError):
    """The job cannot be done as declared; the message holds no data."""

    code = "job_failed"


class CancelledError(Exception):
    """The owner asked for the job to end."""


class StoppingError(Exception):
    """The server is stopping."""


class _Segment(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    number: int
    steps: int


class _Blob(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    step: int
    last: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a run stands on.

    Args:
        database: where jobs are.
        queue: keeps them.
        ledger: charges them.
        datasets: gives rows.
        models: gives weights to go on from.
        trained: takes what was trained.
        uploads: keeps checkpoints.
        sealer: opens what the service sealed.
        entitlement: says whether a job may go on.
        epoch: moves with everything that could change that.
        max_job_s: how long one job may take.
        stopping: set when the server stops.
    """

    database: Database
    queue: JobQueue
    ledger: BudgetLedger
    datasets: DatasetService
    models: ModelService
    trained: TrainedModels
    uploads: UploadService
    sealer: Sealer
    entitlement: Entitlement
    epoch: EpochSource
    max_job_s: float = MAX_JOB_S
    stopping: threading.Event = field(default_factory=threading.Event)


def segment_steps(steps: int) -> int:
    """Return how many steps are charged at once: what a crash can cost at most, and when a cancel is seen."""
    return max(1, min(MAX_SEGMENT_STEPS, steps // _SEGMENTS))


class Run:
    """One job.

    Args:
        parts: what it stands on.
        lease: the right to run it.
        worker: a started worker; who started it kills it.
    """

    def __init__(self, parts: Parts, lease: Lease, worker: WorkerProcess) -> None:
        self._parts = parts
        self._lease = lease
        self._worker = worker
        self._channel = SyncChannel(worker.connection)
        self._tenant = lease.job.tenant
        self._job_id = ObjectId(lease.job.id)
        self._started = time.monotonic()
        self._renewed_at = float("-inf")
        self._segments = 0
        self._charged = 0
        self._checkpoint_at = 0
        self._entitled_in: int | None = None

    def work(self) -> int:
        """See the job through; return the version it made.

        Raises:
            CancelledError: the owner cancelled it.
            StoppingError: the server is stopping.
            ModelkeepError: it failed; code and message may be shown to its owner.
        """
        self._payload = self._open_payload()
        self._graph = parse_graph(self._payload.graph)
        with self._parts.database.tenant(self._tenant, by=_SYSTEM, read_only=True) as tx:
            row = tx.first(tx.select(training_jobs).where(training_jobs.c.job_id == self._job_id))
        if row is None:
            raise IntegrityError("the job's declaration is gone", code="job_damaged")
        self._owner, self._dataset_id = TenantId(row["dataset_owner"]), ObjectId(row["dataset_id"])
        self._reservation: ObjectId | None = row["reservation_id"]
        self._dataset = self._parts.datasets.declaration(self._owner, self._dataset_id)
        self._refuse_revoked()
        self._total = self._payload.spec.steps
        self._segment = segment_steps(self._total)
        self._step_cost = _StepCost(self._payload.plan, self._dataset)
        self._receive(READY)
        self._brief()
        return self._follow()

    def _open_payload(self) -> Payload:
        opened = self._parts.sealer.open(
            self._tenant,
            self._job_id,
            self._lease.job.payload,
            purpose=Purpose.GRAPH,
            version=1,
            name="job",
            suite=Suite.SMALL,
        )
        return msgspec.msgpack.decode(opened, type=Payload)

    def _brief(self) -> None:
        """Tell the worker what to do and stream it the rows and, if there are any, the weights to go on from."""
        payload = self._payload
        fields = {
            "spec": msgspec.to_builtins(payload.spec),
            "plan": None if payload.plan is None else msgspec.to_builtins(payload.plan),
            "dataset": to_builtins(self._dataset),
            "base": payload.base_model is not None,
            "segment_steps": self._segment,
        }
        self._send(Frame(kind="job", fields=fields, buffers=[payload.graph]))
        self._stream("rows", self._parts.datasets.open_rows(self._owner, self._dataset_id))
        if payload.base_model is not None:
            base_owner, model_id, version = payload.base_model
            weights = self._parts.models.open_weights(TenantId(base_owner), ObjectId(model_id), version)
            self._stream("weights", weights)

    def _stream(self, kind: str, chunks: Iterator[bytes]) -> None:
        for chunk in chunks:
            self._send(Frame(kind=kind, fields={"last": False}, buffers=[chunk]))
            self._renew()
        self._send(Frame(kind=kind, fields={"last": True}))

    def _follow(self) -> int:
        while True:
            frame = self._receive("segment", "blob", "done")
            if frame.kind == "segment":
                self._charge(frame.read(_Segment))
            elif frame.kind == "blob":
                self._keep_checkpoint(frame)
            else:
                return self._finish(frame)

    def _charge(self, asked: _Segment) -> None:
        """Charge a segment durably, then let the worker take its first step."""
        steps = min(self._segment, self._total - self._charged)
        # INVARIANT: a segment is run once. The ledger takes the same number twice as a repetition and charges nothing,
        # so a worker that repeated one would run for free.
        if asked != _Segment(self._segments, steps) or steps < 1:
            raise FrameError("the worker asked for other steps than were declared, and was ended")
        self._renew(force=True)
        # INVARIANT: nothing is charged, and no step runs, for whom the decision of now would refuse.
        self._refuse_revoked()
        parts, lease = self._parts, self._lease
        with parts.database.platform() as tx:
            own = tx.as_tenant(self._tenant)
            if self._payload.plan is not None:
                parts.ledger.charge(
                    tx.as_tenant(self._owner), self._reserved(), steps, lease.fence, segment=self._segments
                )
            spent = self._step_cost.epsilon(self._charged + steps)
            parts.queue.progress(own, lease, step=self._charged, epsilon_charged=spent)
            if self._segments == 0:
                parts.queue.log(own, lease, _opening(self._payload))
        self._segments += 1
        self._charged += steps
        self._send(Frame(kind="go"))

    def _refuse_revoked(self) -> None:
        """Ask again whether the job may go on, if anything that could change that has changed since."""
        epoch = self._parts.epoch.current()
        if epoch == self._entitled_in and not self._shared:
            return
        ref = ResourceRef(owner=self._owner, kind=Kind.DATASET, object_id=self._dataset_id)
        self._parts.entitlement.check(self._lease.job, dataset=ref, name=self._dataset.name)
        self._entitled_in = epoch

    @property
    def _shared(self) -> bool:
        # A grant also ends by the clock, which moves no epoch.
        return self._owner != self._tenant

    def _reserved(self) -> ObjectId:
        if self._reservation is None:
            raise IntegrityError("a private job has no reservation", code="job_damaged")
        return self._reservation

    def _keep_checkpoint(self, first: Frame) -> None:
        step, every = first.read(_Blob).step, self._payload.spec.checkpoint_every
        if every is None or step % every or not self._checkpoint_at < step <= self._charged:
            raise FrameError("the worker sent a checkpoint that was not asked for, and was ended")
        parts = self._parts
        weights = admitted(self._blobs(first, step), self._graph)
        parts.uploads.write_artifact(self._tenant, self._job_id, step, Purpose.CHECKPOINT, weights)
        if self._checkpoint_at:
            parts.uploads.delete(self._tenant, self._job_id, self._checkpoint_at)
        self._checkpoint_at = step
        self._log(f"checkpoint at step {step}, sealed")

    def _finish(self, frame: Frame) -> int:
        parts, payload, lease = self._parts, self._payload, self._lease
        if self._charged != self._total:
            raise FrameError("the worker ended before its last step")
        self._refuse_revoked()
        with parts.database.platform() as tx:
            if payload.plan is not None:
                # INVARIANT: nothing is released whose steps were not all charged before they ran.
                ran = frame.read(RanMechanism)
                parts.ledger.commit(tx.as_tenant(self._owner), self._reserved(), lease.fence, ran=ran)
            spent = self._step_cost.epsilon(self._total)
            parts.queue.progress(tx.as_tenant(self._tenant), lease, step=self._total, epsilon_charged=spent)
        graph = self._graph
        if payload.base_model is None:
            # The worker scaled each feature by the declared bounds; the served model takes raw units and scales them.
            graph = with_affine(graph, *self._dataset.scaling())
        first = self._receive("blob")
        version = parts.trained.register(
            owner=self._tenant,
            name=payload.spec.into,
            graph=graph,
            weights=admitted(self._blobs(first, 0), graph),
            principal=lease.job.principal,
            job_id=self._job_id,
            provenance={"dataset": payload.spec.dataset, "privacy": _label(payload.plan)},
            check_lease=lambda tx: parts.queue.check(tx, lease),
        )
        self._log(f"trained; `{payload.spec.into}` version {version}")
        return version

    def _blobs(self, frame: Frame, step: int) -> Iterator[bytes]:
        while True:
            head = frame.read(_Blob)
            if head.step != step or len(frame.buffers) != (0 if head.last else 1):
                raise FrameError("the worker mixed up what it sent, and was ended")
            if head.last:
                # Whoever lost the lease while it received must not make what was received visible.
                self._renew(force=True)
                return
            yield bytes(frame.buffers[0])
            self._renew()
            frame = self._receive("blob")

    def _send(self, frame: Frame) -> None:
        try:
            self._channel.send(frame, timeout_s=_SEND_S)
        except WorkerDiedError:
            raise self._worker.death() from None

    def _receive(self, *kinds: str) -> Frame:
        """Return the next frame, renewing the lease and heeding cancellation while it waits."""
        while not self._channel.wait(_WAIT_S):
            self._renew()
        try:
            frame = self._channel.receive(timeout_s=_SEND_S)
        except WorkerDiedError:
            raise self._worker.death() from None
        if frame.kind == FAULT:
            _log.warning("the worker of job %s failed: %s", self._job_id, fault_type(frame))
            raise fault(frame)
        if frame.kind not in kinds:
            raise FrameError("the worker sent what was not expected, and was ended")
        return frame

    def _renew(self, *, force: bool = False) -> None:
        if self._parts.stopping.is_set():
            raise StoppingError
        now = time.monotonic()
        if now - self._started > self._parts.max_job_s:
            raise JobFailedError("the job took longer than a job may; take fewer steps", code="job_timeout")
        if not force and now - self._renewed_at < _RENEW_S:
            return
        self._renewed_at = now
        with self._parts.database.tenant(self._tenant, by=_SYSTEM) as tx:
            cancelled = self._parts.queue.renew(tx, self._lease, lease_s=LEASE_S)
        if cancelled:
            raise CancelledError

    def _log(self, text: str) -> None:
        with self._parts.database.tenant(self._tenant, by=_SYSTEM) as tx:
            self._parts.queue.log(tx, self._lease, text)


class _StepCost:
    """ε of a job's own steps, by the dataset's conversion and no other."""

    def __init__(self, plan: MechanismPlan | None, dataset: DatasetSpec) -> None:
        budget = dataset.privacy.budget
        self._grid = None if plan is None or budget is None else fit_grid(epsilon=budget.epsilon, delta=budget.delta)
        self._cost = () if plan is None or self._grid is None else plan.step_cost(self._grid)

    def epsilon(self, steps: int) -> float | None:
        """Return ε of `steps` steps; None for a job without privacy."""
        return None if self._grid is None else self._grid.epsilon([unit * steps for unit in self._cost])


def fault_type(frame: Frame) -> str:
    """Return the type of a worker's exception for the operator's log, if Python has such a type; no word of its own."""
    name = str(frame.fields.get("type", ""))
    known = getattr(builtins, name, None)
    return name if isinstance(known, type) and issubclass(known, BaseException) else "no type of Python's own"


def fault(frame: Frame) -> JobFailedError:
    """Return the error of a worker's fault: by its code, never in its words."""
    code = str(frame.fields.get("code", ""))
    if frame.fields.get("type") == "MemoryError":
        code = "out_of_memory"
    if code in FAULTS:
        return JobFailedError(FAULTS[code], code=code)
    return JobFailedError("the training failed; check that the shapes of the model, the loss and the dataset agree")


def admitted(chunks: Iterable[bytes], graph: Graph) -> Iterator[bytes]:
    """Yield a worker's weights, after checking that they hold exactly the tensors of `graph`.

    Raises:
        UnprocessableError: they do not; what was yielded before must not become visible.
    """
    source = iter(chunks)
    head = next(source, b"")
    # Its length is what its header and the graph say, whatever is sent.
    prefix = safetensors_check.PREFIX_BYTES
    total = prefix + int.from_bytes(head[:prefix], "little") + graph.parameter_bytes()
    head = safetensors_check.check_stream(head, source, total, graph.parameters())
    count = 0
    for chunk in chain([head], source):
        count += len(chunk)
        if count > total:
            break  # nothing past the end is written: a worker could fill the disk
        yield chunk
    if count != total:
        raise safetensors_check.WeightsError("the weights are shorter or longer than their header says")


def _opening(payload: Payload) -> str:
    spec, plan = payload.spec, payload.plan
    shape = f"{spec.steps} steps at sampling rate {spec.sample_rate:g}, {spec.optimizer.name}, {spec.loss}"
    if plan is None:
        return f"training began: {shape}; without privacy, on public data"
    noise = f"noise multiplier {plan.noise_multiplier:g}, clipping norm {plan.clip_norm:g}"
    return f"training began: {shape}; {noise}; each segment is charged before it runs"


def _label(plan: MechanismPlan | None) -> dict[str, object] | None:
    if plan is None:
        return None
    return {
        "epsilon": plan.epsilon,
        "delta": plan.delta,
        "unit": plan.unit,
        "n_public": plan.n_public,
        "noise_multiplier": plan.noise_multiplier,
        "sample_rate": plan.sample_rate,
        "steps": plan.steps,
        "clip_norm": plan.clip_norm,
    }
