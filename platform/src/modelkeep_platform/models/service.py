"""The registry of models: versions that never change, aliases that move, downloads that are actions of their own.

A version becomes visible in one step, after its graph and the header of its weights were admitted. Nothing is executed
here, and whole weights are never held: they pass part by part.
"""

import builtins
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import TenantCaller
from modelkeep_platform.core.decisions import Decision
from modelkeep_platform.core.errors import ConflictError, IntegrityError, MalformedError, UnprocessableError
from modelkeep_platform.core.events import Event, Outcome
from modelkeep_platform.core.ids import ObjectId, TenantId, check_name, new_object_id
from modelkeep_platform.core.ports import Authorizer, Clock, Entropy, EpochSource, Recorder, Sealer
from modelkeep_platform.core.refs import Kind, ResourceRef, collection, missing
from modelkeep_platform.core.sealing import Purpose, Suite
from modelkeep_platform.models import safetensors_check
from modelkeep_platform.models.graph.format import Graph, parse
from modelkeep_platform.models.rows import (
    FIRST,
    MAX_VERSION,
    PENDING,
    READY,
    drop_pending,
    newest,
    of_job,
    ready,
    require_model,
    version_number,
)
from modelkeep_platform.models.values import Model, ModelVersion, NewVersion, ServableVersion
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.names import TenantDirectory, resolve
from modelkeep_platform.storage.pages import Page, PageRequest, page_of
from modelkeep_platform.storage.tables.models import model_aliases, model_versions, models
from modelkeep_platform.storage.tables.uploads import uploads
from modelkeep_platform.storage.transactions import Row, System, TenantTransaction
from modelkeep_platform.uploads.service import OPEN, Upload, UploadService

PRODUCTION: Final = "production"


class ModelService:
    """Keeps a tenant's models.

    Args:
        database: where the registry is.
        authorizer: decides every call.
        recorder: writes what was done.
        uploads: takes and gives sealed bytes.
        sealer: seals graphs.
        tenants: knows slugs.
        clock: stamps versions.
        entropy: names models.
        epoch: moved when versions or aliases change.
    """

    def __init__(
        self,
        *,
        database: Database,
        authorizer: Authorizer,
        recorder: Recorder,
        uploads: UploadService,
        sealer: Sealer,
        tenants: TenantDirectory,
        clock: Clock,
        entropy: Entropy,
        epoch: EpochSource,
    ) -> None:
        self._database = database
        self._authorizer = authorizer
        self._recorder = recorder
        self._uploads = uploads
        self._sealer = sealer
        self._tenants = tenants
        self._clock = clock
        self._entropy = entropy
        self._epoch = epoch

    # --- upload -----------------------------------------------------------------------------------

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
            model_id, is_new = self._model_for(tx, name, description)
            version = self._next_version(tx, model_id)
            upload = self._uploads.begin(
                tx,
                caller=caller,
                object_id=model_id,
                kind=Kind.MODEL,
                version=version,
                purpose=Purpose.WEIGHTS,
                size_bytes=weights_bytes,
                sha256=weights_sha256,
                create_key=is_new,
            )
            self._recorder.record(tx, _event(caller, decision.action, model_id, Outcome.INTENT, version=version))
        sealed = self._seal_graph(caller.tenant, model_id, version, graph)
        with self._database.tenant(caller.tenant, by=decision) as tx:
            require_model(tx, model_id)
            tx.insert(
                model_versions,
                model_id=model_id,
                version=version,
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
        return NewVersion(model_id=model_id, version=version, upload=upload)

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
            graph = self._open_graph(caller.tenant, upload.object_id, upload.version)
            chunks = self._uploads.read(upload.owner, upload.object_id, upload.version, Purpose.WEIGHTS)
            _admit(chunks, upload.size_bytes, graph)
        except UnprocessableError as exc:
            self._refuse(caller, decision, upload, exc.error_code)
            raise
        with self._database.tenant(caller.tenant, by=decision) as tx:
            self._uploads.finish(tx, upload_id)
            self._make_ready(tx, upload.object_id, upload.version)
            event = _event(caller, decision.action, upload.object_id, Outcome.DONE, version=upload.version)
            self._recorder.record(tx, event)
            tx.bump_epoch()
        self._epoch.refresh()
        return self._version(caller.tenant, upload.object_id, upload.version)

    def register_trained(
        self,
        *,
        owner: TenantId,
        name: str,
        graph: Graph,
        weights: Iterable[bytes],
        principal: str,
        job_id: str,
        provenance: Mapping[str, Any],
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

        Returns:
            The version's number.
        """
        system = System(reason="register a trained model")
        with self._database.tenant(owner, by=system) as tx:
            known = of_job(tx, job_id)
            if known is not None:
                return known
            model_id, is_new = self._model_for(tx, name, "")
            version = self._next_version(tx, model_id)
            if is_new:
                self._uploads.create_key(tx, owner, model_id)
        try:
            manifest = self._uploads.write_artifact(owner, model_id, version, Purpose.WEIGHTS, weights)
            sealed = self._seal_graph(owner, model_id, version, graph)
            known = self._add_trained(
                owner,
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

    def _add_trained(
        self, owner: TenantId, *, model_id: ObjectId, version: int, job_id: str, **columns: str | bytes | int
    ) -> int | None:
        """Make a trained version visible; return another that the same job registered meanwhile."""
        with self._database.tenant(owner, by=System(reason="register a trained model")) as tx:
            # A worker that lost its lease may have been faster: its version stands.
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

    # --- read -------------------------------------------------------------------------------------

    def resolve(self, caller: TenantCaller, name: str) -> ResourceRef:
        """Return the reference of ``model`` or ``owner~model``; a missing one when none has a version to use."""
        ref = self._named(caller, name)
        # INVARIANT: what was never admitted is not there, for its owner neither.
        with self._database.tenant(ref.owner, by=System(reason="resolve a name"), read_only=True) as tx:
            return ref if newest(tx, ref.object_id) is not None else missing(ref.owner, Kind.MODEL)

    def list(self, caller: TenantCaller, page: PageRequest) -> Page[Model]:
        """Return the tenant's models in order of name."""
        decision = self._authorizer.require(caller, Action.MODEL_LIST, collection(caller.tenant, Kind.MODEL))
        with self._database.tenant(caller.tenant, by=decision, read_only=True) as tx:
            found = self._listed(tx, page)
        return page_of(found, page, [model.name for model in found])

    def get(self, caller: TenantCaller, name: str) -> Model:
        """Return a model, also a granted one; raises NotFoundError or ForbiddenError."""
        decision = self._require(caller, Action.MODEL_READ, name)
        return self._get(decision)

    def list_versions(self, caller: TenantCaller, name: str, page: PageRequest) -> Page[ModelVersion]:
        """Return a model's versions, newest first; those that wait for their weights are not among them."""
        decision = self._require(caller, Action.MODEL_READ, name)
        before = version_number(page.after() or str(MAX_VERSION))
        if before is None:
            raise MalformedError("the cursor is not one that this platform gave out", code="invalid_page")
        with self._database.tenant(decision.ref.owner, by=decision, read_only=True) as tx:
            query = tx.select(model_versions).where(
                model_versions.c.model_id == decision.ref.object_id,
                model_versions.c.state == READY,
                model_versions.c.version < before,
            )
            rows = tx.all(query.order_by(model_versions.c.version.desc()).limit(page.limit + 1))
        found = [self._version_of(row, decision.ref.owner) for row in rows]
        return page_of(found, page, [str(version.version) for version in found])

    def get_version(self, caller: TenantCaller, name: str, version: str) -> ModelVersion:
        """Return one version, by number or alias."""
        found = self.resolve_version(caller, name, version, Action.MODEL_READ)
        return self._version(found.ref.owner, found.ref.object_id, found.version)

    def export_graph(self, caller: TenantCaller, name: str, version: str) -> bytes:
        """Return a version's graph as canonical JSON."""
        return self.resolve_version(caller, name, version, Action.MODEL_EXPORT).graph.to_json()

    def export_weights(self, caller: TenantCaller, name: str, version: str) -> tuple[ModelVersion, Iterator[bytes]]:
        """Return a version and its weights, part by part; the download is recorded before it begins."""
        found = self.resolve_version(caller, name, version, Action.MODEL_EXPORT)
        owner, model_id = found.ref.owner, found.ref.object_id
        with self._database.tenant(owner, by=found.decision) as tx:
            self._recorder.record(
                tx, _event(caller, Action.MODEL_EXPORT, model_id, Outcome.DONE, version=found.version, owner=owner)
            )
        return self._version(owner, model_id, found.version), self.open_weights(owner, model_id, found.version)

    def resolve_version(self, caller: TenantCaller, name: str, version: str | None, action: Action) -> ServableVersion:
        """Decide `action` on a version and return it.

        Args:
            caller: who asks.
            name: ``model`` or ``owner~model``.
            version: a number, an alias, or None for the alias `production` if there is one, else the newest.
            action: what is to be done with it; policies see name, alias and version.

        Raises:
            NotFoundError: no such model or version for this caller.
            ForbiddenError: visible, but denied.
        """
        ref = self._named(caller, name)
        row, alias = (None, "") if ref.is_missing else self._pick(ref, version)
        if row is None:
            ref = missing(ref.owner, Kind.MODEL)
        own_name = name.rpartition("~")[2]
        number = 0 if row is None else int(row["version"])
        attributes: dict[str, str | int | bool] = {"name": own_name, "alias": alias, "version": number}
        decision = self._authorizer.require(caller, action, ref, attributes)
        if row is None:
            raise RuntimeError("a missing object was allowed")
        return ServableVersion(
            ref=ref,
            name=own_name,
            version=row["version"],
            alias=alias,
            graph=self._open_graph(ref.owner, ref.object_id, row["version"]),
            weights_bytes=row["weights_bytes"],
            decision=decision,
        )

    def open_weights(self, owner: TenantId, model_id: ObjectId, version: int) -> Iterator[bytes]:
        """Yield a version's weights for a worker, part by part."""
        return self._uploads.read(owner, model_id, version, Purpose.WEIGHTS)

    # --- change -----------------------------------------------------------------------------------

    def set_alias(self, caller: TenantCaller, name: str, alias: str, version: int) -> Model:
        """Point an alias at a version; it holds for the next call.

        Raises:
            UnprocessableError: the alias is not a name, or is a number; or there is no such version.
        """
        decision = self._require(
            caller, Action.MODEL_ALIAS, name, alias=alias, version=min(max(version, 0), MAX_VERSION)
        )
        if check_name(alias, what="alias").isdigit():
            raise UnprocessableError("an alias is not a number: numbers are versions", code="invalid_name")
        model_id = decision.ref.object_id
        with self._database.tenant(decision.ref.owner, by=decision) as tx:
            if not 0 < version < MAX_VERSION or ready(tx, model_id, version) is None:
                raise UnprocessableError(f"there is no version {version} to point at", code="no_such_version")
            where = (model_aliases.c.model_id == model_id, model_aliases.c.alias == alias)
            if not tx.change(tx.update(model_aliases).where(*where).values(version=version)):
                tx.insert(model_aliases, model_id=model_id, alias=alias, version=version)
            self._recorder.record(
                tx, _event(caller, decision.action, model_id, Outcome.DONE, version=version, alias=alias)
            )
            tx.bump_epoch()
        self._epoch.refresh()
        return self._get(decision)

    def delete_alias(self, caller: TenantCaller, name: str, alias: str) -> None:
        """Delete an alias; one that is not there is refused like a missing model."""
        decision = self._require(caller, Action.MODEL_ALIAS, name, alias=alias)
        model_id = decision.ref.object_id
        with self._database.tenant(decision.ref.owner, by=decision) as tx:
            where = (model_aliases.c.model_id == model_id, model_aliases.c.alias == alias)
            gone = tx.change(tx.delete(model_aliases).where(*where))
            if gone:
                self._recorder.record(tx, _event(caller, decision.action, model_id, Outcome.DONE, alias=alias))
                tx.bump_epoch()
        self._epoch.refresh()
        if not gone:
            self._authorizer.require(caller, Action.MODEL_ALIAS, missing(caller.tenant, Kind.MODEL))

    def delete(self, caller: TenantCaller, name: str) -> None:
        """Delete a model, also one without a version: its key is destroyed with its rows, its sealed bytes after."""
        facts = {"name": name.rpartition("~")[2]}
        decision = self._authorizer.require(caller, Action.MODEL_DELETE, self._named(caller, name), facts)
        owner, model_id = decision.ref.owner, decision.ref.object_id
        with self._database.tenant(owner, by=decision) as tx:
            for table in (model_aliases, model_versions):
                tx.change(tx.delete(table).where(table.c.model_id == model_id))
            tx.change(tx.delete(models).where(models.c.id == model_id))
            self._uploads.forget(tx, owner, model_id)
            self._recorder.record(tx, _event(caller, decision.action, model_id, Outcome.DONE))
            tx.bump_epoch()
        self._epoch.refresh()
        self._uploads.delete(owner, model_id)

    def delete_version(self, caller: TenantCaller, name: str, version: str) -> None:
        """Delete one version; aliases to it go with it, its number is never used again.

        A model without a version is not shown; the next upload of its name goes on counting.
        """
        found = self.resolve_version(caller, name, version, Action.MODEL_DELETE)
        owner, model_id = found.ref.owner, found.ref.object_id
        with self._database.tenant(owner, by=found.decision) as tx:
            for table in (model_aliases, model_versions):
                tx.change(tx.delete(table).where(table.c.model_id == model_id, table.c.version == found.version))
            self._recorder.record(
                tx, _event(caller, Action.MODEL_DELETE, model_id, Outcome.DONE, version=found.version)
            )
            tx.bump_epoch()
        self._epoch.refresh()
        self._uploads.delete(owner, model_id, found.version)

    # --- inside -----------------------------------------------------------------------------------

    def _require(self, caller: TenantCaller, action: Action, name: str, **attributes: str | int) -> Decision:
        facts = {"name": name.rpartition("~")[2], **attributes}
        return self._authorizer.require(caller, action, self.resolve(caller, name), facts)

    def _named(self, caller: TenantCaller, name: str) -> ResourceRef:
        return resolve(self._database, self._tenants, caller, name, table=models, kind=Kind.MODEL)

    def _listed(self, tx: TenantTransaction, page: PageRequest) -> builtins.list[Model]:
        """Return one model more than a page takes, passing over those without a version."""
        found: builtins.list[Model] = []
        after, more = page.after(), True
        while more and len(found) <= page.limit:
            query = tx.select(models).where(models.c.name > after).order_by(models.c.name)
            rows = tx.all(query.limit(page.limit + 1))
            found += [model for model in (self._model(tx, row) for row in rows) if model.latest_version is not None]
            more = len(rows) > page.limit
            after = rows[-1]["name"] if rows else after
        return found[: page.limit + 1]

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
        with self._database.tenant(caller.tenant, by=decision) as tx:
            drop_pending(tx, self._uploads, upload.object_id, upload.version)
            event = _event(caller, decision.action, upload.object_id, Outcome.FAILED, version=upload.version, code=code)
            self._recorder.record(tx, event)
        self._uploads.abort(caller, upload.id)

    def _get(self, decision: Decision) -> Model:
        with self._database.tenant(decision.ref.owner, by=decision, read_only=True) as tx:
            row = tx.first(tx.select(models).where(models.c.id == decision.ref.object_id))
            if row is None:
                raise ConflictError("the model was deleted meanwhile", code="deleted")
            return self._model(tx, row)

    def _model_for(self, tx: TenantTransaction, name: str, description: str) -> tuple[ObjectId, bool]:
        row = tx.first(tx.select(models).where(models.c.name == name))
        if row is not None:
            return ObjectId(row["id"]), False
        model_id = new_object_id(self._entropy, "mdl")
        tx.insert(
            models,
            id=model_id,
            name=check_name(name, what="model"),
            description=description[:2000],
            next_version=FIRST,
            created_at=self._clock.now_s(),
        )
        return model_id, True

    def _next_version(self, tx: TenantTransaction, model_id: ObjectId) -> int:
        where = models.c.id == model_id
        tx.change(tx.update(models).where(where).values(next_version=models.c.next_version + 1))
        row = tx.first(tx.select(models).where(where))
        if row is None:
            raise RuntimeError("a model vanished within a transaction")
        return int(row["next_version"]) - 1

    def _make_ready(self, tx: TenantTransaction, model_id: ObjectId, version: int) -> None:
        where = (model_versions.c.model_id == model_id, model_versions.c.version == version)
        if not tx.change(tx.update(model_versions).where(*where).values(state=READY)):
            raise ConflictError("the version was deleted meanwhile", code="deleted")

    def _pick(self, ref: ResourceRef, version: str | None) -> tuple[Row | None, str]:
        """Return the ready version that is meant, and the alias it was asked for by."""
        with self._database.tenant(ref.owner, by=System(reason="resolve a version"), read_only=True) as tx:
            number = None if version is None else version_number(version)
            if number is not None:
                return ready(tx, ref.object_id, number), ""
            alias = PRODUCTION if version is None else version
            row = tx.first(
                tx.select(model_aliases).where(
                    model_aliases.c.model_id == ref.object_id, model_aliases.c.alias == alias
                )
            )
            if row is not None:
                return ready(tx, ref.object_id, row["version"]), alias
            if version is not None:
                return None, ""
            number = newest(tx, ref.object_id)
            return None if number is None else ready(tx, ref.object_id, number), ""

    def _model(self, tx: TenantTransaction, row: Row) -> Model:
        aliases = tx.all(tx.select(model_aliases).where(model_aliases.c.model_id == row["id"]))
        return Model(
            id=ObjectId(row["id"]),
            name=row["name"],
            description=row["description"],
            created_at=row["created_at"],
            aliases={alias["alias"]: alias["version"] for alias in aliases},
            latest_version=newest(tx, row["id"]),
            owner=self._tenants.slug_of(tx.owner),
        )

    def _version(self, owner: TenantId, model_id: ObjectId, version: int) -> ModelVersion:
        with self._database.tenant(owner, by=System(reason="show a version"), read_only=True) as tx:
            row = tx.first(
                tx.select(model_versions).where(
                    model_versions.c.model_id == model_id, model_versions.c.version == version
                )
            )
        if row is None:
            raise ConflictError("the version was deleted meanwhile", code="deleted")
        return self._version_of(row, owner)

    def _version_of(self, row: Row, owner: TenantId) -> ModelVersion:
        with self._database.tenant(owner, by=System(reason="show a version"), read_only=True) as tx:
            model = tx.first(tx.select(models).where(models.c.id == row["model_id"]))
        graph = self._unseal_graph(row, owner)
        return ModelVersion(
            model_id=ObjectId(row["model_id"]),
            name="" if model is None else model["name"],
            version=row["version"],
            state=row["state"],
            graph_sha256=row["graph_sha256"],
            weights_sha256=row["weights_sha256"],
            weights_bytes=row["weights_bytes"],
            inputs=graph.inputs,
            outputs=graph.outputs,
            provenance=json.loads(row["provenance"]),
            created_at=row["created_at"],
            created_by=row["created_by"],
        )

    def _seal_graph(self, owner: TenantId, model_id: ObjectId, version: int, graph: Graph) -> bytes:
        return self._sealer.seal(
            owner,
            model_id,
            graph.to_json(),
            purpose=Purpose.GRAPH,
            version=version,
            name="graph",
            suite=Suite.SMALL,
        )

    def _open_graph(self, owner: TenantId, model_id: ObjectId, version: int) -> Graph:
        with self._database.tenant(owner, by=System(reason="open a graph"), read_only=True) as tx:
            row = tx.first(
                tx.select(model_versions).where(
                    model_versions.c.model_id == model_id, model_versions.c.version == version
                )
            )
        if row is None:
            raise ConflictError("the version was deleted meanwhile", code="deleted")
        return self._unseal_graph(row, owner)

    def _unseal_graph(self, row: Row, owner: TenantId) -> Graph:
        opened = self._sealer.open(
            owner,
            ObjectId(row["model_id"]),
            row["graph_sealed"],
            purpose=Purpose.GRAPH,
            version=row["version"],
            name="graph",
            suite=Suite.SMALL,
        )
        graph = parse(opened)
        if graph.sha256() != row["graph_sha256"]:
            raise IntegrityError("a stored graph is not the one its version names", code="graph_mismatch")
        return graph


def _admit(chunks: Iterator[bytes], total_bytes: int, graph: Graph) -> None:
    """Check the header of a safetensors stream against the graph, reading no more than the header."""
    head = next(chunks, b"")
    needed = safetensors_check.header_bytes(head, total_bytes)
    while len(head) < needed and (more := next(chunks, None)) is not None:
        head += more
    safetensors_check.check(head[8:needed], total_bytes - needed, graph.parameters())


def _event(
    caller: TenantCaller,
    action: Action,
    model_id: ObjectId,
    outcome: Outcome,
    *,
    owner: TenantId | None = None,
    **facts: str | int,
) -> Event:
    tenant = owner or caller.tenant
    return Event(
        tenant=tenant,
        action=action,
        outcome=outcome,
        actor=caller,
        ref=ResourceRef(owner=tenant, kind=Kind.MODEL, object_id=model_id),
        facts=facts,
    )
