"""Whether a job may go on: asked again when it is claimed and before each segment, whenever the epoch has moved.

A job outlives the call that created it. Since then a grant may have been revoked or have ended, a policy published, a
tenant suspended, a member removed: whoever may not train on the dataset now gets no further step of it.
"""

from typing import Protocol

from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import TenantCaller
from modelkeep_platform.core.errors import ForbiddenError
from modelkeep_platform.core.ids import PrincipalId, TenantId
from modelkeep_platform.core.ports import Authorizer
from modelkeep_platform.core.refs import Kind, ResourceRef, collection
from modelkeep_platform.jobs.queue import Job


class JobRevokedError(ForbiddenError):
    """Whoever started the job may not train on its dataset any more; what it ran stays charged, the rest returns."""

    code = "job_revoked"


class Principals(Protocol):
    """Knows who may act now."""

    def present(self, tenant: TenantId, principal: PrincipalId) -> TenantCaller | None:
        """Return a member or account as it stands now; None when it, or its tenant, may not act any more."""

    def is_active(self, tenant: TenantId) -> bool:
        """Return whether the tenant is active."""


class Entitlement:
    """Asks again what was decided when a job was created.

    Args:
        principals: knows who may act now.
        authorizer: decides; nothing is recorded for a job that may go on.
    """

    def __init__(self, *, principals: Principals, authorizer: Authorizer) -> None:
        self._principals = principals
        self._authorizer = authorizer

    def check(self, job: Job, *, dataset: ResourceRef, name: str) -> None:
        """Raise unless the job may go on.

        Args:
            job: the job.
            dataset: what it trains on.
            name: the dataset's name, as policies see it.

        Raises:
            JobRevokedError: it may not.
        """
        caller = self._principals.present(job.tenant, PrincipalId(job.principal))
        if caller is None:
            raise JobRevokedError("whoever started the job may not act any more; start it as somebody who may")
        jobs = collection(job.tenant, Kind.JOB)
        may = (
            self._principals.is_active(dataset.owner)
            and self._authorizer.allows(caller, Action.JOB_CREATE, jobs, {"name": job.name})
            and self._authorizer.allows(caller, Action.DATASET_TRAIN, dataset, {"name": name})
        )
        if not may:
            raise JobRevokedError("training on this dataset is not allowed any more; ask its owner")
