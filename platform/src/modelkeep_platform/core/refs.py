"""Resource references: owner, kind and object id. Names are resolved to one once, at the edge."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from modelkeep_platform.core.ids import PLATFORM, ObjectId, TenantId


class Kind(StrEnum):
    """Kinds of resource; the value is the Cedar entity type's stem and the word in messages."""

    PLATFORM = "platform"
    TENANT = "tenant"
    MEMBER = "member"
    SERVICE_ACCOUNT = "service_account"
    UPLOAD = "upload"
    MODEL = "model"
    DATASET = "dataset"
    JOB = "job"
    GRANT = "grant"
    POLICY = "policy"
    AUDIT_LOG = "audit_log"


MISSING: Final = ObjectId("")
"""The object id of a name that resolved to nothing; every decision about it is `not found`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceRef:
    """One resource: who owns it, what it is and its random id."""

    owner: TenantId
    kind: Kind
    object_id: ObjectId

    @property
    def is_missing(self) -> bool:
        """Whether the name that led here resolved to nothing."""
        return self.object_id == MISSING


def missing(owner: TenantId, kind: Kind) -> ResourceRef:
    """Make the reference of something that does not exist, to be denied like what is foreign."""
    return ResourceRef(owner=owner, kind=kind, object_id=MISSING)


def collection(owner: TenantId, kind: Kind) -> ResourceRef:
    """Make the reference of a tenant's whole collection of `kind` (for list and create)."""
    return ResourceRef(owner=owner, kind=kind, object_id=ObjectId("*"))


PLATFORM_REF: Final = ResourceRef(owner=PLATFORM, kind=Kind.PLATFORM, object_id=ObjectId("platform"))
