"""A dataset service over real storage, uploads and ledger, with the ports of `core` faked."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from fakes.core import (
    ACME,
    GLOBEX,
    FakeAuthorizer,
    FakeClock,
    FakeEntropy,
    FakeEpoch,
    FakeRecorder,
    FakeSealer,
    tenant_caller,
)
from modelkeep_platform.core.callers import TenantCaller
from modelkeep_platform.core.ids import TenantId
from modelkeep_platform.datasets.service import DatasetService
from modelkeep_platform.privacy.ledger import BudgetLedger
from modelkeep_platform.storage.blobs import LocalBlobs
from modelkeep_platform.storage.database import Database
from modelkeep_platform.uploads.service import Upload, UploadService

SLUGS = {"acme": ACME, "globex": GLOBEX}


class Slugs:
    """Two tenants."""

    def id_of(self, slug: str) -> TenantId | None:
        return SLUGS.get(slug)

    def slug_of(self, tenant: TenantId) -> str:
        return next(slug for slug, known in SLUGS.items() if known == tenant)


class Room:
    """The datasets room and what it stands on."""

    def __init__(
        self, database: Database, blobs: LocalBlobs, clock: FakeClock, entropy: FakeEntropy, recorder: FakeRecorder
    ) -> None:
        self.database, self.clock, self.recorder = database, clock, recorder
        self.sealer, self.authorizer, self.epoch = FakeSealer(), FakeAuthorizer(), FakeEpoch()
        self.ledger = BudgetLedger(clock=clock, entropy=entropy)
        self.uploads = UploadService(
            database=database,
            blobs=blobs,
            sealer=self.sealer,
            clock=clock,
            entropy=entropy,
            authorizer=self.authorizer,
        )
        self.datasets = DatasetService(
            database=database,
            authorizer=self.authorizer,
            recorder=recorder,
            uploads=self.uploads,
            ledger=self.ledger,
            tenants=Slugs(),
            clock=clock,
            entropy=entropy,
            epoch=self.epoch,
        )

    def send(self, declared: dict[str, Any], data: bytes, caller: TenantCaller | None = None) -> Upload:
        """Declare a dataset and send its one part."""
        caller = caller or tenant_caller()
        digest = hashlib.sha256(data)
        upload = self.datasets.create(caller, declared, len(data), digest.hexdigest()).upload
        self.uploads.put_part(caller, upload.id, 0, data, digest.digest())
        return upload

    def add(self, declared: dict[str, Any], data: bytes, caller: TenantCaller | None = None) -> str:
        """Declare, send and complete a dataset; return its id."""
        upload = self.send(declared, data, caller)
        return str(self.datasets.complete(caller or tenant_caller(), upload.id).id)


@pytest.fixture
def room(database: Database, blobs: LocalBlobs, clock: FakeClock, entropy: FakeEntropy, recorder: FakeRecorder) -> Room:
    return Room(database, blobs, clock, entropy, recorder)


@pytest.fixture
def events(recorder: FakeRecorder) -> Callable[[], list[tuple[str, str]]]:
    """Return the (action, outcome) pairs recorded so far."""
    return lambda: [(str(event.action), str(event.outcome)) for event in recorder.events]


@pytest.fixture
def recorded(recorder: FakeRecorder) -> Callable[[], str]:
    """Return everything recorded so far as one text, to look for what must not be in it."""
    return lambda: json.dumps([[dict(event.facts), dict(event.personal)] for event in recorder.events])
