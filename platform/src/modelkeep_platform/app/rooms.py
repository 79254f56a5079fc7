"""The services of every feature, over the ground."""

from dataclasses import replace
from pathlib import Path
from typing import Final

from modelkeep_platform.access.grants import GrantService
from modelkeep_platform.access.policies import PolicyService
from modelkeep_platform.app.ground import Ground
from modelkeep_platform.app.settings import Settings
from modelkeep_platform.audit.entries import AUDIT_KEY
from modelkeep_platform.audit.service import AuditService
from modelkeep_platform.core.callers import PrincipalKind
from modelkeep_platform.core.limits import MIB
from modelkeep_platform.core.refs import Kind
from modelkeep_platform.datasets.service import DatasetService
from modelkeep_platform.datasets.service import drop_pending as drop_dataset
from modelkeep_platform.http.idempotency import kept_keys
from modelkeep_platform.identity.authenticate import Authenticator
from modelkeep_platform.identity.guesses import GuessLimit
from modelkeep_platform.identity.issuer import EmbeddedIssuer
from modelkeep_platform.identity.issuer_keys import IssuerKeys
from modelkeep_platform.identity.links import Links
from modelkeep_platform.identity.members import MemberService
from modelkeep_platform.identity.memberships import Memberships
from modelkeep_platform.identity.principals import PresentPrincipals
from modelkeep_platform.identity.registry import TenantRegistry
from modelkeep_platform.identity.service_accounts import ServiceAccountService
from modelkeep_platform.jobs.queue import JobQueue
from modelkeep_platform.models.admission import AdmissionService
from modelkeep_platform.models.rows import drop_pending as drop_version
from modelkeep_platform.models.service import ModelService
from modelkeep_platform.models.trained import TrainedModels
from modelkeep_platform.models.versions import Versions
from modelkeep_platform.privacy.ledger import BudgetLedger
from modelkeep_platform.serving.service import ServingService
from modelkeep_platform.storage.blobs import LocalBlobs
from modelkeep_platform.storage.disk import ReservedBlobs
from modelkeep_platform.tenants.limits import TenantLimitService
from modelkeep_platform.tenants.service import TenantService
from modelkeep_platform.training.dispatcher import Dispatcher
from modelkeep_platform.training.endings import JobEndings
from modelkeep_platform.training.entitlement import Entitlement
from modelkeep_platform.training.run import Parts
from modelkeep_platform.training.runners.local import LocalRunner
from modelkeep_platform.training.service import TrainingService
from modelkeep_platform.uploads.artifacts import Artifacts
from modelkeep_platform.uploads.endings import UploadEndings
from modelkeep_platform.uploads.service import UploadService
from modelkeep_platform.uploads.usage import stored_bytes
from modelkeep_platform.workers.limits import Limits
from modelkeep_platform.workers.sandbox import ProcessSandbox

TRAINING_NICENESS: Final = 10
"""Training stands back for the server and for predictions when there is not enough processor for all."""


class Rooms:
    """Every service of one server process.

    Args:
        ground: what they stand on.
        data: the data folder.
        settings: what the installation is set to.
    """

    def __init__(self, ground: Ground, *, data: Path, settings: Settings) -> None:
        self._ground = ground
        self._settings = settings
        self.policies = PolicyService(
            database=ground.database,
            authorizer=ground.authorizer,
            recorder=ground.log,
            epoch=ground.epoch,
            clock=ground.clock,
            limits=ground.limits,
        )
        self._queue = JobQueue(clock=ground.clock, entropy=ground.entropy, limits=ground.limits)
        self._identity()
        self._registries(data)
        self._limits()
        self._training()
        self._governance()

    def _identity(self) -> None:
        ground, settings = self._ground, self._settings
        self.registry = TenantRegistry(database=ground.database)
        self.memberships = Memberships(issuer=settings.issuer)
        links = Links(database=ground.database, clock=ground.clock, base_url=settings.base_url)
        self.issuer = EmbeddedIssuer(
            database=ground.database,
            secret_store=ground.secrets,
            issuer=settings.issuer,
            registry=self.registry,
            memberships=self.memberships,
            guesses=GuessLimit(database=ground.database, clock=ground.clock),
            clock=ground.clock,
            entropy=ground.entropy,
            epoch=ground.epoch,
        )
        self.issuer_keys = IssuerKeys(
            database=ground.database,
            issuer=self.issuer,
            authorizer=ground.authorizer,
            recorder=ground.log,
            epoch=ground.epoch,
        )
        self.authenticator = Authenticator(
            database=ground.database,
            keys=self.issuer,
            issuer=settings.issuer,
            registry=self.registry,
            memberships=self.memberships,
            epoch=ground.epoch,
            clock=ground.clock,
        )
        self.tenants = TenantService(
            database=ground.database,
            registry=self.registry,
            memberships=self.memberships,
            links=links,
            sealer=ground.keys,
            policies=self.policies,
            audit_key=AUDIT_KEY,
            authorizer=ground.authorizer,
            recorder=ground.log,
            epoch=ground.epoch,
            clock=ground.clock,
            entropy=ground.entropy,
        )
        self.members = MemberService(
            limits=ground.limits,
            database=ground.database,
            memberships=self.memberships,
            links=links,
            authorizer=ground.authorizer,
            recorder=ground.log,
            epoch=ground.epoch,
            clock=ground.clock,
            entropy=ground.entropy,
        )
        self.service_accounts = ServiceAccountService(
            limits=ground.limits,
            database=ground.database,
            memberships=self.memberships,
            authorizer=ground.authorizer,
            recorder=ground.log,
            epoch=ground.epoch,
            clock=ground.clock,
            entropy=ground.entropy,
        )

    def _registries(self, data: Path) -> None:
        ground = self._ground
        blobs = ReservedBlobs(LocalBlobs(data / "blobs"), disk=ground.disk)
        self._artifacts = artifacts = Artifacts(blobs=blobs, sealer=ground.keys)
        self.upload_endings = UploadEndings(
            database=ground.database,
            artifacts=artifacts,
            drops={
                Kind.MODEL: lambda tx, upload: drop_version(tx, ground.keys, upload.object_id, upload.version),
                Kind.DATASET: lambda tx, upload: drop_dataset(tx, ground.keys, upload.object_id),
            },
            sealer=ground.keys,
            recorder=ground.log,
            clock=ground.clock,
        )
        self.uploads = UploadService(
            database=ground.database,
            artifacts=artifacts,
            endings=self.upload_endings,
            sealer=ground.keys,
            recorder=ground.log,
            clock=ground.clock,
            entropy=ground.entropy,
            authorizer=ground.authorizer,
            limits=ground.limits,
        )
        versions = Versions(database=ground.database, sealer=ground.keys)
        self.models = ModelService(
            database=ground.database,
            authorizer=ground.authorizer,
            recorder=ground.log,
            artifacts=artifacts,
            endings=self.upload_endings,
            versions=versions,
            tenants=self.registry,
            epoch=ground.epoch,
            limits=ground.limits,
        )
        self.admission = AdmissionService(
            database=ground.database,
            authorizer=ground.authorizer,
            uploads=self.uploads,
            endings=self.upload_endings,
            artifacts=artifacts,
            versions=versions,
            clock=ground.clock,
            entropy=ground.entropy,
            epoch=ground.epoch,
        )
        self.trained = TrainedModels(
            recorder=ground.log,
            artifacts=artifacts,
            sealer=ground.keys,
            versions=versions,
            clock=ground.clock,
            entropy=ground.entropy,
        )
        self.ledger = BudgetLedger(clock=ground.clock, entropy=ground.entropy)
        self.datasets = DatasetService(
            database=ground.database,
            authorizer=ground.authorizer,
            recorder=ground.log,
            uploads=self.uploads,
            endings=self.upload_endings,
            artifacts=artifacts,
            ledger=self.ledger,
            tenants=self.registry,
            clock=ground.clock,
            entropy=ground.entropy,
            epoch=ground.epoch,
        )

    def _limits(self) -> None:
        ground, members = self._ground, self.memberships
        self.tenant_limits = TenantLimitService(
            database=ground.database,
            registry=self.registry,
            store=ground.limits,
            usage={
                "storage_mib": lambda tx: -(-sum(stored_bytes(tx).values()) // MIB),
                "open_uploads": self.uploads.open_uploads,
                "active_jobs": self._queue.active,
                "running_jobs": self._queue.running,
                "members": lambda tx: members.count(tx, PrincipalKind.USER),
                "service_accounts": lambda tx: members.count(tx, PrincipalKind.SERVICE_ACCOUNT),
                "policy_versions": self.policies.kept,
                "idempotency_keys": kept_keys,
            },
            authorizer=ground.authorizer,
            recorder=ground.log,
            epoch=ground.epoch,
            clock=ground.clock,
        )

    def _training(self) -> None:
        ground, settings, models, queue = self._ground, self._settings, self.models, self._queue
        self.job_endings = JobEndings(
            database=ground.database,
            queue=queue,
            ledger=self.ledger,
            trained=self.trained,
            artifacts=self._artifacts,
            sealer=ground.keys,
            recorder=ground.log,
            epoch=ground.epoch,
        )
        self.training = TrainingService(
            database=ground.database,
            authorizer=ground.authorizer,
            recorder=ground.log,
            queue=queue,
            ledger=self.ledger,
            datasets=self.datasets,
            models=models,
            sealer=ground.keys,
            uploads=self.uploads,
            endings=self.job_endings,
        )
        limits = Limits(memory_bytes=settings.worker_memory_mib * MIB, threads=settings.worker_threads)
        sandbox = ProcessSandbox()
        principals = PresentPrincipals(
            database=ground.database, registry=self.registry, memberships=self.memberships, entropy=ground.entropy
        )
        self.dispatcher = Dispatcher(
            parts=Parts(
                database=ground.database,
                queue=queue,
                ledger=self.ledger,
                datasets=self.datasets,
                models=models,
                trained=self.trained,
                artifacts=self._artifacts,
                sealer=ground.keys,
                entitlement=Entitlement(principals=principals, authorizer=ground.authorizer, models=models),
                endings=self.job_endings,
                epoch=ground.epoch,
            ),
            runner=LocalRunner(limits=replace(limits, niceness=TRAINING_NICENESS), sandbox=sandbox),
            entropy=ground.entropy,
            slots=settings.training_places,
        )
        self.serving = ServingService(
            weights=lambda version: models.open_weights(version.ref.owner, version.ref.object_id, version.version),
            limits=limits,
            sandbox=sandbox,
            max_workers=settings.max_workers,
        )

    def _governance(self) -> None:
        ground = self._ground
        self.grants = GrantService(
            database=ground.database,
            authorizer=ground.authorizer,
            recorder=ground.log,
            epoch=ground.epoch,
            clock=ground.clock,
            entropy=ground.entropy,
            resolvers={Kind.MODEL: self.models.resolve, Kind.DATASET: self.datasets.resolve},
            tenants=self.registry,
        )
        self.audit = AuditService(
            database=ground.database,
            authorizer=ground.authorizer,
            sealer=ground.keys,
            signer=ground.signer,
            origin=self._settings.log_origin,
        )
