"""The composition root: builds every part from the settings and wires them through their ports. Nothing else does."""

import logging
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from sqlalchemy.exc import SQLAlchemyError
from starlette.types import ASGIApp

from modelkeep_platform import __version__
from modelkeep_platform.access.grants import GrantService
from modelkeep_platform.access.policies import PolicyService
from modelkeep_platform.access.service import PolicyAuthorizer
from modelkeep_platform.access.store import AccessStore
from modelkeep_platform.app.gauges import Gauges, Live
from modelkeep_platform.app.health import Health
from modelkeep_platform.app.settings import Settings
from modelkeep_platform.audit.entries import AUDIT_KEY
from modelkeep_platform.audit.integrator import Integrator
from modelkeep_platform.audit.log import AuditLog
from modelkeep_platform.audit.refusals import RefusalNotes
from modelkeep_platform.audit.service import AuditService
from modelkeep_platform.core.errors import ModelkeepError
from modelkeep_platform.core.events import Event
from modelkeep_platform.core.ids import PLATFORM
from modelkeep_platform.core.limits import MIB
from modelkeep_platform.core.refs import Kind
from modelkeep_platform.datasets.service import DatasetService
from modelkeep_platform.http import openapi
from modelkeep_platform.http.connection import Connections
from modelkeep_platform.http.gateway import Gateway
from modelkeep_platform.http.idempotency import IdempotencyStore
from modelkeep_platform.http.issuer import issuer_routes
from modelkeep_platform.http.management import Management
from modelkeep_platform.http.v1 import all_endpoints
from modelkeep_platform.http.v2 import DataPlane
from modelkeep_platform.http.watch import Watch
from modelkeep_platform.identity.authenticate import Authenticator
from modelkeep_platform.identity.issuer import EmbeddedIssuer, new_operator
from modelkeep_platform.identity.links import Links
from modelkeep_platform.identity.members import MemberService
from modelkeep_platform.identity.memberships import Memberships
from modelkeep_platform.identity.registry import TenantRegistry
from modelkeep_platform.identity.secrets import GuessLimit, new_secret
from modelkeep_platform.identity.service_accounts import ServiceAccountService
from modelkeep_platform.jobs.queue import JobQueue
from modelkeep_platform.keys.platform_secrets import Ed25519Signer, PlatformSecrets
from modelkeep_platform.keys.roots.file import FileRootKey
from modelkeep_platform.keys.service import KeyService
from modelkeep_platform.limits.service import Allowance, RequestLimits
from modelkeep_platform.models.service import ModelService
from modelkeep_platform.privacy.ledger import BudgetLedger
from modelkeep_platform.serving.service import ServingService
from modelkeep_platform.storage import migrate
from modelkeep_platform.storage.blobs import LocalBlobs
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.disk import Disk, ReservedBlobs
from modelkeep_platform.storage.epoch import EpochWatcher
from modelkeep_platform.storage.peers import Peers
from modelkeep_platform.storage.transactions import System
from modelkeep_platform.telemetry.metrics import Metrics
from modelkeep_platform.telemetry.system import SystemClock, SystemEntropy
from modelkeep_platform.tenants.service import TenantService
from modelkeep_platform.training.dispatcher import Dispatcher
from modelkeep_platform.training.runners.local import LocalRunner
from modelkeep_platform.training.service import TrainingService
from modelkeep_platform.uploads.service import UploadService
from modelkeep_platform.workers.limits import Limits
from modelkeep_platform.workers.sandbox import ProcessSandbox

_log = logging.getLogger(__name__)
OPERATOR: Final = "operator"
_EXPIRY_S: Final = 600.0


class Platform:
    """One installation, in one process.

    Args:
        data: the data folder.
        settings: what the installation is set to.
        dropped_lines: how many lines of the server's own log were dropped, for the metrics.

    Raises:
        ConflictError: the database is of another version.
        RootKeyError: the root key cannot be used.
    """

    def __init__(self, *, data: Path, settings: Settings, dropped_lines: Callable[[], int] = lambda: 0) -> None:
        clock, entropy, quota = SystemClock(), SystemEntropy(), settings.quota
        self.metrics = Metrics()
        self.connections = Connections(
            most=settings.max_connections,
            of_source=settings.source_connections,
            refused=self.metrics.connection_refused,
        )
        self.disk = disk = Disk(data, reserve_bytes=settings.disk_reserve_mib * MIB, clock=clock)
        database = Database(f"sqlite:///{data / 'platform.db'}")
        migrate.check(database)
        self._database = database
        peers = Peers(
            database=database,
            clock=clock,
            process_id=f"{socket.gethostname()[:30]}-{entropy.random_bytes(8).hex()}",
        )
        self.epoch = EpochWatcher(database=database, clock=clock, peers=peers)
        root = FileRootKey.load(Path(settings.root_key), data=data)
        self._keys = KeyService(database=database, root=root, clock=clock, entropy=entropy, epoch=self.epoch.last_known)
        self._secrets = PlatformSecrets(database=database, sealer=self._keys, clock=clock)
        self._prepare()
        self.signer = Ed25519Signer(self._secrets.get_or_create("checkpoint-key", Ed25519Signer.generate))
        self._audit_log = AuditLog(database=database, sealer=self._keys, clock=clock, entropy=entropy)
        self._integrator = Integrator(
            database=database, signer=self.signer, origin=settings.log_origin, clock=clock, entropy=entropy
        )
        recorder, epoch = self._audit_log, self.epoch
        # A fifth: what no policy decided is less worth keeping one by one.
        self._refusals = RefusalNotes(recorder=recorder, clock=clock, per_window=max(1, quota.refusals_per_minute // 5))

        self._authorizer = authorizer = PolicyAuthorizer(
            database=database,
            store=AccessStore(database=database),
            recorder=recorder,
            epoch=epoch,
            clock=clock,
            refusals_per_minute=quota.refusals_per_minute,
        )
        policies = PolicyService(
            database=database,
            authorizer=authorizer,
            recorder=recorder,
            epoch=epoch,
            clock=clock,
            max_versions=quota.policy_versions,
        )
        registry = TenantRegistry(database=database)
        self._memberships = Memberships(issuer=settings.issuer)
        links = Links(database=database, clock=clock, base_url=settings.base_url)
        issuer = EmbeddedIssuer(
            database=database,
            secret_store=self._secrets,
            issuer=settings.issuer,
            registry=registry,
            memberships=self._memberships,
            guesses=GuessLimit(database=database, clock=clock),
            clock=clock,
            entropy=entropy,
        )
        authenticator = Authenticator(
            database=database,
            keys=issuer,
            issuer=settings.issuer,
            registry=registry,
            memberships=self._memberships,
            epoch=epoch,
            clock=clock,
        )
        self.tenants = TenantService(
            database=database,
            registry=registry,
            memberships=self._memberships,
            links=links,
            sealer=self._keys,
            policies=policies,
            audit_key=AUDIT_KEY,
            authorizer=authorizer,
            recorder=recorder,
            epoch=epoch,
            clock=clock,
            entropy=entropy,
        )
        members = MemberService(
            quota=quota,
            database=database,
            memberships=self._memberships,
            links=links,
            authorizer=authorizer,
            recorder=recorder,
            epoch=epoch,
            clock=clock,
            entropy=entropy,
        )
        service_accounts = ServiceAccountService(
            quota=quota,
            database=database,
            memberships=self._memberships,
            authorizer=authorizer,
            recorder=recorder,
            epoch=epoch,
            clock=clock,
            entropy=entropy,
        )
        self._uploads = UploadService(
            database=database,
            blobs=ReservedBlobs(LocalBlobs(data / "blobs"), disk=disk),
            sealer=self._keys,
            clock=clock,
            entropy=entropy,
            authorizer=authorizer,
            quota=quota,
        )
        models = ModelService(
            database=database,
            authorizer=authorizer,
            recorder=recorder,
            uploads=self._uploads,
            sealer=self._keys,
            tenants=registry,
            clock=clock,
            entropy=entropy,
            epoch=epoch,
        )
        ledger = BudgetLedger(clock=clock, entropy=entropy)
        datasets = DatasetService(
            database=database,
            authorizer=authorizer,
            recorder=recorder,
            uploads=self._uploads,
            ledger=ledger,
            tenants=registry,
            clock=clock,
            entropy=entropy,
            epoch=epoch,
        )
        queue = JobQueue(clock=clock, entropy=entropy, max_active=quota.active_jobs)
        training = TrainingService(
            database=database,
            authorizer=authorizer,
            recorder=recorder,
            queue=queue,
            ledger=ledger,
            datasets=datasets,
            models=models,
            sealer=self._keys,
            uploads=self._uploads,
        )
        limits = Limits(memory_bytes=settings.worker_memory_mib * MIB, threads=settings.worker_threads)
        sandbox = ProcessSandbox()
        self._dispatcher = Dispatcher(
            database=database,
            queue=queue,
            ledger=ledger,
            datasets=datasets,
            models=models,
            uploads=self._uploads,
            sealer=self._keys,
            recorder=recorder,
            runner=LocalRunner(limits=limits, sandbox=sandbox),
            entropy=entropy,
        )
        self._serving = ServingService(
            weights=lambda version: models.open_weights(version.ref.owner, version.ref.object_id, version.version),
            limits=limits,
            sandbox=sandbox,
            max_workers=settings.max_workers,
        )
        grants = GrantService(
            database=database,
            authorizer=authorizer,
            recorder=recorder,
            epoch=epoch,
            clock=clock,
            entropy=entropy,
            resolvers={Kind.MODEL: models.resolve, Kind.DATASET: datasets.resolve},
            tenants=registry,
        )
        audit = AuditService(
            database=database,
            authorizer=authorizer,
            sealer=self._keys,
            signer=self.signer,
            origin=settings.log_origin,
        )
        self.endpoints = all_endpoints(
            tenants=self.tenants,
            members=members,
            service_accounts=service_accounts,
            registry=registry,
            models=models,
            datasets=datasets,
            uploads=self._uploads,
            training=training,
            grants=grants,
            policies=policies,
            audit=audit,
            base_url=settings.base_url,
        )
        self.requests = requests = RequestLimits(
            database=database,
            clock=clock,
            allowance=Allowance(
                tenant_requests=settings.tenant_requests_per_minute,
                principal_requests=settings.principal_requests_per_minute,
                concurrent=settings.tenant_concurrent_requests,
            ),
            processes=lambda: self.epoch.processes,
        )
        management = Management(
            endpoints=self.endpoints,
            authenticator=authenticator,
            idempotency=IdempotencyStore(database=database, clock=clock, tenant_keys=quota.idempotency_keys),
            base_url=settings.base_url,
            limits=requests,
            unacknowledged=self.epoch.unacknowledged,
            notes=self._refusals,
        )
        pages = issuer_routes(issuer=issuer, tenants=self.tenants, base_url=settings.base_url, entropy=entropy)
        self.health = Health(
            {
                "the policy epoch cannot be read": epoch.current,
                "the audit log takes no entries": lambda: self._audit_log.accepting,
                "the root key cannot be used": lambda: self._keys.check_root(PLATFORM),
                "the disk is full": disk.has_room,
            },
            clock=clock,
        )
        data_plane = DataPlane(
            authenticator=authenticator,
            models=models,
            serving=self._serving,
            recorder=recorder,
            epoch=epoch,
            clock=clock,
            limits=requests,
            base_url=settings.base_url,
            notes=self._refusals,
            ready=self.health.ready,
        )
        self.asgi: ASGIApp = Gateway(
            management=management.app(pages),
            data_plane=data_plane,
            entropy=entropy,
            notes=self._refusals,
            on_shutdown=self._serving.close,
            watch=Watch(self.metrics),
            has_room=disk.has_room,
        )
        self.metrics.collect(Gauges(database=database, clock=clock, live=self._live(disk), dropped=dropped_lines))
        self._stop = threading.Event()
        self._housekeeper = threading.Thread(target=self._keep_house, name="housekeeper", daemon=True)

    def start(self) -> None:
        """Start what runs beside requests: epoch, log, integrator, job dispatcher, expiry."""
        self.epoch.start()
        self._audit_log.start()
        self._refusals.start()
        self._integrator.start()
        self._dispatcher.start()
        self._housekeeper.start()

    def close(self) -> None:
        """Stop everything, what others depend on last."""
        self._stop.set()
        self._dispatcher.close()
        self._authorizer.close()
        self._refusals.close()
        self._audit_log.close()
        self._integrator.close()
        self.epoch.close()
        self._database.close()

    def record(self, event: Event) -> None:
        """Record what an operator's command did."""
        with self._database.platform() as tx:
            self._audit_log.record(tx, event)

    def create_operator(self) -> tuple[str, str]:
        """Make the operator's client; return its id and secret, which is kept as a hash only."""
        secret = new_secret("mko")
        with self._database.platform() as tx:
            new_operator(tx, self._memberships, client_id=OPERATOR, secret=secret, now=SystemClock().now_s())
        return OPERATOR, secret

    def openapi(self) -> dict[str, object]:
        """Return the OpenAPI document of what is served."""
        return openapi.document(self.endpoints, version=__version__)

    def _live(self, disk: Disk) -> tuple[Live, ...]:
        return (
            Live("modelkeep_predictions_waiting", "Predictions that wait for a worker.", lambda: self._serving.waiting),
            Live("modelkeep_workers_alive", "Worker processes that serve predictions.", lambda: self._serving.alive),
            Live("modelkeep_connections", "Open connections.", lambda: self.connections.open),
            Live("modelkeep_audit_queued", "Audit entries in memory, not committed.", lambda: self._audit_log.queued),
            Live("modelkeep_epoch_age_seconds", "Since the policy epoch was last read.", lambda: self.epoch.age_s),
            Live("modelkeep_server_processes", "Server processes that are alive.", lambda: self.epoch.processes),
            Live("modelkeep_ready", "1 when the server should get requests.", lambda: not self.health.reasons()),
            Live("modelkeep_disk_free_bytes", "Free on the data folder's disk.", disk.free_bytes),
            Live("modelkeep_disk_reserve_bytes", "Kept of it for the log.", lambda: disk.reserve_bytes),
        )

    def _prepare(self) -> None:
        """Make the platform's own keys, once."""
        with self._database.tenant(PLATFORM, by=System(reason="prepare the platform's keys")) as tx:
            if not self._keys.has_tenant_key(tx):
                self._keys.create_tenant_key(tx, PLATFORM)
                self._keys.create_key(tx, PLATFORM, AUDIT_KEY)
        self._secrets.prepare()

    def _keep_house(self) -> None:
        while not self._stop.wait(_EXPIRY_S):
            try:
                self._uploads.expire()
                self._dispatcher.clear_leftovers()
            except (ModelkeepError, SQLAlchemyError):
                _log.exception("what is over could not be cleared away; it is tried again")
