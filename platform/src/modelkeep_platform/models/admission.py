"""Uploads of models: a version is allocated, its weights arrive, and it becomes visible once they were admitted.

A version becomes visible in one step, after its graph and the header of its weights were admitted. Nothing is executed
here, and whole weights are never held: they pass part by part.
"""

from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import TenantCaller
from modelkeep_platform.core.decisions import Decision
from modelkeep_platform.core.errors import UnprocessableError
from modelkeep_platform.core.ids import check_name
from modelkeep_platform.core.ports import Authorizer, Clock, Entropy, EpochSource
from modelkeep_platform.core.refs import Kind, collection, missing
from modelkeep_platform.core.sealing import Purpose
from modelkeep_platform.models import safetensors_check
from modelkeep_platform.models.graph.format import parse
from modelkeep_platform.models.rows import READY, add_pending, allocate, change_pending
from modelkeep_platform.models.values import ModelVersion, NewVersion
from modelkeep_platform.models.versions import Versions
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.tables.models import model_versions, models
from modelkeep_platform.uploads.artifacts import Artifacts
from modelkeep_platform.uploads.endings import UploadEndings
from modelkeep_platform.uploads.rows import Upload
from modelkeep_platform.uploads.service import UploadService


class AdmissionService:
    """Takes models that tenants upload.

    Args:
        database: where the registry is.
        authorizer: decides every call.
        uploads: takes sealed bytes.
        endings: ends uploads.
        artifacts: gives sealed bytes.
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
        uploads: UploadService,
        endings: UploadEndings,
        artifacts: Artifacts,
        versions: Versions,
        clock: Clock,
        entropy: Entropy,
        epoch: EpochSource,
    ) -> None:
        self._database = database
        self._authorizer = authorizer
        self._uploads = uploads
        self._endings = endings
        self._artifacts = artifacts
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
            add_pending(
                tx,
                new,
                created_at=self._clock.now_s(),
                created_by=caller.principal,
                provenance={"source": "upload"},
                upload_id=upload.id,
            )
        sealed = self._versions.seal_graph(caller.tenant, new.model_id, new.version, graph)
        with self._database.tenant(caller.tenant, by=decision) as tx:
            change_pending(
                tx,
                new.model_id,
                new.version,
                graph_sealed=sealed,
                graph_sha256=graph.sha256(),
                weights_sha256=weights_sha256,
                weights_bytes=weights_bytes,
            )
        return NewVersion(model_id=new.model_id, version=new.version, upload=upload)

    def complete(self, caller: TenantCaller, upload_id: str) -> ModelVersion:
        """Admit the uploaded weights and make the version visible.

        A refused version is gone with its bytes, its number is not used again: mend the weights and create another.

        Raises:
            NotFoundError: the caller began no such upload.
            ConflictError: parts are missing, or the upload has ended.
            UnprocessableError: the weights are refused: a pickle, another graph's, another digest.
        """
        upload = self._uploads.require_open(caller, upload_id)
        name = self._pending_name(caller, upload)
        decision = self._authorizer.require(
            caller, Action.MODEL_CREATE, collection(caller.tenant, Kind.MODEL), {"name": name}
        )
        try:
            self._uploads.check_complete(caller, upload_id)
            graph = self._versions.open_graph(caller.tenant, upload.object_id, upload.version)
            chunks = self._artifacts.read(upload.owner, upload.object_id, upload.version, Purpose.WEIGHTS)
            safetensors_check.check_stream(next(chunks, b""), chunks, upload.size_bytes, graph.parameters())
        except UnprocessableError as exc:
            self._refuse(caller, decision, upload, exc.error_code)
            raise
        with self._database.tenant(caller.tenant, by=decision) as tx:
            self._endings.complete(tx, upload, by=caller)
            change_pending(tx, upload.object_id, upload.version, state=READY)
            tx.bump_epoch()
        self._epoch.refresh()
        return self._versions.show(caller.tenant, upload.object_id, upload.version)

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
        with self._database.tenant(caller.tenant, by=decision) as tx:
            self._endings.refuse(tx, upload, by=caller, code=code)
        self._endings.delete_bytes_later(upload)
