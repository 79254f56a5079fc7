"""One job, from claim to version: charges each segment before it runs, keeps checkpoints, makes the version.

What the worker says is heard by `dialogue`; here is what is done about it. Segments are counted here, the trained graph
is made here, and its weights are admitted like an upload. A server that stops lets the worker end its segment, keeps a
checkpoint, and puts the job back into the queue: the next run goes on there, and no step is charged or run twice.
"""

import logging
import threading
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

from modelkeep_platform.core.errors import IntegrityError
from modelkeep_platform.core.ids import ObjectId, TenantId
from modelkeep_platform.core.ports import EpochSource, Sealer
from modelkeep_platform.core.refs import Kind, ResourceRef
from modelkeep_platform.core.sealing import Purpose
from modelkeep_platform.datasets.service import DatasetService
from modelkeep_platform.datasets.spec import DatasetSpec, to_builtins
from modelkeep_platform.jobs.queue import JobQueue, Lease
from modelkeep_platform.models.graph.format import parse as parse_graph
from modelkeep_platform.models.graph.format import with_affine
from modelkeep_platform.models.rows import Allocated
from modelkeep_platform.models.safetensors_check import admitted
from modelkeep_platform.models.service import ModelService
from modelkeep_platform.models.trained import TrainedModels
from modelkeep_platform.privacy.grid import fit_grid
from modelkeep_platform.privacy.ledger import BudgetLedger
from modelkeep_platform.privacy.plan import MechanismPlan, RanMechanism
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.transactions import System
from modelkeep_platform.training import state
from modelkeep_platform.training.dialogue import Checkpoint, Dialogue, Done, Segment
from modelkeep_platform.training.endings import JobEndings
from modelkeep_platform.training.entitlement import Entitlement
from modelkeep_platform.training.heartbeat import MAX_JOB_S, MAX_SILENCE_S, Heartbeat, StoppingError
from modelkeep_platform.training.payload import Payload, open_payload
from modelkeep_platform.training.rows import subject_of
from modelkeep_platform.uploads.artifacts import Artifacts
from modelkeep_platform.workers.errors import FrameError
from modelkeep_platform.workers.process import WorkerProcess

MAX_SEGMENT_STEPS: Final = 50
_SEGMENTS: Final = 40
_SYSTEM: Final = System(reason="run a job")

_log = logging.getLogger(__name__)


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
        artifacts: keeps checkpoints.
        sealer: opens what the service sealed.
        entitlement: says whether a job may go on.
        endings: ends jobs.
        epoch: moves with everything that could change that.
        max_job_s: how long one job may take.
        max_silence_s: how long its worker may say nothing.
        stopping: set when the server stops.
    """

    database: Database
    queue: JobQueue
    ledger: BudgetLedger
    datasets: DatasetService
    models: ModelService
    trained: TrainedModels
    artifacts: Artifacts
    sealer: Sealer
    entitlement: Entitlement
    endings: JobEndings
    epoch: EpochSource
    max_job_s: float = MAX_JOB_S
    max_silence_s: float = MAX_SILENCE_S
    stopping: threading.Event = field(default_factory=threading.Event)


def segment_steps(steps: int) -> int:
    """Return how many steps are charged at once: what a crash can cost at most, and when a cancel is seen."""
    return max(1, min(MAX_SEGMENT_STEPS, steps // _SEGMENTS))


class Run:
    """One job.

    Args:
        parts: what it stands on.
        lease: the right to run it.
        worker: a started worker; who started it ends it.
    """

    def __init__(self, parts: Parts, lease: Lease, worker: WorkerProcess) -> None:
        self._parts = parts
        self._lease = lease
        self._heartbeat = Heartbeat(
            database=parts.database,
            queue=parts.queue,
            lease=lease,
            stopping=parts.stopping,
            max_job_s=parts.max_job_s,
        )
        self._dialogue = Dialogue(worker, self._heartbeat, job_id=lease.job.id, max_silence_s=parts.max_silence_s)
        self._tenant = lease.job.tenant
        self._job_id = ObjectId(lease.job.id)
        self._begin = self._charged = self._checkpoint_at = lease.job.step
        self._entitled_in: int | None = None

    def work(self) -> None:
        """See the job through to its version; it has succeeded when this returns, or waits again for a server.

        Raises:
            CancelledError: the owner cancelled it.
            ModelkeepError: it failed; code and message may be shown to its owner.
        """
        self._payload = open_payload(self._parts.sealer, self._tenant, self._job_id, self._lease.job.payload)
        self._graph = parse_graph(self._payload.graph)
        with self._parts.database.tenant(self._tenant, by=_SYSTEM, read_only=True) as tx:
            subject = subject_of(tx, self._job_id)
        if subject is None or (subject.reservation is None) != (self._payload.plan is None):
            # Without its reservation a private job would run unpaid.
            raise IntegrityError("the job's declaration is gone or was changed", code="job_damaged")
        self._subject = subject
        self._dataset = self._parts.datasets.declaration(self._subject.dataset_owner, self._subject.dataset_id)
        self._refuse_revoked()
        self._total = self._payload.spec.steps
        self._segment = segment_steps(self._total)
        self._segments = self._begin // self._segment
        self._step_cost = _StepCost(self._payload.plan, self._dataset)
        try:
            self._brief()
            self._train()
        except StoppingError:
            self._put_back()

    def _train(self) -> None:
        while not isinstance(said := self._dialogue.hear(), Done):
            if isinstance(said, Segment):
                self._heartbeat.stoppable = False
                if self._heartbeat.stopping:
                    self._stop(said)
                    return
                self._charge(said)
                self._dialogue.go()
            else:
                self._keep(said)
        self._finish(said)

    def _brief(self) -> None:
        """Tell the worker what to do, and stream it the rows and whatever it is to go on from."""
        payload, subject = self._payload, self._subject
        job = {
            "spec": msgspec.to_builtins(payload.spec),
            "plan": None if payload.plan is None else msgspec.to_builtins(payload.plan),
            "dataset": to_builtins(self._dataset),
            "base": payload.base_model is not None,
            "segment_steps": self._segment,
            "begin": self._begin,
        }
        self._dialogue.brief(job, payload.graph)
        rows = self._parts.datasets.open_rows(subject.dataset_owner, subject.dataset_id)
        self._dialogue.stream("rows", rows)
        if self._begin:
            kept = self._parts.artifacts.read(self._tenant, self._job_id, self._begin, Purpose.CHECKPOINT)
            self._dialogue.stream("state", kept)
        elif payload.base_model is not None:
            base_owner, model_id, version = payload.base_model
            weights = self._parts.models.open_weights(TenantId(base_owner), ObjectId(model_id), version)
            self._dialogue.stream("weights", weights)

    def _charge(self, asked: Segment) -> None:
        """Charge a segment durably; the worker takes its first step after that."""
        steps = self._due(asked)
        self._heartbeat.beat(force=True)
        # INVARIANT: nothing is charged, and no step runs, for whom the decision of now would refuse.
        self._refuse_revoked()
        parts, lease, subject = self._parts, self._lease, self._subject
        with parts.database.platform() as tx:
            own = tx.as_tenant(self._tenant)
            if subject.reservation is not None:
                owners = tx.as_tenant(subject.dataset_owner)
                parts.ledger.charge(owners, subject.reservation, steps, lease.fence, segment=self._segments)
            spent = self._step_cost.epsilon(self._charged + steps)
            parts.queue.progress(own, lease, step=self._charged, epsilon_charged=spent)
            if self._segments == 0:
                parts.queue.log(own, lease, _opening(self._payload))
            elif self._charged == self._begin:
                parts.queue.log(own, lease, f"training goes on after step {self._begin}")
        self._segments += 1
        self._charged += steps

    def _due(self, asked: Segment) -> int:
        """Return how many steps the next segment has, if it is what the worker asks for."""
        steps = min(self._segment, self._total - self._charged)
        # INVARIANT: a segment is run once. The ledger takes the same number twice as a repetition and charges nothing,
        # so a worker that repeated one would run for free.
        if asked != Segment(self._segments, steps) or steps < 1:
            raise FrameError("the worker asked for other steps than were declared, and was ended")
        return steps

    def _stop(self, asked: Segment) -> None:
        """Keep a checkpoint in place of the segment that the worker asks for, and let the job wait again."""
        self._due(asked)
        self._heartbeat.beat(force=True)
        if self._charged > self._checkpoint_at:
            self._dialogue.stop()
            sent = self._dialogue.hear()
            if not isinstance(sent, Checkpoint) or sent.step != self._charged:
                raise FrameError("the worker was told to stop and went on, and was ended")
            self._store(sent)
        self._put_back()

    def _put_back(self) -> None:
        """Let the job wait for another server, or this one when it is back; what it was charged, it ran."""
        parts, lease, step = self._parts, self._lease, self._charged
        with parts.database.tenant(self._tenant, by=_SYSTEM) as tx:
            parts.queue.put_back(tx, lease, step=step, epsilon_charged=self._step_cost.epsilon(step))
        _log.info("job %s waits again, after step %d of %d", self._job_id, step, self._total)

    def _refuse_revoked(self) -> None:
        """Ask again whether the job may go on, if anything that could change that has changed since."""
        subject, epoch, base = self._subject, self._parts.epoch.current(), self._payload.base_model
        # A grant also ends by the clock, which moves no epoch.
        foreign = subject.dataset_owner != self._tenant or (base is not None and base[0] != self._tenant)
        if epoch == self._entitled_in and not foreign:
            return
        ref = ResourceRef(owner=subject.dataset_owner, kind=Kind.DATASET, object_id=subject.dataset_id)
        self._parts.entitlement.check(self._lease.job, payload=self._payload, dataset=ref, name=self._dataset.name)
        self._entitled_in = epoch

    def _keep(self, sent: Checkpoint) -> None:
        step, every = sent.step, self._payload.spec.checkpoint_every
        if every is None or step % every or not self._checkpoint_at < step <= self._charged:
            raise FrameError("the worker sent a checkpoint that was not asked for, and was ended")
        self._store(sent)

    def _store(self, sent: Checkpoint) -> None:
        parts, step = self._parts, sent.step
        kept = admitted(sent.chunks, state.tensors(self._payload.spec.optimizer, self._graph.parameters()))
        parts.artifacts.write(self._tenant, self._job_id, step, Purpose.CHECKPOINT, kept)
        if self._checkpoint_at:
            parts.artifacts.discard(self._tenant, self._job_id, self._checkpoint_at)
        self._checkpoint_at = step
        with parts.database.tenant(self._tenant, by=_SYSTEM) as tx:
            parts.queue.log(tx, self._lease, f"checkpoint at step {step}, sealed")

    def _finish(self, done: Done) -> None:
        if self._charged != self._total:
            raise FrameError("the worker ended before its last step")
        self._refuse_revoked()
        graph = self._graph
        if self._payload.base_model is None:
            # The worker scaled each feature by the declared bounds; the served model takes raw units and scales them.
            graph = with_affine(graph, *self._dataset.scaling())
        new = self._begin_version()
        made = self._parts.trained.store(self._tenant, new, graph, self._dialogue.result())
        # INVARIANT: nothing becomes visible of a job that the decision of now would refuse.
        self._refuse_revoked()
        self._parts.endings.succeed(
            self._lease, made, ran=self._ran(done), epsilon_charged=self._step_cost.epsilon(self._total)
        )

    def _ran(self, done: Done) -> RanMechanism | None:
        """Return what ran in all: a worker tells of itself alone, and each step before it was run by another."""
        return None if done.ran is None else replace(done.ran, steps=self._begin + done.ran.steps)

    def _begin_version(self) -> Allocated:
        payload = self._payload
        with self._parts.database.tenant(self._tenant, by=_SYSTEM) as tx:
            self._parts.queue.check(tx, self._lease)
            return self._parts.trained.begin(
                tx,
                payload.spec.into,
                job_id=self._job_id,
                principal=self._lease.job.principal,
                provenance={"dataset": payload.spec.dataset, "privacy": _label(payload.plan)},
            )


class _StepCost:
    """ε of a job's own steps, by the dataset's conversion and no other."""

    def __init__(self, plan: MechanismPlan | None, dataset: DatasetSpec) -> None:
        budget = dataset.privacy.budget
        self._grid = None if plan is None or budget is None else fit_grid(epsilon=budget.epsilon, delta=budget.delta)
        self._cost = () if plan is None or self._grid is None else plan.step_cost(self._grid)

    def epsilon(self, steps: int) -> float | None:
        """Return ε of `steps` steps; None for a job without privacy."""
        return None if self._grid is None else self._grid.epsilon([unit * steps for unit in self._cost])


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
