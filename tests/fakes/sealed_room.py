"""Keys, artifacts and uploads over a real database and a blob store that fails on order; parts are small."""

import hashlib

import sqlalchemy as sa

from fakes.audit import CommittedLog
from fakes.core import ACME, GLOBEX, FakeAuthorizer, FakeClock, FakeEntropy, FakeLimits, tenant_caller
from fakes.faulty_blobs import FaultyBlobs, MemoryBlobs
from fakes.root_keys import FakeRootKey
from fakes.storage import fresh
from modelkeep_platform.core.callers import TenantCaller
from modelkeep_platform.core.ids import PLATFORM, ObjectId, TenantId
from modelkeep_platform.core.refs import Kind
from modelkeep_platform.core.sealing import Purpose
from modelkeep_platform.keys.roots.port import RootKey
from modelkeep_platform.keys.service import KeyService
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.tables.keys import wrapped_deks, wrapped_keks
from modelkeep_platform.storage.tables.uploads import upload_parts, uploads
from modelkeep_platform.storage.transactions import System
from modelkeep_platform.uploads.artifacts import Artifacts
from modelkeep_platform.uploads.endings import UploadEndings
from modelkeep_platform.uploads.rows import Upload
from modelkeep_platform.uploads.service import UploadService

BY = System(reason="a test")
PART_BYTES = 64


class SealedRoom:
    """What lies between an upload and the disk.

    Args:
        database: with every table.
        clock: what it says the time is.
        root: the root of trust.
    """

    def __init__(self, database: Database, clock: FakeClock, root: RootKey | None = None) -> None:
        self.database, self.clock, self.root = database, clock, root or FakeRootKey()
        self.entropy, self.authorizer = FakeEntropy(), FakeAuthorizer()
        self.recorder = CommittedLog(database, clock)
        self.limits = FakeLimits()
        self.dropped: list[str] = []
        self.memory = MemoryBlobs()
        self.blobs = FaultyBlobs(self.memory)
        self.keys, self.uploads = self.restarted()
        for tenant in (ACME, GLOBEX, PLATFORM):
            with database.tenant(tenant, by=BY) as tx:
                self.keys.create_tenant_key(tx, tenant)

    def restarted(self) -> tuple[KeyService, UploadService]:
        """Start again: nothing is remembered that is not in the database or the store."""
        self.keys = KeyService(database=self.database, root=self.root, clock=self.clock, entropy=self.entropy)
        self.artifacts = Artifacts(blobs=self.blobs, sealer=self.keys)
        self.endings = UploadEndings(
            database=self.database,
            artifacts=self.artifacts,
            drops={Kind.MODEL: lambda _tx, upload: self.dropped.append(upload.id)},
            sealer=self.keys,
            recorder=self.recorder,
            clock=self.clock,
        )
        self.uploads = UploadService(
            database=self.database,
            artifacts=self.artifacts,
            endings=self.endings,
            sealer=self.keys,
            recorder=self.recorder,
            clock=self.clock,
            entropy=self.entropy,
            authorizer=self.authorizer,
            limits=self.limits,
        )
        return self.keys, self.uploads

    def key_for(self, object_id: str, owner: TenantId = ACME) -> ObjectId:
        """Make an object's data key."""
        with self.database.tenant(owner, by=BY) as tx:
            self.keys.create_key(tx, owner, ObjectId(object_id))
        return ObjectId(object_id)

    def begin(
        self,
        data: bytes,
        *,
        object_id: str = "mdl_1",
        version: int = 1,
        caller: TenantCaller | None = None,
        sha256: str | None = None,
        create_key: bool = True,
    ) -> Upload:
        """Begin an upload of `data` as weights."""
        caller = caller or tenant_caller()
        with self.database.tenant(caller.tenant, by=caller) as tx:
            return self.uploads.begin(
                tx,
                caller=caller,
                object_id=ObjectId(object_id),
                kind=Kind.MODEL,
                version=version,
                purpose=Purpose.WEIGHTS,
                size_bytes=len(data),
                sha256=sha256 or hashlib.sha256(data).hexdigest(),
                create_key=create_key,
            )

    def send(self, upload: Upload, number: int, part: bytes, caller: TenantCaller | None = None) -> int:
        """Send one part with its digest; return how many there are."""
        digest = hashlib.sha256(part).digest()
        return self.uploads.put_part(caller or tenant_caller(), upload.id, number, part, digest).received

    def complete(self, upload: Upload, caller: TenantCaller | None = None) -> None:
        """Complete as a registry does: check, then one transaction."""
        self.uploads.check_complete(caller or tenant_caller(), upload.id)
        self.finish(upload, caller)

    def finish(self, upload: Upload, caller: TenantCaller | None = None) -> None:
        """Make the object visible, in one transaction."""
        with self.database.tenant(upload.owner, by=BY) as tx:
            self.endings.complete(tx, upload, by=caller or tenant_caller())

    def forget(self, object_id: str = "mdl_1", owner: TenantId = ACME) -> None:
        """Delete an object's key, as its deletion does."""
        with self.database.tenant(owner, by=BY) as tx:
            self.endings.forget(tx, ObjectId(object_id), by=tenant_caller(owner))

    def upload(self, data: bytes, *, object_id: str = "mdl_1", version: int = 1, create_key: bool = True) -> Upload:
        """Upload `data` from beginning to end."""
        upload = self.begin(data, object_id=object_id, version=version, create_key=create_key)
        for number, part in enumerate(parts_of(data)):
            self.send(upload, number, part)
        self.complete(upload)
        return upload

    def read(self, object_id: str = "mdl_1", version: int = 1, owner: TenantId = ACME) -> bytes:
        """Return an artifact's plaintext."""
        return b"".join(self.artifacts.read(owner, ObjectId(object_id), version, Purpose.WEIGHTS))

    def rows(self, table: sa.Table) -> list[dict[str, object]]:
        """Return every row of a table."""
        with self.database.platform(read_only=True) as tx:
            return [dict(row) for row in tx.all(sa.select(table))]

    def everything(self) -> tuple[object, ...]:
        """Return all that is stored, to see that nothing changed."""
        tables = (uploads, upload_parts, wrapped_keks, wrapped_deks)
        return (dict(self.memory.data), *(self.rows(table) for table in tables))


def memory_database() -> Database:
    """A database in memory with every table."""
    return fresh("sqlite:///:memory:")


def parts_of(data: bytes) -> list[bytes]:
    """Cut `data` into parts."""
    return [data[at : at + PART_BYTES] for at in range(0, len(data), PART_BYTES)]
