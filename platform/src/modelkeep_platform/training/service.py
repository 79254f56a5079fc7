"""Training jobs: plan, create, show, cancel.

Creating a job reserves its whole cost in the transaction that queues it, or refuses and spends nothing. What the
worker needs (the graph) is sealed under the job's own key.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import msgspec

from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import TenantCaller
from modelkeep_platform.core.decisions import Decision
from modelkeep_platform.core.errors import RateLimitedError
from modelkeep_platform.core.events import Event, Facts, Outcome
from modelkeep_platform.core.ids import ObjectId, TenantId
from modelkeep_platform.core.ports import Authorizer, Recorder, Sealer
from modelkeep_platform.core.refs import Kind, ResourceRef, collection, missing
from modelkeep_platform.datasets.service import Dataset, DatasetService
from modelkeep_platform.jobs.queue import Job, JobQueue, sort_key
from modelkeep_platform.models.events import model_event
from modelkeep_platform.models.graph.format import Graph, with_affine
from modelkeep_platform.models.graph.format import parse as parse_graph
from modelkeep_platform.models.service import ModelService
from modelkeep_platform.models.values import ServableVersion
from modelkeep_platform.privacy.budgets import PlannedJob
from modelkeep_platform.privacy.ledger import BudgetLedger
from modelkeep_platform.privacy.ops import check_private_ops
from modelkeep_platform.privacy.plan import MechanismPlan
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.pages import Page, PageRequest, not_ours, page_of
from modelkeep_platform.storage.tables.training import training_jobs
from modelkeep_platform.storage.transactions import System
from modelkeep_platform.training import state
from modelkeep_platform.training.endings import JobEndings
from modelkeep_platform.training.payload import Payload, seal_payload
from modelkeep_platform.training.rows import subject_of
from modelkeep_platform.training.shapes import check_shapes
from modelkeep_platform.training.spec import InvalidJobError, JobModel, JobSpec, parse
from modelkeep_platform.training.values import JobFailure, JobResult, LogLine, Plan, Progress, TrainingJob
from modelkeep_platform.uploads.service import UploadService

KIND: Final = "training"
MAX_PLANS_AT_ONCE: Final = 2
_CURSOR_CHARS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    caller: TenantId
    spec: JobSpec
    dataset: Dataset
    decision: Decision
    graph: Graph
    base: ServableVersion | None


class TrainingService:
    """Takes training jobs.

    Args:
        database: where jobs are.
        authorizer: decides every call.
        recorder: writes what was done.
        queue: keeps jobs.
        ledger: keeps budgets.
        datasets: what is trained on.
        models: what is trained.
        sealer: seals what workers need.
        uploads: knows how much room there is for what jobs make.
        endings: ends jobs that are cancelled.
    """

    def __init__(
        self,
        *,
        database: Database,
        authorizer: Authorizer,
        recorder: Recorder,
        queue: JobQueue,
        ledger: BudgetLedger,
        datasets: DatasetService,
        models: ModelService,
        sealer: Sealer,
        uploads: UploadService,
        endings: JobEndings,
    ) -> None:
        self._uploads = uploads
        self._endings = endings
        self._database = database
        self._authorizer = authorizer
        self._recorder = recorder
        self._queue = queue
        self._ledger = ledger
        self._datasets = datasets
        self._models = models
        self._places = threading.Lock()
        self._under_way: Counter[TenantId] = Counter()
        self._sealer = sealer

    def plan(self, caller: TenantCaller, declaration: object) -> Plan:
        """Say what a job would cost and whether it fits; nothing is spent.

        Raises:
            UnprocessableError: the declaration, the shapes or a layer cannot be.
            NotFoundError: no such dataset or model for this caller.
            ForbiddenError: not allowed.
        """
        prepared = self._prepare(caller, declaration, Action.JOB_PLAN)
        planned = self._planned(prepared)
        spec = prepared.spec
        if planned is None:
            return Plan(private=False, steps=spec.steps, sample_rate=spec.sample_rate)
        mechanism = planned.mechanism
        return Plan(
            private=True,
            steps=mechanism.steps,
            sample_rate=mechanism.sample_rate,
            noise_multiplier=mechanism.noise_multiplier,
            clip_norm=mechanism.clip_norm,
            epsilon=mechanism.epsilon,
            delta=mechanism.delta,
            n_public=mechanism.n_public,
            fits=planned.fits,
            largest_epsilon=planned.largest_epsilon,
            epsilon_spent_before=planned.epsilon_spent_before,
            epsilon_spent_after=planned.epsilon_spent_after,
            accountant="filter",
            rdp_epsilon=mechanism.rdp_epsilon(),
        )

    def create(self, caller: TenantCaller, declaration: object) -> TrainingJob:
        """Reserve a job's cost and queue it.

        Raises:
            BudgetError: it does not fit; nothing was spent, and the error names the largest ε that fits.
            UnprocessableError: the declaration, the shapes or a layer cannot be.
            NotFoundError: no such dataset or model for this caller.
            ForbiddenError: not allowed.
            RateLimitedError: too many jobs.
            ConflictError: its checkpoints and its result do not fit the tenant's storage.
        """
        prepared = self._prepare(caller, declaration, Action.JOB_CREATE)
        planned = self._planned(prepared)
        plan = None if planned is None else planned.mechanism
        job_id = ObjectId(self._queue.new_id())
        with self._database.tenant(caller.tenant, by=caller) as tx:
            self._sealer.create_key(tx, caller.tenant, job_id)
        declared = msgspec.structs.replace(prepared.spec, model=JobModel())
        base = prepared.base
        payload = Payload(
            spec=declared,
            graph=prepared.graph.to_json(),
            plan=plan,
            base_model=None if base is None else (base.ref.owner, base.ref.object_id, base.version),
            base_alias="" if base is None else base.alias,
        )
        sealed = seal_payload(self._sealer, caller.tenant, job_id, payload)
        try:
            job = self._enqueue(caller, prepared, plan, job_id, sealed)
        except Exception:
            with self._database.tenant(caller.tenant, by=caller) as tx:
                self._sealer.destroy_key(tx, caller.tenant, job_id)
            raise
        return self._show(caller.tenant, job)

    def get(self, caller: TenantCaller, job_id: str) -> TrainingJob:
        """Return a job; raises NotFoundError."""
        return self._show(caller.tenant, self._require(caller, Action.JOB_READ, job_id))

    def list(self, caller: TenantCaller, page: PageRequest) -> Page[TrainingJob]:
        """Return the tenant's jobs, newest first."""
        decision = self._authorizer.require(caller, Action.JOB_LIST, collection(caller.tenant, Kind.JOB))
        with self._database.tenant(caller.tenant, by=decision, read_only=True) as tx:
            found = self._queue.list(tx, after=page.after(), limit=page.limit + 1)
        keys = [sort_key(job) for job in found]
        return page_of([self._show(caller.tenant, job) for job in found], page, keys)

    def cancel(self, caller: TenantCaller, job_id: str) -> TrainingJob:
        """Ask for a job to end. What it ran stays charged; the rest returns when its worker is gone."""
        job = self._require(caller, Action.JOB_CANCEL, job_id)
        with self._database.platform() as tx:
            ended = self._endings.cancel(tx, job, by=caller)
            self._recorder.record(tx, _event(caller, Action.JOB_CANCEL, ObjectId(job.id)))
        if ended:
            self._endings.discard(job)
        return self.get(caller, job_id)

    def logs(self, caller: TenantCaller, job_id: str, page: PageRequest) -> Page[LogLine]:
        """Return a job's log, oldest first; it holds no data."""
        job = self._require(caller, Action.JOB_READ, job_id)
        after = page.after()
        start = int(after) if after.isascii() and after.isdigit() and len(after) < _CURSOR_CHARS else -1
        if after and start < 0:
            raise not_ours()
        with self._database.tenant(caller.tenant, by=caller, read_only=True) as tx:
            lines = self._queue.lines(tx, job.id, after=start, limit=page.limit + 1)
        shown = [LogLine(at=line.at, text=line.text) for line in lines]
        return page_of(shown, page, [str(line.number) for line in lines])

    def _prepare(self, caller: TenantCaller, declaration: object, action: Action) -> _Prepared:
        into = declaration.get("into", "") if isinstance(declaration, dict) else ""
        self._authorizer.require(caller, action, collection(caller.tenant, Kind.JOB), {"name": str(into)[:64]})
        spec = parse(declaration)
        if action is Action.JOB_CREATE:
            # What the job makes is a model: whoever may not make one of this name may not have it trained either.
            models = collection(caller.tenant, Kind.MODEL)
            self._authorizer.require(caller, Action.MODEL_CREATE, models, {"name": spec.into})
        dataset, decision = self._datasets.resolve_for_training(caller, spec.dataset)
        graph, base = self._model(caller, spec)
        check_shapes(graph, dataset.spec, spec.loss)
        if base is None:
            # What will be served has one operation more; a graph that has no room for it must not cost anything.
            with_affine(graph, *dataset.spec.scaling())
        if dataset.spec.private and spec.privacy is None:
            raise InvalidJobError(
                f"the dataset `{spec.dataset}` is private: give `privacy` with `epsilon` and `clip_norm`",
                code="privacy_required",
            )
        if not dataset.spec.private and spec.privacy is not None:
            raise InvalidJobError(f"the dataset `{spec.dataset}` is public and has no budget: leave `privacy` out")
        if spec.privacy is not None:
            check_private_ops(graph.operations())
        return _Prepared(caller=caller.tenant, spec=spec, dataset=dataset, decision=decision, graph=graph, base=base)

    def _model(self, caller: TenantCaller, spec: JobSpec) -> tuple[Graph, ServableVersion | None]:
        if spec.model.graph is not None:
            return parse_graph(msgspec.json.encode(spec.model.graph)), None
        version = None if spec.model.version is None else str(spec.model.version)
        found = self._models.resolve_version(caller, spec.model.name or "", version, Action.MODEL_EXPORT)
        return found.graph, found

    @contextmanager
    def _calibrating(self, tenant: TenantId) -> Iterator[None]:
        """Hold one of the tenant's places for arithmetic that takes a tenth of a second.

        Raises:
            RateLimitedError: both are taken.
        """
        with self._places:
            if self._under_way[tenant] >= MAX_PLANS_AT_ONCE:
                raise RateLimitedError(
                    f"{MAX_PLANS_AT_ONCE} jobs of this tenant are being planned; wait for one of them",
                    retry_after_s=1,
                    code="too_many_plans",
                )
            self._under_way[tenant] += 1
        try:
            yield
        finally:
            with self._places:
                self._under_way[tenant] -= 1
                if not self._under_way[tenant]:
                    del self._under_way[tenant]

    def _planned(self, prepared: _Prepared) -> PlannedJob | None:
        privacy, declared = prepared.spec.privacy, prepared.dataset.spec.privacy
        if privacy is None:
            return None
        owner = prepared.dataset.owner
        tenant = prepared.caller
        with (
            self._calibrating(tenant),
            self._database.tenant(owner, by=System(reason="plan a job"), read_only=True) as tx,
        ):
            return self._ledger.plan(
                tx,
                prepared.dataset.id,
                epsilon=privacy.epsilon,
                sample_rate=prepared.spec.sample_rate,
                steps=prepared.spec.steps,
                clip_norm=privacy.clip_norm,
                n_public=declared.n_public or 1,
                unit=declared.unit or "row",
            )

    def _enqueue(
        self, caller: TenantCaller, prepared: _Prepared, plan: MechanismPlan | None, job_id: ObjectId, sealed: bytes
    ) -> Job:
        # One transaction: what it costs is reserved, or the job does not exist.
        with self._database.platform() as tx:
            own, owners = tx.as_tenant(caller.tenant), tx.as_tenant(prepared.dataset.owner)
            stored = _stored_bytes(prepared)
            self._uploads.check_room(own, stored, principal=caller.principal)
            reservation = None
            if plan is not None:
                reservation = self._ledger.reserve(owners, prepared.dataset.id, job_id, plan).id
            own.insert(
                training_jobs,
                job_id=job_id,
                dataset=prepared.spec.dataset,
                dataset_owner=prepared.dataset.owner,
                dataset_id=prepared.dataset.id,
                target_model=prepared.spec.into,
                reservation_id=reservation,
            )
            job = self._queue.enqueue(
                own,
                job_id=job_id,
                kind=KIND,
                name=prepared.spec.into,
                payload=sealed,
                principal=caller.principal,
                steps=prepared.spec.steps,
                stored_bytes=stored,
            )
            facts: dict[str, str | int | bool] = {"dataset": str(prepared.dataset.id), "private": plan is not None}
            if plan is not None:
                facts |= {"epsilon": f"{plan.epsilon:g}", "steps": plan.steps, "plan": plan.digest()}
            self._recorder.record(tx, _event(caller, Action.JOB_CREATE, job_id, facts))
            # In the log of the dataset's owner too, who may be another tenant.
            self._recorder.record(
                tx,
                Event(
                    tenant=prepared.dataset.owner,
                    action=Action.DATASET_TRAIN,
                    outcome=Outcome.DONE,
                    actor=caller,
                    ref=prepared.decision.ref,
                    decision=prepared.decision,
                    facts={**facts, "job": job_id},
                ),
            )
            base = prepared.base
            if base is not None:
                # The worker gets the weights: in the log of their owner that is what a download is.
                taken = model_event(
                    caller,
                    Action.MODEL_EXPORT,
                    base.ref.object_id,
                    Outcome.DONE,
                    owner=base.ref.owner,
                    version=base.version,
                    job=job_id,
                )
                self._recorder.record(tx, taken)
        return job

    def _require(self, caller: TenantCaller, action: Action, job_id: str) -> Job:
        with self._database.tenant(caller.tenant, by=caller, read_only=True) as tx:
            job = self._queue.find(tx, job_id)
        if job is None:
            self._authorizer.require(caller, action, missing(caller.tenant, Kind.JOB))
            raise RuntimeError("a missing object was allowed")
        ref = ResourceRef(owner=caller.tenant, kind=Kind.JOB, object_id=ObjectId(job.id))
        self._authorizer.require(caller, action, ref, {"name": job.name})
        return job

    def _show(self, tenant: TenantId, job: Job) -> TrainingJob:
        with self._database.tenant(tenant, by=System(reason="show a job"), read_only=True) as tx:
            subject = subject_of(tx, job.id)
        return TrainingJob(
            id=job.id,
            name=job.name,
            state=job.state,
            dataset="" if subject is None else subject.dataset,
            into=job.name,
            created_at=job.created_at,
            started_at=job.started_at,
            finished_at=job.finished_at,
            progress=Progress(step=job.step, steps=job.steps, epsilon_charged=job.epsilon_charged),
            error=None if job.error_code is None else JobFailure(code=job.error_code, message=job.error_message or ""),
            result=None if job.result_version is None else JobResult(model=job.name, version=job.result_version),
            created_by=job.principal,
        )


def _stored_bytes(prepared: _Prepared) -> int:
    """Return what a job sets aside: its result, and a checkpoint, or two while one replaces the other."""
    checkpoint = state.size_bytes(prepared.spec.optimizer, prepared.graph.parameters())
    return prepared.graph.parameter_bytes() + checkpoint * (1 if prepared.spec.checkpoint_every is None else 2)


def _event(caller: TenantCaller, action: Action, job_id: ObjectId, facts: Facts | None = None) -> Event:
    return Event(
        tenant=caller.tenant,
        action=action,
        outcome=Outcome.DONE,
        actor=caller,
        ref=ResourceRef(owner=caller.tenant, kind=Kind.JOB, object_id=job_id),
        facts=dict(facts or {}),
    )
