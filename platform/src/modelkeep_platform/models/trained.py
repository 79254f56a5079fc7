"""Versions that jobs trained: sealed as the weights come, visible in the transaction that finds the lease still held.

What trained a version is its job, and a job makes one version: registered again, it gives the same one.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.events import Event, Outcome
from modelkeep_platform.core.ids import ObjectId, TenantId
from modelkeep_platform.core.ports import Clock, Entropy, EpochSource, Recorder
from modelkeep_platform.core.refs import Kind, ResourceRef
from modelkeep_platform.core.sealing import Purpose
from modelkeep_platform.models.graph.format import Graph
from modelkeep_platform.models.rows import READY, allocate, drop_pending, of_job, ready, require_model
from modelkeep_platform.models.versions import Versions
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.tables.models import model_versions
from modelkeep_platform.storage.transactions import System, TenantTransaction
from modelkeep_platform.uploads.service import UploadService

_SYSTEM: Final = System(reason="register a trained model")


class TrainedModels:
    """Makes what jobs trained versions; it decides nothing, the job was allowed when it was created.

    Args:
        database: where the registry is.
        recorder: writes what was done.
        uploads: takes sealed bytes.
        versions: seals graphs.
        clock: stamps versions.
        entropy: names models.
        epoch: moved when a version becomes visible.
    """

    def __init__(
        self,
        *,
        database: Database,
        recorder: Recorder,
        uploads: UploadService,
        versions: Versions,
        clock: Clock,
        entropy: Entropy,
        epoch: EpochSource,
    ) -> None:
        self._database = database
        self._recorder = recorder
        self._uploads = uploads
        self._versions = versions
        self._clock = clock
        self._entropy = entropy
        self._epoch = epoch

    def register(
        self,
        *,
        owner: TenantId,
        name: str,
        graph: Graph,
        weights: Iterable[bytes],
        principal: str,
        job_id: str,
        provenance: Mapping[str, Any],
        check_lease: Callable[[TenantTransaction], None],
    ) -> int:
        """Make what a job trained a version; the same job again gives the same version.

        Args:
            owner: whose model.
            name: the model's name; a new one makes a new model.
            graph: what was trained.
            weights: a safetensors file, in chunks; sealed as they come.
            principal: who started the job.
            job_id: the job.
            provenance: dataset, privacy and job, without data.
            check_lease: raises when the job is another's by now; asked within each transaction that writes.

        Returns:
            The version's number.

        Raises:
            StaleLeaseError: `check_lease` raised it; nothing became visible.
            ConflictError: the model was deleted meanwhile.
        """
        with self._database.tenant(owner, by=_SYSTEM) as tx:
            check_lease(tx)
            known = of_job(tx, job_id)
            if known is not None:
                return known
            new = allocate(tx, name, "", clock=self._clock, entropy=self._entropy)
            model_id, version = new.model_id, new.version
            if new.is_new_model:
                self._uploads.create_key(tx, owner, model_id)
        try:
            manifest = self._uploads.write_artifact(owner, model_id, version, Purpose.WEIGHTS, weights)
            sealed = self._versions.seal_graph(owner, model_id, version, graph)
            known = self._add(
                owner,
                check_lease,
                model_id=model_id,
                version=version,
                graph_sealed=sealed,
                graph_sha256=graph.sha256(),
                weights_sha256=manifest.sha256,
                weights_bytes=manifest.size_bytes,
                job_id=job_id,
                provenance=json.dumps({"source": "job", "job_id": job_id, **provenance}),
                created_by=principal,
            )
        except Exception:
            self._discard(owner, model_id, version)
            raise
        if known is not None:
            self._discard(owner, model_id, version)
            return known
        self._epoch.refresh()
        return version

    def _add(
        self,
        owner: TenantId,
        check_lease: Callable[[TenantTransaction], None],
        *,
        model_id: ObjectId,
        version: int,
        job_id: str,
        **columns: str | bytes | int,
    ) -> int | None:
        """Make a trained version visible; return another that the same job registered meanwhile."""
        with self._database.tenant(owner, by=_SYSTEM) as tx:
            # INVARIANT: whoever lost the lease makes nothing visible: the check and the version commit together.
            check_lease(tx)
            known = of_job(tx, job_id)
            if known is not None:
                return known
            require_model(tx, model_id)
            created_at = self._clock.now_s()
            key = {"model_id": model_id, "version": version, "job_id": job_id}
            tx.insert(model_versions, state=READY, created_at=created_at, **key, **columns)
            event = Event(
                tenant=owner,
                action=Action.MODEL_CREATE,
                outcome=Outcome.DONE,
                ref=ResourceRef(owner=owner, kind=Kind.MODEL, object_id=model_id),
                facts={"version": version, "job": job_id},
            )
            self._recorder.record(tx, event)
            tx.bump_epoch()
        return None

    def _discard(self, owner: TenantId, model_id: ObjectId, version: int) -> None:
        with self._database.tenant(owner, by=System(reason="discard a version")) as tx:
            if ready(tx, model_id, version) is not None:
                return  # what failed was only to hear that it is visible
            drop_pending(tx, self._uploads, model_id, version)
        self._uploads.delete(owner, model_id, version)
