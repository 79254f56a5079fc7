"""The registry of models: versions that never change, aliases that move, downloads that are actions of their own.

Versions come in through `admission` and `trained`; what is not visible yet is not there for anybody. Weights pass part
by part.
"""

import builtins
from collections.abc import Iterator
from typing import Final

from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import TenantCaller
from modelkeep_platform.core.decisions import Attributes, Decision
from modelkeep_platform.core.errors import ConflictError, ModelkeepError, UnprocessableError
from modelkeep_platform.core.events import Outcome
from modelkeep_platform.core.ids import ObjectId, TenantId, check_name
from modelkeep_platform.core.ports import Authorizer, EpochSource, LimitSource, Recorder
from modelkeep_platform.core.refs import Kind, ResourceRef, collection, missing
from modelkeep_platform.core.sealing import Purpose
from modelkeep_platform.models.events import model_event
from modelkeep_platform.models.rows import MAX_VERSION, READY, newest, ready, version_number
from modelkeep_platform.models.values import Model, ModelVersion, ServableVersion
from modelkeep_platform.models.versions import Versions
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.names import TenantDirectory, resolve
from modelkeep_platform.storage.pages import Page, PageRequest, not_ours, page_of
from modelkeep_platform.storage.tables.models import model_aliases, model_versions, models
from modelkeep_platform.storage.transactions import Row, System, TenantTransaction
from modelkeep_platform.uploads.artifacts import Artifacts
from modelkeep_platform.uploads.endings import UploadEndings

PRODUCTION: Final = "production"

MAX_ALIASES: Final = 100
"""Of one model."""


class ModelService:
    """Shows and changes a tenant's models.

    Args:
        database: where the registry is.
        authorizer: decides every call.
        recorder: writes what was done.
        artifacts: gives and deletes sealed bytes.
        endings: ends the uploads of models that are deleted.
        versions: opens graphs and describes versions.
        tenants: knows slugs.
        epoch: moved when versions or aliases change.
        limits: says whether a worker may predict with a tenant's models.
    """

    def __init__(
        self,
        *,
        database: Database,
        authorizer: Authorizer,
        recorder: Recorder,
        artifacts: Artifacts,
        endings: UploadEndings,
        versions: Versions,
        tenants: TenantDirectory,
        epoch: EpochSource,
        limits: LimitSource,
    ) -> None:
        self._limits = limits
        self._database = database
        self._authorizer = authorizer
        self._recorder = recorder
        self._artifacts = artifacts
        self._endings = endings
        self._versions = versions
        self._tenants = tenants
        self._epoch = epoch

    def resolve(self, caller: TenantCaller, name: str) -> ResourceRef:
        """Return the reference of ``model`` or ``owner~model``; a missing one when none has a version to use."""
        ref = self._named(caller, name)
        # INVARIANT: what was never admitted is not there, for its owner neither.
        with self._database.tenant(ref.owner, by=System(reason="resolve a name"), read_only=True) as tx:
            return ref if newest(tx, ref.object_id) is not None else missing(ref.owner, Kind.MODEL)

    def list(self, caller: TenantCaller, page: PageRequest) -> Page[Model]:
        """Return the tenant's models in order of name."""
        decision = self._authorizer.require(caller, Action.MODEL_LIST, collection(caller.tenant, Kind.MODEL))
        slug = self._tenants.slug_of(caller.tenant)
        with self._database.tenant(caller.tenant, by=decision, read_only=True) as tx:
            found = self._listed(tx, page, slug)
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
            raise not_ours()
        with self._database.tenant(decision.ref.owner, by=decision, read_only=True) as tx:
            query = tx.select(model_versions).where(
                model_versions.c.model_id == decision.ref.object_id,
                model_versions.c.state == READY,
                model_versions.c.version < before,
            )
            rows = tx.all(query.order_by(model_versions.c.version.desc()).limit(page.limit + 1))
        found = [self._versions.describe(row, decision.ref.owner) for row in rows]
        return page_of(found, page, [str(version.version) for version in found])

    def get_version(self, caller: TenantCaller, name: str, version: str) -> ModelVersion:
        """Return one version, by number or alias."""
        found = self.resolve_version(caller, name, version, Action.MODEL_READ)
        return self._versions.show(found.ref.owner, found.ref.object_id, found.version)

    def export_graph(self, caller: TenantCaller, name: str, version: str) -> bytes:
        """Return a version's graph as canonical JSON."""
        return self.resolve_version(caller, name, version, Action.MODEL_EXPORT).graph.to_json()

    def export_weights(self, caller: TenantCaller, name: str, version: str) -> tuple[ModelVersion, Iterator[bytes]]:
        """Return a version and its weights, part by part; the download is recorded before it begins.

        Raises:
            IntegrityError: the manifest or the first part does not open; of a later one the iterator raises it. The
                logs of owner and caller have it.
        """
        found = self.resolve_version(caller, name, version, Action.MODEL_EXPORT)
        owner, model_id = found.ref.owner, found.ref.object_id
        shown = self._versions.show(owner, model_id, found.version)
        parts = self.open_weights(owner, model_id, found.version)
        try:
            # Before the answer begins: once its status is sent, it can only break off.
            first = next(parts, b"")
        except ModelkeepError as exc:
            self._record_export(caller, found, Outcome.FAILED, error=exc.error_code)
            exc.recorded = True
            raise
        self._record_export(caller, found, Outcome.DONE)
        return shown, self._exported(caller, found, [first], parts)

    def _exported(
        self, caller: TenantCaller, found: ServableVersion, first: builtins.list[bytes], parts: Iterator[bytes]
    ) -> Iterator[bytes]:
        # Taken out, so that it is not kept while the rest is read: a part is megabytes.
        yield first.pop()
        try:
            yield from parts
        except ModelkeepError as exc:
            self._record_export(caller, found, Outcome.FAILED, error=exc.error_code)
            raise

    def _record_export(self, caller: TenantCaller, found: ServableVersion, outcome: Outcome, **facts: str) -> None:
        owner, version = found.ref.owner, found.version
        event = model_event(
            caller, Action.MODEL_EXPORT, found.ref.object_id, outcome, owner=owner, version=version, **facts
        )
        with self._database.tenant(owner, by=found.decision) as tx:
            self._recorder.record(tx, event)

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
            ConflictError: it is to predict, and the operator lets no worker do so with its owner's models.
        """
        row, alias, decision = self._decide(caller, name, version, action)
        ref = decision.ref
        if action is Action.MODEL_PREDICT and not self._limits.of(ref.owner).serving_workers:
            raise ConflictError(
                "no worker may predict with this tenant's models; ask the platform's operator for one",
                code="serving_off",
            )
        return ServableVersion(
            ref=ref,
            name=name.rpartition("~")[2],
            version=row["version"],
            alias=alias,
            graph=self._versions.open_graph(ref.owner, ref.object_id, row["version"]),
            weights_bytes=row["weights_bytes"],
            decision=decision,
        )

    def attributes_now(self, model: ResourceRef, version: int, *, alias: str) -> Attributes | None:
        """Return what policies see of a version that was resolved before; None when it is gone.

        Args:
            model: the model.
            version: the version's number.
            alias: by which it was asked for then. One that points elsewhere by now is none: by it the caller would get
                another version.
        """
        with self._database.tenant(model.owner, by=System(reason="resolve a version"), read_only=True) as tx:
            row = tx.first(tx.select(models).where(models.c.id == model.object_id))
            if row is None or ready(tx, model.object_id, version) is None:
                return None
            points = tx.first(
                tx.select(model_aliases).where(
                    model_aliases.c.model_id == model.object_id,
                    model_aliases.c.alias == alias,
                    model_aliases.c.version == version,
                )
            )
        return {"name": str(row["name"]), "alias": "" if points is None else alias, "version": version}

    def open_weights(self, owner: TenantId, model_id: ObjectId, version: int) -> Iterator[bytes]:
        """Yield a version's weights for a worker, part by part."""
        return self._artifacts.read(owner, model_id, version, Purpose.WEIGHTS)

    def set_alias(self, caller: TenantCaller, name: str, alias: str, version: int) -> Model:
        """Point an alias at a version; it holds for the next call.

        Raises:
            UnprocessableError: the alias is not a name, or is a number; or there is no such version.
            ConflictError: the model has `MAX_ALIASES` already.
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
                if tx.count(model_aliases, model_aliases.c.model_id == model_id) >= MAX_ALIASES:
                    raise ConflictError(
                        f"a model has at most {MAX_ALIASES} aliases; delete one", code="too_many_aliases"
                    )
                tx.insert(model_aliases, model_id=model_id, alias=alias, version=version)
            self._recorder.record(
                tx, model_event(caller, decision.action, model_id, Outcome.DONE, version=version, alias=alias)
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
                self._recorder.record(tx, model_event(caller, decision.action, model_id, Outcome.DONE, alias=alias))
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
            self._endings.forget(tx, model_id, by=caller)
            self._recorder.record(tx, model_event(caller, decision.action, model_id, Outcome.DONE))
            tx.bump_epoch()
        self._epoch.refresh()
        self._artifacts.discard(owner, model_id)

    def delete_version(self, caller: TenantCaller, name: str, version: str) -> None:
        """Delete one version; aliases to it go with it, its number is never used again.

        A model without a version is not shown; the next upload of its name goes on counting.
        """
        # Nothing of it is opened: what was damaged can be deleted.
        row, _, decision = self._decide(caller, name, version, Action.MODEL_DELETE)
        owner, model_id, number = decision.ref.owner, decision.ref.object_id, int(row["version"])
        with self._database.tenant(owner, by=decision) as tx:
            for table in (model_aliases, model_versions):
                tx.change(tx.delete(table).where(table.c.model_id == model_id, table.c.version == number))
            self._recorder.record(tx, model_event(caller, Action.MODEL_DELETE, model_id, Outcome.DONE, version=number))
            tx.bump_epoch()
        self._epoch.refresh()
        self._artifacts.discard(owner, model_id, number)

    def _decide(
        self, caller: TenantCaller, name: str, version: str | None, action: Action
    ) -> tuple[Row, str, Decision]:
        """Return the version that is meant, the alias it was asked for by, and the decision about it."""
        ref = self._named(caller, name)
        row, alias = (None, "") if ref.is_missing else self._pick(ref, version)
        if row is None:
            ref = missing(ref.owner, Kind.MODEL)
        number = 0 if row is None else int(row["version"])
        facts: dict[str, str | int | bool] = {"name": name.rpartition("~")[2], "alias": alias, "version": number}
        decision = self._authorizer.require(caller, action, ref, facts)
        if row is None:
            raise RuntimeError("a missing object was allowed")
        return row, alias, decision

    def _require(self, caller: TenantCaller, action: Action, name: str, **attributes: str | int) -> Decision:
        facts = {"name": name.rpartition("~")[2], **attributes}
        return self._authorizer.require(caller, action, self.resolve(caller, name), facts)

    def _named(self, caller: TenantCaller, name: str) -> ResourceRef:
        return resolve(self._database, self._tenants, caller, name, table=models, kind=Kind.MODEL)

    def _listed(self, tx: TenantTransaction, page: PageRequest, slug: str) -> builtins.list[Model]:
        """Return one model more than a page takes, passing over those without a version."""
        found: builtins.list[Model] = []
        after, more = page.after(), True
        while more and len(found) <= page.limit:
            query = tx.select(models).where(models.c.name > after).order_by(models.c.name)
            rows = tx.all(query.limit(page.limit + 1))
            found += [model for model in (_model(tx, row, slug) for row in rows) if model.latest_version is not None]
            more = len(rows) > page.limit
            after = rows[-1]["name"] if rows else after
        return found[: page.limit + 1]

    def _get(self, decision: Decision) -> Model:
        slug = self._tenants.slug_of(decision.ref.owner)
        with self._database.tenant(decision.ref.owner, by=decision, read_only=True) as tx:
            row = tx.first(tx.select(models).where(models.c.id == decision.ref.object_id))
            if row is None:
                raise ConflictError("the model was deleted meanwhile", code="deleted")
            return _model(tx, row, slug)

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


def _model(tx: TenantTransaction, row: Row, owner_slug: str) -> Model:
    aliases = tx.all(tx.select(model_aliases).where(model_aliases.c.model_id == row["id"]))
    return Model(
        id=ObjectId(row["id"]),
        name=row["name"],
        description=row["description"],
        created_at=row["created_at"],
        aliases={alias["alias"]: alias["version"] for alias in aliases},
        latest_version=newest(tx, row["id"]),
        owner=owner_slug,
    )
