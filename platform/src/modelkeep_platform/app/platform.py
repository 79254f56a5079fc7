"""The composition root: builds every part from the settings and wires them through their ports. Nothing else does."""

import logging
import socket
import threading
from pathlib import Path
from typing import Final

from starlette.types import ASGIApp

from modelkeep_platform import __version__
from modelkeep_platform.access.grants import GrantService
from modelkeep_platform.access.policies import PolicyService
from modelkeep_platform.access.service import PolicyAuthorizer
from modelkeep_platform.access.store import AccessStore
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
from modelkeep_platform.http.gateway import Gateway
from modelkeep_platform.http.idempotency import IdempotencyStore
from modelkeep_platform.http.issuer import issuer_routes
from modelkeep_platform.http.management import Management
from modelkeep_platform.http.v1 import all_endpoints
from modelkeep_platform.http.v2 import DataPlane
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
from modelkeep_platform.storage.epoch import EpochWatcher
from modelkeep_platform.storage.peers import Peers
from modelkeep_platform.storage.transactions import System
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

    Raises:
        ConflictError: the database is of another version.
        RootKeyError: the root key cannot be used.
    """

    def __init__(self, *, data: Path, settings: Settings) -> None:
        clock, entropy = SystemClock(), SystemEntropy()
        database = Database(f"sqlite:///{data / 'platform.db'}")
        migrate.check(database)
        self._database = database
        name = f"{socket.gethostname()[:30]}-{entropy.random_bytes(8).hex()}"
        peers = Peers(database=database, clock=clock, process_id=name)
        self.epoch = EpochWatcher(database=database, clock=clock, peers=peers)
        root = FileRootKey.load(Path(settings.root_key))
        self._keys = KeyService(database=database, root=root, clock=clock, entropy=entropy)
        self._secrets = PlatformSecrets(database=database, sealer=self._keys, clock=clock)
        self._prepare()
        self.signer = Ed25519Signer(self._secrets.get_or_create("checkpoint-key", Ed25519Signer.generate))
        self._audit_log = AuditLog(database=database, sealer=self._keys, clock=clock, entropy=entropy)
        self._integrator = Integrator(
            database=database, signer=self.signer, origin=settings.log_origin, clock=clock, entropy=entropy
        )
        recorder, epoch = self._audit_log, self.epoch
        self._refusals = RefusalNotes(recorder=recorder, clock=clock)

        self._authorizer = authorizer = PolicyAuthorizer(
            database=database, store=AccessStore(database=database), recorder=recorder, epoch=epoch, clock=clock
        )
        policies = PolicyService(database=database, authorizer=authorizer, recorder=recorder, epoch=epoch, clock=clock)
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
            blobs=LocalBlobs(data / "blobs"),
            sealer=self._keys,
            clock=clock,
            entropy=entropy,
            authorizer=authorizer,
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
        queue = JobQueue(clock=clock, entropy=entropy)
        training = TrainingService(
            database=database,
            authorizer=authorizer,
            recorder=recorder,
            queue=queue,
            ledger=ledger,
            datasets=datasets,
            models=models,
            sealer=self._keys,
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
        requests = RequestLimits(
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
            idempotency=IdempotencyStore(database=database, clock=clock),
            base_url=settings.base_url,
            limits=requests,
            unacknowledged=self.epoch.unacknowledged,
            notes=self._refusals,
        )
        pages = issuer_routes(issuer=issuer, tenants=self.tenants, base_url=settings.base_url, entropy=entropy)
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
        )
        self.asgi: ASGIApp = Gateway(
            management=management.app(pages),
            data_plane=data_plane,
            entropy=entropy,
            notes=self._refusals,
            on_shutdown=self._serving.close,
        )
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
            except ModelkeepError:
                _log.exception("uploads could not be expired; it is tried again")
