"""Datasets of a tenant: declare, upload, validate, seal; and the budget each private one has.

A dataset becomes visible only when every cell was found to be as declared; its budget is opened in the same
transaction. There is no download: rows leave the sealed store for a training worker alone.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import TenantCaller
from modelkeep_platform.core.decisions import Decision
from modelkeep_platform.core.errors import ConflictError, UnprocessableError
from modelkeep_platform.core.events import Event, Outcome
from modelkeep_platform.core.ids import ObjectId, TenantId, check_name, new_object_id
from modelkeep_platform.core.ports import Authorizer, Clock, Entropy, EpochSource, Recorder, Sealer
from modelkeep_platform.core.refs import Kind, ResourceRef, collection, missing
from modelkeep_platform.core.sealing import Purpose
from modelkeep_platform.datasets import readers
from modelkeep_platform.datasets.spec import DatasetSpec, parse, to_builtins
from modelkeep_platform.privacy.budgets import ChargeView
from modelkeep_platform.privacy.ledger import BudgetLedger
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.names import TenantDirectory, resolve
from modelkeep_platform.storage.pages import Page, PageRequest, page_of
from modelkeep_platform.storage.tables.datasets import datasets
from modelkeep_platform.storage.transactions import Row, System, TenantTransaction
from modelkeep_platform.uploads.artifacts import Artifacts
from modelkeep_platform.uploads.endings import UploadEndings
from modelkeep_platform.uploads.rows import Upload
from modelkeep_platform.uploads.service import UploadService

PENDING: Final = "pending"
READY: Final = "ready"
_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A dataset's declaration; never its rows, nor how many there are."""

    id: ObjectId
    owner: TenantId
    name: str
    description: str
    format: str
    schema: dict[str, Any]
    privacy: dict[str, Any]
    state: str
    created_at: int
    spec: DatasetSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDataset:
    """Where the bytes go."""

    dataset_id: ObjectId
    name: str
    upload: Upload


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetBudget:
    """A dataset's budget, by its name."""

    dataset: str
    epsilon: float
    delta: float
    epsilon_spent: float
    epsilon_reserved: float
    charges: tuple[ChargeView, ...]


class DatasetService:
    """Keeps a tenant's datasets.

    Args:
        database: where declarations are.
        authorizer: decides every call.
        recorder: writes what was done.
        uploads: takes sealed bytes.
        endings: ends uploads.
        artifacts: gives and deletes sealed bytes.
        ledger: keeps budgets.
        tenants: knows slugs.
        clock: stamps datasets.
        entropy: names them.
        epoch: moved when datasets come and go.
    """

    def __init__(
        self,
        *,
        database: Database,
        authorizer: Authorizer,
        recorder: Recorder,
        uploads: UploadService,
        endings: UploadEndings,
        artifacts: Artifacts,
        ledger: BudgetLedger,
        tenants: TenantDirectory,
        clock: Clock,
        entropy: Entropy,
        epoch: EpochSource,
    ) -> None:
        self._database = database
        self._authorizer = authorizer
        self._recorder = recorder
        self._uploads = uploads
        self._endings = endings
        self._artifacts = artifacts
        self._ledger = ledger
        self._tenants = tenants
        self._clock = clock
        self._entropy = entropy
        self._epoch = epoch

    def create(self, caller: TenantCaller, declaration: object, size_bytes: int, sha256: str) -> NewDataset:
        """Declare a dataset and begin the upload of its bytes.

        Args:
            caller: who uploads.
            declaration: JSON values, as `datasets.spec.DatasetSpec`.
            size_bytes: the payload's length.
            sha256: its digest, in lower-case hex.

        Raises:
            ForbiddenError: the caller may not.
            UnprocessableError: the declaration cannot be.
            ConflictError: the name is taken.
        """
        declared = declaration.get("name", "") if isinstance(declaration, dict) else ""
        decision = self._require_create(caller, str(declared)[:64])
        spec = parse(declaration)
        check_name(spec.name, what="dataset")
        dataset_id = new_object_id(self._entropy, "dat")
        with self._database.tenant(caller.tenant, by=decision) as tx:
            self._free_name(tx, spec.name, by=caller)
            upload = self._uploads.begin(
                tx,
                caller=caller,
                object_id=dataset_id,
                kind=Kind.DATASET,
                version=_VERSION,
                purpose=Purpose.DATASET,
                size_bytes=size_bytes,
                sha256=sha256,
                facts=_facts(spec),
            )
            tx.insert(
                datasets,
                id=dataset_id,
                name=spec.name,
                state=PENDING,
                spec=json.dumps(to_builtins(spec)),
                upload_id=upload.id,
                created_at=self._clock.now_s(),
                created_by=caller.principal,
            )
        return NewDataset(dataset_id=dataset_id, name=spec.name, upload=upload)

    def complete(self, caller: TenantCaller, upload_id: str) -> Dataset:
        """Check every cell and make the dataset visible, with its budget.

        A refused dataset is gone with its bytes and its key: mend the file and create it again.

        Raises:
            NotFoundError: the caller began no such upload.
            ConflictError: parts are missing, or the upload has ended.
            UnprocessableError: ``bad_cell`` with row and column, or the payload is not of its format.
        """
        upload = self._uploads.require_open(caller, upload_id)
        pending = self._pending(caller, upload)
        decision = self._require_create(caller, pending.name)
        try:
            self._uploads.check_complete(caller, upload_id)
            readers.check(pending.spec, self.open_rows(upload.owner, upload.object_id), upload.size_bytes)
        except UnprocessableError as exc:
            self._refuse(caller, decision, upload, exc.error_code)
            raise
        with self._database.tenant(caller.tenant, by=decision) as tx:
            self._endings.complete(tx, upload, by=caller, facts=_facts(pending.spec))
            where = (datasets.c.id == upload.object_id, datasets.c.state == PENDING)
            if not tx.change(tx.update(datasets).where(*where).values(state=READY)):
                raise ConflictError("the declaration was replaced meanwhile; create it again", code="deleted")
            budget = pending.spec.privacy.budget
            if budget is not None:
                self._ledger.open(tx, upload.object_id, budget.epsilon, budget.delta)
            tx.bump_epoch()
        self._epoch.refresh()
        return self._by_id(caller.tenant, upload.object_id)

    def resolve(self, caller: TenantCaller, name: str) -> ResourceRef:
        """Return the reference of ``dataset`` or ``owner~dataset``; a missing one when there is none."""
        ref = resolve(self._database, self._tenants, caller, name, table=datasets, kind=Kind.DATASET)
        # INVARIANT: what was not checked cell by cell is not there, for its owner neither.
        with self._database.tenant(ref.owner, by=System(reason="resolve a name"), read_only=True) as tx:
            where = (datasets.c.id == ref.object_id, datasets.c.state == READY)
            row = tx.first(tx.select(datasets, datasets.c.id).where(*where))
        return missing(ref.owner, Kind.DATASET) if row is None else ref

    def resolve_for_training(self, caller: TenantCaller, name: str) -> tuple[Dataset, Decision]:
        """Decide `dataset:train` and return the dataset.

        Raises:
            NotFoundError: no such dataset for this caller.
            ForbiddenError: visible, but denied.
        """
        decision = self._require(caller, Action.DATASET_TRAIN, name)
        return self._by_id(decision.ref.owner, decision.ref.object_id), decision

    def list(self, caller: TenantCaller, page: PageRequest) -> Page[Dataset]:
        """Return the tenant's datasets in order of name."""
        decision = self._authorizer.require(caller, Action.DATASET_LIST, collection(caller.tenant, Kind.DATASET))
        return self._page(decision, page)

    def get(self, caller: TenantCaller, name: str) -> Dataset:
        """Return a dataset's declaration, also of a granted one."""
        decision = self._require(caller, Action.DATASET_READ, name)
        return self._by_id(decision.ref.owner, decision.ref.object_id)

    def delete(self, caller: TenantCaller, name: str) -> None:
        """Delete a dataset: its key is destroyed with its row, its sealed bytes after; its ledger stays."""
        decision = self._require(caller, Action.DATASET_DELETE, name)
        owner, dataset_id = decision.ref.owner, decision.ref.object_id
        with self._database.tenant(owner, by=decision) as tx:
            self._forget(tx, dataset_id, by=caller)
            event = Event(tenant=owner, action=decision.action, outcome=Outcome.DONE, actor=caller, ref=decision.ref)
            self._recorder.record(tx, event)
            tx.bump_epoch()
        self._epoch.refresh()
        self._artifacts.discard(owner, dataset_id)

    def budget(self, caller: TenantCaller, name: str) -> DatasetBudget:
        """Return a dataset's budget and what was charged.

        Raises:
            UnprocessableError: ``no_budget``: the dataset is public.
        """
        decision = self._require(caller, Action.BUDGET_READ, name)
        dataset = self._by_id(decision.ref.owner, decision.ref.object_id)
        return self._budget(dataset, decision)

    def budgets(self, caller: TenantCaller, page: PageRequest) -> Page[DatasetBudget]:
        """Return the budgets of the tenant's private datasets."""
        decision = self._authorizer.require(caller, Action.BUDGET_READ, collection(caller.tenant, Kind.DATASET))
        found = self._page(decision, page)
        return Page(
            items=[self._budget(dataset, decision) for dataset in found.items if dataset.spec.private],
            next_cursor=found.next_cursor,
        )

    def declaration(self, owner: TenantId, dataset_id: ObjectId) -> DatasetSpec:
        """Return what was declared, for a training worker."""
        return self._by_id(owner, dataset_id).spec

    def open_rows(self, owner: TenantId, dataset_id: ObjectId) -> Iterator[bytes]:
        """Yield a dataset's payload for a training worker, part by part."""
        return self._artifacts.read(owner, dataset_id, _VERSION, Purpose.DATASET)

    def _require(self, caller: TenantCaller, action: Action, name: str) -> Decision:
        attributes = {"name": name.rpartition("~")[2]}
        return self._authorizer.require(caller, action, self.resolve(caller, name), attributes)

    def _require_create(self, caller: TenantCaller, name: str) -> Decision:
        wanted = collection(caller.tenant, Kind.DATASET)
        return self._authorizer.require(caller, Action.DATASET_CREATE, wanted, {"name": name})

    def _page(self, decision: Decision, page: PageRequest) -> Page[Dataset]:
        with self._database.tenant(decision.ref.owner, by=decision, read_only=True) as tx:
            query = tx.select(datasets).where(datasets.c.name > page.after(), datasets.c.state == READY)
            rows = tx.all(query.order_by(datasets.c.name).limit(page.limit + 1))
        found = [_dataset(row) for row in rows]
        return page_of(found, page, [dataset.name for dataset in found])

    def _budget(self, dataset: Dataset, decision: Decision) -> DatasetBudget:
        with self._database.tenant(dataset.owner, by=decision, read_only=True) as tx:
            view = self._ledger.view(tx, dataset.id)
        return DatasetBudget(
            dataset=dataset.name,
            epsilon=view.epsilon,
            delta=view.delta,
            epsilon_spent=view.epsilon_spent,
            epsilon_reserved=view.epsilon_reserved,
            charges=view.charges,
        )

    def _by_id(self, owner: TenantId, dataset_id: ObjectId) -> Dataset:
        with self._database.tenant(owner, by=System(reason="read a declaration"), read_only=True) as tx:
            row = tx.first(tx.select(datasets).where(datasets.c.id == dataset_id))
        if row is None:
            raise ConflictError("the dataset was deleted meanwhile", code="deleted")
        return _dataset(row)

    def _free_name(self, tx: TenantTransaction, name: str, *, by: TenantCaller) -> None:
        """Free the name of a declaration whose upload is under way, or refuse a name that is taken."""
        row = tx.first(tx.select(datasets).where(datasets.c.name == name))
        if row is None:
            return
        if row["state"] == READY:
            raise ConflictError(f"there is a dataset `{name}` already; choose another name", code="name_taken")
        self._forget(tx, ObjectId(row["id"]), by=by)

    def _forget(self, tx: TenantTransaction, dataset_id: ObjectId, *, by: TenantCaller) -> None:
        tx.change(tx.delete(datasets).where(datasets.c.id == dataset_id))
        self._endings.forget(tx, dataset_id, by=by)

    def _pending(self, caller: TenantCaller, upload: Upload) -> Dataset:
        """Return the declaration that `upload` is for; for an upload of anything else there is none."""
        with self._database.tenant(caller.tenant, by=caller, read_only=True) as tx:
            where = (datasets.c.upload_id == upload.id, datasets.c.state == PENDING)
            row = tx.first(tx.select(datasets).where(*where))
        if row is None:
            self._authorizer.require(caller, Action.UPLOAD_WRITE, missing(caller.tenant, Kind.UPLOAD))
            raise RuntimeError("a missing object was allowed")
        return _dataset(row)

    def _refuse(self, caller: TenantCaller, decision: Decision, upload: Upload, code: str) -> None:
        with self._database.tenant(caller.tenant, by=decision) as tx:
            # The code alone: where a bad cell stands is for its owner's eyes.
            self._endings.refuse(tx, upload, by=caller, code=code)
        self._endings.delete_bytes_later(upload)


def drop_pending(tx: TenantTransaction, sealer: Sealer, dataset_id: ObjectId) -> None:
    """Delete a declaration whose rows never came, with its key."""
    if tx.change(tx.delete(datasets).where(datasets.c.id == dataset_id, datasets.c.state == PENDING)):
        sealer.destroy_key(tx, tx.owner, dataset_id)


def _dataset(row: Row) -> Dataset:
    declared = json.loads(row["spec"])
    return Dataset(
        id=ObjectId(row["id"]),
        owner=TenantId(row["tenant_id"]),
        name=row["name"],
        description=declared["description"],
        format=declared["format"],
        schema=declared["schema"],
        privacy=declared["privacy"],
        state=row["state"],
        created_at=row["created_at"],
        spec=parse(declared),
    )


def _facts(spec: DatasetSpec) -> dict[str, str | int]:
    """Return what the log says of a declaration: why a public one is public, a private one's budget."""
    budget = spec.privacy.budget
    if budget is None:
        return {"visibility": "public", "reason": (spec.privacy.reason or "")[:500]}
    return {
        "visibility": "private",
        "n_public": spec.privacy.n_public or 0,
        "epsilon": f"{budget.epsilon:g}",
        "delta": f"{budget.delta:g}",
    }
