"""Whether a job may go on: asked again when it is claimed and before each segment, whenever the epoch has moved.

A job outlives the call that created it. Since then a grant may have been revoked or have ended, a policy published, a
tenant suspended, a member removed: whoever may not train on the dataset now gets no further step of it. Nor does
whoever may not export the model that the job goes on from: what is trained from its weights is as good as they are.
"""

from typing import Protocol

from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import TenantCaller
from modelkeep_platform.core.decisions import Attributes
from modelkeep_platform.core.errors import ForbiddenError
from modelkeep_platform.core.ids import ObjectId, PrincipalId, TenantId
from modelkeep_platform.core.ports import Authorizer
from modelkeep_platform.core.refs import Kind, ResourceRef, collection
from modelkeep_platform.jobs.queue import Job
from modelkeep_platform.training.payload import Payload


class JobRevokedError(ForbiddenError):
    """Whoever started the job may not have it run any more; what it ran stays charged, the rest returns."""

    code = "job_revoked"


class Principals(Protocol):
    """Knows who may act now."""

    def present(self, tenant: TenantId, principal: PrincipalId) -> TenantCaller | None:
        """Return a member or account as it stands now; None when it, or its tenant, may not act any more."""

    def is_active(self, tenant: TenantId) -> bool:
        """Return whether the tenant is active."""


class BaseModels(Protocol):
    """Knows the models that jobs go on from."""

    def attributes_now(self, model: ResourceRef, version: int, *, alias: str) -> Attributes | None:
        """Return what policies see of a version now; None when it is gone."""


class Entitlement:
    """Asks again what was decided when a job was created.

    Args:
        principals: knows who may act now.
        authorizer: decides; nothing is recorded for a job that may go on.
        models: knows what jobs go on from.
    """

    def __init__(self, *, principals: Principals, authorizer: Authorizer, models: BaseModels) -> None:
        self._principals = principals
        self._authorizer = authorizer
        self._models = models

    def check(self, job: Job, *, payload: Payload, dataset: ResourceRef, name: str) -> None:
        """Raise unless the job may go on.

        Args:
            job: the job.
            payload: what was sealed of it; names the model it goes on from, if any.
            dataset: what it trains on.
            name: the dataset's name, as policies see it.

        Raises:
            JobRevokedError: it may not.
        """
        caller = self._principals.present(job.tenant, PrincipalId(job.principal))
        if caller is None:
            raise JobRevokedError("whoever started the job may not act any more; start it as somebody who may")
        jobs, models = collection(job.tenant, Kind.JOB), collection(job.tenant, Kind.MODEL)
        may = (
            self._principals.is_active(dataset.owner)
            and self._authorizer.allows(caller, Action.JOB_CREATE, jobs, {"name": job.name})
            and self._authorizer.allows(caller, Action.DATASET_TRAIN, dataset, {"name": name})
        )
        if not may:
            raise JobRevokedError("training on this dataset is not allowed any more; ask its owner")
        if not self._authorizer.allows(caller, Action.MODEL_CREATE, models, {"name": job.name}):
            raise JobRevokedError("making a model of this name is not allowed any more; ask the tenant's administrator")
        if not self._may_go_on_from(caller, payload):
            raise JobRevokedError("going on from this model is not allowed any more, or it is gone; ask its owner")

    def _may_go_on_from(self, caller: TenantCaller, payload: Payload) -> bool:
        if payload.base_model is None:
            return True
        owner, model_id, version = payload.base_model
        ref = ResourceRef(owner=TenantId(owner), kind=Kind.MODEL, object_id=ObjectId(model_id))
        attributes = self._models.attributes_now(ref, version, alias=payload.base_alias)
        return (
            attributes is not None
            and self._principals.is_active(ref.owner)
            and self._authorizer.allows(caller, Action.MODEL_EXPORT, ref, attributes)
        )
