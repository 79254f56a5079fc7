"""The room of models over real storage and uploads, with the ports of `core` faked."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from fakes.core import (
    ACME,
    FakeClock,
    FakeEntropy,
    FakeRecorder,
    tenant_caller,
)
from fakes.faulty_blobs import MemoryBlobs
from fakes.graphs import document, encoded, node, weights_of
from fakes.rooms import Ground
from modelkeep_platform.core.callers import TenantCaller
from modelkeep_platform.core.ids import ObjectId, TenantId
from modelkeep_platform.core.limits import MAX_PART_BYTES
from modelkeep_platform.models.admission import AdmissionService
from modelkeep_platform.models.graph import Graph, parse
from modelkeep_platform.models.values import ModelVersion, NewVersion
from modelkeep_platform.storage.blobs import BlobStore
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.schema import metadata
from modelkeep_platform.storage.tables.epoch import epoch
from modelkeep_platform.storage.tables.models import model_aliases, model_versions, models
from modelkeep_platform.storage.transactions import System, TenantTransaction

LAYER: Any = document([node("linear", {"in_features": 2, "out_features": 3}, "x0", name="layer")], [(-1, 2)], (-1, 3))
GRAPH = parse(encoded(LAYER))
WEIGHTS = weights_of(GRAPH)


@contextmanager
def memory_room() -> Iterator["ModelRoom"]:
    """A registry whose database and blobs are in memory: nothing waits for a disk."""
    database = Database("sqlite:///:memory:")
    metadata.create_all(database.engine)
    with database.platform() as tx:
        tx.execute(sa.insert(epoch).values(id=1, number=1))
    yield ModelRoom(database, MemoryBlobs(), FakeClock(), FakeEntropy(), FakeRecorder())
    database.close()


class ModelRoom(Ground):
    """The registry and what it stands on."""

    def __init__(
        self, database: Database, blobs: BlobStore, clock: FakeClock, entropy: FakeEntropy, recorder: FakeRecorder
    ) -> None:
        super().__init__(database, blobs, clock, entropy, recorder)
        self.models, self.trained = self.make_models(), self.make_trained()
        self.admission = AdmissionService(
            database=database,
            authorizer=self.authorizer,
            recorder=recorder,
            uploads=self.uploads,
            versions=self.versions,
            clock=clock,
            entropy=entropy,
            epoch=self.epoch,
        )

    def send(
        self,
        name: str = "cells",
        weights: bytes = WEIGHTS,
        graph: object = LAYER,
        caller: TenantCaller | None = None,
        **more: str,
    ) -> NewVersion:
        """Create a version and send all of its parts."""
        caller = caller or tenant_caller()
        text = graph if isinstance(graph, bytes) else encoded(graph)
        digest = hashlib.sha256(weights).hexdigest()
        new = self.admission.create_version(caller, name, text, len(weights), digest, **more)
        for number in range(new.upload.parts):
            part = weights[number * MAX_PART_BYTES : (number + 1) * MAX_PART_BYTES]
            self.uploads.put_part(caller, new.upload.id, number, part, hashlib.sha256(part).digest())
        return new

    def add(self, name: str = "cells", fill: int = 0, caller: TenantCaller | None = None) -> ModelVersion:
        """Upload a version whose weights are all `fill`."""
        caller = caller or tenant_caller()
        return self.admission.complete(caller, self.send(name, weights_of(GRAPH, fill=fill), caller=caller).upload.id)

    def train(
        self,
        name: str = "cells",
        job: str = "job_1",
        weights: Any = (WEIGHTS,),
        graph: Graph = GRAPH,
        check_lease: Callable[[TenantTransaction], None] = lambda _tx: None,
    ) -> int:
        """Register what a job trained; its lease holds unless `check_lease` says otherwise."""
        return self.trained.register(
            owner=ACME,
            name=name,
            graph=graph,
            weights=weights,
            principal="principal-app",
            job_id=job,
            provenance={"dataset": "rows", "privacy": None},
            check_lease=check_lease,
        )

    def rows(self, owner: TenantId = ACME) -> dict[str, int]:
        """Count what the registry holds of a tenant, visible or not."""
        with self.database.tenant(owner, by=System(reason="test"), read_only=True) as tx:
            return {table.name: len(tx.all(tx.select(table))) for table in (models, model_versions, model_aliases)}

    def stored(self, model_id: ObjectId, owner: TenantId = ACME) -> int:
        """Count the sealed blobs of a model."""
        return len(list(self.blobs.keys(f"{owner}/{model_id}")))

    def recorded(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Return action, outcome and facts of everything recorded."""
        return [(str(event.action), str(event.outcome), dict(event.facts)) for event in self.recorder.events]
