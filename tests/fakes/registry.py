"""The room of models over real storage and uploads, with the ports of `core` faked."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

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
from fakes.storage import fresh
from modelkeep_platform.core.callers import TenantCaller
from modelkeep_platform.core.errors import (
    ConflictError,
    MalformedError,
    NotFoundError,
    TooLargeError,
    UnprocessableError,
)
from modelkeep_platform.core.ids import ObjectId, TenantId
from modelkeep_platform.models.admission import AdmissionService
from modelkeep_platform.models.graph import Graph, parse
from modelkeep_platform.models.rows import Allocated
from modelkeep_platform.models.trained import TrainedVersion
from modelkeep_platform.models.values import ModelVersion, NewVersion
from modelkeep_platform.storage.blobs import BlobStore
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.tables.models import model_aliases, model_versions, models
from modelkeep_platform.storage.transactions import System

BY = System(reason="test")
LAYER: Any = document([node("linear", {"in_features": 2, "out_features": 3}, "x0", name="layer")], [(-1, 2)], (-1, 3))
OTHER: Any = document([node("linear", {"in_features": 2, "out_features": 4}, "x0", name="layer")], [(-1, 2)], (-1, 4))
GRAPH = parse(encoded(LAYER))
WEIGHTS = weights_of(GRAPH)
MISSING = "there is no such object, or you may not see it"


@contextmanager
def memory_room() -> Iterator["ModelRoom"]:
    """A registry whose database and blobs are in memory: nothing waits for a disk."""
    database = fresh("sqlite:///:memory:")
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
            uploads=self.uploads,
            endings=self.upload_endings,
            artifacts=self.artifacts,
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
            part = weights[number * new.upload.part_bytes : (number + 1) * new.upload.part_bytes]
            self.uploads.put_part(caller, new.upload.id, number, part, hashlib.sha256(part).digest())
        return new

    def add(self, name: str = "cells", fill: int = 0, caller: TenantCaller | None = None) -> ModelVersion:
        """Upload a version whose weights are all `fill`."""
        caller = caller or tenant_caller()
        return self.admission.complete(caller, self.send(name, weights_of(GRAPH, fill=fill), caller=caller).upload.id)

    def begin(self, name: str = "cells", job: str = "job_1") -> Allocated:
        """Take a number for what a job trained, as its run does."""
        with self.database.tenant(ACME, by=BY) as tx:
            provenance = {"dataset": "rows", "privacy": None}
            return self.trained.begin(tx, name, job_id=ObjectId(job), principal="principal-app", provenance=provenance)

    def publish(self, made: TrainedVersion, job: str = "job_1") -> None:
        """Make it visible, as the end of its job does."""
        with self.database.tenant(ACME, by=BY) as tx:
            self.trained.publish(tx, made, job_id=ObjectId(job))

    def drop(self, job: str = "job_1") -> None:
        """Drop what a job began, as its end does when it does not succeed."""
        with self.database.tenant(ACME, by=BY) as tx:
            dropped = self.trained.drop(tx, job)
        if dropped is not None:
            self.artifacts.delete(ACME, *dropped)

    def train(
        self, name: str = "cells", job: str = "job_1", weights: Iterable[bytes] = (WEIGHTS,), graph: Graph = GRAPH
    ) -> int:
        """Register what a job trained, from its number to its end."""
        new = self.begin(name, job)
        self.publish(self.trained.store(ACME, new, graph, weights), job)
        return new.version

    def rows(self, owner: TenantId = ACME) -> dict[str, int]:
        """Count what the registry holds of a tenant, visible or not."""
        with self.database.tenant(owner, by=BY, read_only=True) as tx:
            return {table.name: len(tx.all(tx.select(table))) for table in (models, model_versions, model_aliases)}

    def stored(self, model_id: ObjectId, owner: TenantId = ACME) -> int:
        """Count the sealed blobs of a model."""
        return len(list(self.blobs.keys(f"{owner}/{model_id}")))

    def recorded(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Return action, outcome and facts of everything recorded."""
        return [(str(event.action), str(event.outcome), dict(event.facts)) for event in self.recorder.events]


def missed(call: Callable[[], object]) -> None:
    """Check that a call is answered as for what is not there."""
    with pytest.raises(NotFoundError) as caught:
        call()
    assert (caught.value.error_code, caught.value.message, caught.value.details) == ("not_found", MISSING, {})


def refused(code: str, call: Callable[[], object]) -> str:
    """Check that a call is refused with a code; return the message."""
    with pytest.raises((UnprocessableError, ConflictError, MalformedError, TooLargeError)) as caught:
        call()
    assert caught.value.error_code == code
    return caught.value.message
