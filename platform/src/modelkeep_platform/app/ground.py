"""What every room stands on: database, epoch, disk, keys, the log, and who decides calls."""

import socket
from contextlib import ExitStack
from pathlib import Path

from modelkeep_platform.access.service import PolicyAuthorizer
from modelkeep_platform.access.store import AccessStore
from modelkeep_platform.app.settings import Settings
from modelkeep_platform.audit.entries import AUDIT_KEY
from modelkeep_platform.audit.integrator import Integrator
from modelkeep_platform.audit.log import AuditLog
from modelkeep_platform.audit.refusal_notes import RefusalNotes
from modelkeep_platform.core.ids import PLATFORM
from modelkeep_platform.core.limits import MIB, TenantLimits
from modelkeep_platform.core.refusals import Quota
from modelkeep_platform.keys.platform_secrets import Ed25519Signer, PlatformSecrets
from modelkeep_platform.keys.roots.file import FileRootKey
from modelkeep_platform.keys.service import KeyService
from modelkeep_platform.limits.store import LimitStore
from modelkeep_platform.storage import migrate
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.disk import Disk
from modelkeep_platform.storage.epoch import EpochWatcher
from modelkeep_platform.storage.peers import Peers
from modelkeep_platform.storage.transactions import System
from modelkeep_platform.telemetry.system import SystemClock, SystemEntropy


class Ground:
    """The lowest parts of one server process.

    Args:
        data: the data folder.
        settings: what the installation is set to.

    Raises:
        ConflictError: the database is of another version.
        RootKeyError: the root key cannot be used.
    """

    def __init__(self, *, data: Path, settings: Settings) -> None:
        self.clock = clock = SystemClock()
        self.entropy = entropy = SystemEntropy()
        self.disk = Disk(data, reserve_bytes=settings.disk_reserve_mib * MIB, clock=clock)
        self.database = database = Database(f"sqlite:///{data / 'platform.db'}")
        migrate.check(database)
        self.process_id = process_id = f"{socket.gethostname()[:30]}-{entropy.random_bytes(8).hex()}"
        peers = Peers(database=database, clock=clock, process_id=process_id)
        self.epoch = epoch = EpochWatcher(database=database, clock=clock, peers=peers)
        root = FileRootKey.load(Path(settings.root_key), data=data)
        self.keys = KeyService(database=database, root=root, clock=clock, entropy=entropy, epoch=epoch.last_known)
        self.secrets = PlatformSecrets(database=database, sealer=self.keys, clock=clock)
        self._prepare()
        self.signer = Ed25519Signer(self.secrets.get_or_create("checkpoint-key", Ed25519Signer.generate))
        self.log = AuditLog(database=database, sealer=self.keys, clock=clock, entropy=entropy)
        self.integrator = Integrator(
            database=database, signer=self.signer, origin=settings.log_origin, clock=clock, entropy=entropy
        )
        self.limits = limits = LimitStore(database=database, defaults=settings.tenant_limits, epoch=epoch)
        self.refusals = RefusalNotes(
            recorder=self.log,
            clock=clock,
            # A fifth: what no policy decided is less worth keeping one by one.
            per_window=lambda tenant: self._refusals_here(limits.last_known(tenant), part=5),
        )
        self.authorizer = PolicyAuthorizer(
            database=database,
            store=AccessStore(database=database),
            recorder=self.log,
            epoch=epoch,
            clock=clock,
            refusals_per_minute=lambda tenant: self._refusals_here(limits.of(tenant)),
        )

    def start(self) -> None:
        """Start what runs beside requests."""
        self.epoch.start()
        self.log.start()
        self.refusals.start()
        self.integrator.start()

    def close(self) -> None:
        """Stop it, what others depend on last; what cannot be stopped in order (a full disk) keeps no other from it."""
        with ExitStack() as last_first:
            for part in (self.database, self.epoch, self.integrator, self.log, self.refusals, self.authorizer):
                last_first.callback(part.close)

    def _refusals_here(self, limits: TenantLimits, *, part: int = 1) -> Quota:
        """Return this process's part of the refusals that are recorded one by one each minute, or a `part` of that."""
        divided = part * self.epoch.processes
        return Quota(
            max(1, limits.refusals_per_minute // divided), max(1, limits.principal_refusals_per_minute // divided)
        )

    def _prepare(self) -> None:
        """Make the platform's own keys, once."""
        with self.database.tenant(PLATFORM, by=System(reason="prepare the platform's keys")) as tx:
            if not self.keys.has_tenant_key(tx):
                self.keys.create_tenant_key(tx, PLATFORM)
                self.keys.create_key(tx, PLATFORM, AUDIT_KEY)
        self.secrets.prepare()
