"""Uploads of models: a version is allocated, its weights arrive, and it becomes visible once they were admitted.

A version becomes visible in one step, after its graph and the header of its weights were admitted. Nothing is executed
here, and whole weights are never held: they pass part by part.
"""

import json

from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import TenantCaller
from modelkeep_platform.core.decisions import Decision
from modelkeep_platform.core.errors import UnprocessableError
from modelkeep_platform.core.events import Outcome
from modelkeep_platform.core.ids import ObjectId, check_name
from modelkeep_platform.core.ports import Authorizer, Clock, Entropy, EpochSource, Recorder
from modelkeep_platform.core.refs import Kind, collection, missing
from modelkeep_platform.core.sealing import Purpose
from modelkeep_platform.models import safetensors_check
from modelkeep_platform.models.events import model_event
from modelkeep_platform.models.graph.format import parse
from modelkeep_platform.models.rows import PENDING, allocate, drop_pending, make_ready, require_model
from modelkeep_platform.models.values import ModelVersion, NewVersion
from modelkeep_platform.models.versions import Versions
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.tables.models import model_versions, models
from modelkeep_platform.storage.tables.uploads import uploads
from modelkeep_platform.storage.transactions import TenantTransaction
from modelkeep_platform.uploads.service import OPEN, Upload, UploadService


class AdmissionService:
    """Takes models that tenants upload.

    Args:
        database: where the registry is.
        authorizer: decides every call.
        recorder: writes what was done.
        uploads: takes sealed bytes.
        versions: seals graphs and describes what was admitted.
        clock: stamps versions.
        entropy: names models.
        epoch: moved when a version becomes visible.
    """

    def __init__(
        self,
        *,
        database: Database,
        authorizer: Authorizer,
        recorder: Recorder,
        uploads: UploadService,
        versions: Versions,
        clock: Clock,
        entropy: Entropy,
        epoch: EpochSource,
    ) -> None:
        self._database = database
        self._authorizer = authorizer
        self._recorder = recorder
        self._uploads = uploads
        self._versions = versions
        self._clock = clock
        self._entropy = entropy
        self._epoch = epoch

    def create_version(
        self,
        caller: TenantCaller,
        name: str,
        graph_json: bytes,
        weights_bytes: int,
        weights_sha256: str,
        *,
        description: str = "",
    ) -> NewVersion:
        """Allocate a version and the upload of its weights.

        Args:
            caller: who uploads.
            name: the model's name; a new one makes a new model.
            graph_json: the graph, as JSON.
            weights_bytes: the length of the safetensors file.
            weights_sha256: its digest, in lower-case hex.
            description: of the model, when it is new.

        Raises:
            ForbiddenError: the caller may not create models.
            UnprocessableError: the graph, name, size or digest cannot be.
        """
        decision = self._authorizer.require(
            caller, Action.MODEL_CREATE, collection(caller.tenant, Kind.MODEL), {"name": name}
        )
        check_name(name, what="model")
        graph = parse(graph_json)
        with self._database.tenant(caller.tenant, by=decision) as tx:
            self._clear_abandoned(tx)
            new = allocate(tx, name, description, clock=self._clock, entropy=self._entropy)
            upload = self._uploads.begin(
                tx,
                caller=caller,
                object_id=new.model_id,
                kind=Kind.MODEL,
                version=new.version,
                purpose=Purpose.WEIGHTS,
                size_bytes=weights_bytes,
                sha256=weights_sha256,
                create_key=new.is_new_model,
            )
            event = model_event(caller, decision.action, new.model_id, Outcome.INTENT, version=new.version)
            self._recorder.record(tx, event)
        sealed = self._versions.seal_graph(caller.tenant, new.model_id, new.version, graph)
        with self._database.tenant(caller.tenant, by=decision) as tx:
            require_model(tx, new.model_id)
            tx.insert(
                model_versions,
                model_id=new.model_id,
                version=new.version,
                state=PENDING,
                graph_sealed=sealed,
                graph_sha256=graph.sha256(),
                weights_sha256=weights_sha256,
                weights_bytes=weights_bytes,
                upload_id=upload.id,
                provenance=json.dumps({"source": "upload"}),
                created_at=self._clock.now_s(),
                created_by=caller.principal,
            )
        return NewVersion(model_id=new.model_id, version=new.version, upload=upload)

    def complete(self, caller: TenantCaller, upload_id: str) -> ModelVersion:
        """Admit the uploaded weights and make the version visible.

        A refused version is gone with its bytes, its number is not used again: mend the weights and create another.

        Raises:
            NotFoundError: the caller began no such upload.
            ConflictError: parts are missing.
            UnprocessableError: the weights are refused: a pickle, another graph's, another digest.
        """
        upload = self._uploads.status(caller, upload_id)
        name = self._pending_name(caller, upload)
        decision = self._authorizer.require(
            caller, Action.MODEL_CREATE, collection(caller.tenant, Kind.MODEL), {"name": name}
        )
        try:
            self._uploads.check_complete(caller, upload_id)
            graph = self._versions.open_graph(caller.tenant, upload.object_id, upload.version)
            chunks = self._uploads.read(upload.owner, upload.object_id, upload.version, Purpose.WEIGHTS)
            safetensors_check.check_stream(next(chunks, b""), chunks, upload.size_bytes, graph.parameters())
        except UnprocessableError as exc:
            self._refuse(caller, decision, upload, exc.error_code)
            raise
        with self._database.tenant(caller.tenant, by=decision) as tx:
            self._uploads.finish(tx, upload_id)
            make_ready(tx, upload.object_id, upload.version)
            event = model_event(caller, decision.action, upload.object_id, Outcome.DONE, version=upload.version)
            self._recorder.record(tx, event)
            tx.bump_epoch()
        self._epoch.refresh()
        return self._versions.show(caller.tenant, upload.object_id, upload.version)

    def _clear_abandoned(self, tx: TenantTransaction) -> None:
        """Drop versions whose uploads were given up or ran out, so that nobody fills the registry with them."""
        columns = (model_versions.c.model_id, model_versions.c.version, model_versions.c.upload_id)
        waiting = tx.all(tx.select(model_versions, *columns).where(model_versions.c.state == PENDING))
        if not waiting:
            return
        still = {row["id"] for row in tx.all(tx.select(uploads, uploads.c.id).where(uploads.c.state == OPEN))}
        for row in waiting:
            if row["upload_id"] not in still:
                drop_pending(tx, self._uploads, ObjectId(row["model_id"]), row["version"])

    def _pending_name(self, caller: TenantCaller, upload: Upload) -> str:
        """Return the name of the model that `upload` is of; for an upload of anything else there is none."""
        with self._database.tenant(caller.tenant, by=caller, read_only=True) as tx:
            columns = (model_versions.c.model_id,)
            row = tx.first(tx.select(model_versions, *columns).where(model_versions.c.upload_id == upload.id))
            model = None if row is None else tx.first(tx.select(models).where(models.c.id == row["model_id"]))
        if model is None:
            self._authorizer.require(caller, Action.UPLOAD_WRITE, missing(caller.tenant, Kind.UPLOAD))
            raise RuntimeError("a missing object was allowed")
        return str(model["name"])

    def _refuse(self, caller: TenantCaller, decision: Decision, upload: Upload, code: str) -> None:
        model_id, version = upload.object_id, upload.version
        with self._database.tenant(caller.tenant, by=decision) as tx:
            drop_pending(tx, self._uploads, model_id, version)
            event = model_event(caller, decision.action, model_id, Outcome.FAILED, version=version, code=code)
            self._recorder.record(tx, event)
        self._uploads.abort(caller, upload.id)
