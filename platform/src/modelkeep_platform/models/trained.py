"""Versions that jobs train: a number is taken, bytes are sealed under it, and it becomes visible with its job's end.

Each of the three is a step of its own, because bytes are written outside of transactions. The transactions are the
caller's, and find the job's lease still held. What a job that ends otherwise had begun is dropped as it ends.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.events import Event, Outcome
from modelkeep_platform.core.ids import ObjectId, TenantId
from modelkeep_platform.core.ports import Clock, Entropy, Recorder, Sealer
from modelkeep_platform.core.refs import Kind, ResourceRef
from modelkeep_platform.core.sealing import Purpose
from modelkeep_platform.models.graph.format import Graph
from modelkeep_platform.models.rows import (
    PENDING,
    READY,
    Allocated,
    add_pending,
    allocate,
    change_pending,
    drop_pending,
)
from modelkeep_platform.models.safetensors_check import admitted
from modelkeep_platform.models.versions import Versions
from modelkeep_platform.storage.tables.models import model_versions
from modelkeep_platform.storage.transactions import TenantTransaction
from modelkeep_platform.uploads.artifacts import Artifacts


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedVersion:
    """A version whose bytes are stored and that nobody sees yet."""

    model_id: ObjectId
    version: int
    graph_sealed: bytes
    graph_sha256: str
    weights_sha256: str
    weights_bytes: int


class TrainedModels:
    """Makes what jobs trained versions; it decides nothing, the job was allowed when it was created.

    Args:
        recorder: writes what was done.
        artifacts: takes sealed bytes.
        sealer: makes and destroys the keys of models.
        versions: seals graphs.
        clock: stamps versions.
        entropy: names models.
    """

    def __init__(
        self,
        *,
        recorder: Recorder,
        artifacts: Artifacts,
        sealer: Sealer,
        versions: Versions,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._recorder = recorder
        self._artifacts = artifacts
        self._sealer = sealer
        self._versions = versions
        self._clock = clock
        self._entropy = entropy

    def begin(
        self, tx: TenantTransaction, name: str, *, job_id: ObjectId, principal: str, provenance: Mapping[str, Any]
    ) -> Allocated:
        """Take the next number of a model for what a job trained; once for each job.

        Args:
            tx: an open transaction of the owner, which found the job's lease held.
            name: the model's name; a new one makes a new model.
            job_id: the job.
            principal: who started it.
            provenance: dataset and privacy, without data.
        """
        new = allocate(tx, name, "", clock=self._clock, entropy=self._entropy)
        if new.is_new_model:
            self._sealer.create_key(tx, tx.owner, new.model_id)
        add_pending(
            tx,
            new,
            created_at=self._clock.now_s(),
            created_by=principal,
            provenance={"source": "job", "job_id": job_id, **provenance},
            job_id=job_id,
        )
        return new

    def store(self, owner: TenantId, new: Allocated, graph: Graph, weights: Iterable[bytes]) -> TrainedVersion:
        """Admit a version's weights like an upload's, seal them as they come, and its graph.

        Args:
            owner: whose model.
            new: what `begin` returned.
            graph: what was trained.
            weights: a safetensors file, in chunks.

        Raises:
            UnprocessableError: the weights are not those of the graph.
            IntegrityError: the model was deleted meanwhile, with its key.
        """
        chunks = admitted(weights, graph.parameters())
        manifest = self._artifacts.write(owner, new.model_id, new.version, Purpose.WEIGHTS, chunks)
        return TrainedVersion(
            model_id=new.model_id,
            version=new.version,
            graph_sealed=self._versions.seal_graph(owner, new.model_id, new.version, graph),
            graph_sha256=graph.sha256(),
            weights_sha256=manifest.sha256,
            weights_bytes=manifest.size_bytes,
        )

    def publish(self, tx: TenantTransaction, made: TrainedVersion, *, job_id: ObjectId) -> None:
        """Make a version visible, in the transaction that ends its job and found the lease held.

        Raises:
            ConflictError: the model was deleted meanwhile.
        """
        change_pending(
            tx,
            made.model_id,
            made.version,
            state=READY,
            graph_sealed=made.graph_sealed,
            graph_sha256=made.graph_sha256,
            weights_sha256=made.weights_sha256,
            weights_bytes=made.weights_bytes,
            created_at=self._clock.now_s(),
        )
        event = Event(
            tenant=tx.owner,
            action=Action.MODEL_CREATE,
            outcome=Outcome.DONE,
            ref=ResourceRef(owner=tx.owner, kind=Kind.MODEL, object_id=made.model_id),
            facts={"version": made.version, "job": job_id},
        )
        self._recorder.record(tx, event)
        tx.bump_epoch()

    def drop(self, tx: TenantTransaction, job_id: str) -> tuple[ObjectId, int] | None:
        """Drop what a job began to make, in the transaction that ends it; return model and number, if it had begun.

        The bytes go after that transaction, by whoever made it or by `uploads.orphans`.
        """
        columns = (model_versions.c.model_id, model_versions.c.version)
        where = (model_versions.c.job_id == job_id, model_versions.c.state == PENDING)
        row = tx.first(tx.select(model_versions, *columns).where(*where))
        if row is None:
            return None
        drop_pending(tx, self._sealer, ObjectId(row["model_id"]), row["version"])
        return ObjectId(row["model_id"]), row["version"]
