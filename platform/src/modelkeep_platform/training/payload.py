"""What a job's worker needs to know, kept sealed under the job's own key while the job waits and runs."""

import msgspec

from modelkeep_platform.core.ids import ObjectId, TenantId
from modelkeep_platform.core.ports import Sealer
from modelkeep_platform.core.sealing import Purpose, Suite
from modelkeep_platform.privacy.plan import MechanismPlan
from modelkeep_platform.training.spec import JobSpec

_NAME = "job"
_VERSION = 1


class Payload(msgspec.Struct, frozen=True, kw_only=True):
    """A job's declaration, its graph as JSON, and what was planned from them.

    The graph travels beside the declaration: within it, it would count against the bounds of a frame's header.
    """

    spec: JobSpec
    graph: bytes
    plan: MechanismPlan | None
    base_model: tuple[str, str, int] | None  # owner, model id, version of the weights to go on from
    base_alias: str = ""  # by which it was asked for; policies may test it


def seal_payload(sealer: Sealer, tenant: TenantId, job_id: ObjectId, payload: Payload) -> bytes:
    """Return `payload` sealed; the job's key must exist."""
    encoded = msgspec.msgpack.encode(payload)
    return sealer.seal(tenant, job_id, encoded, purpose=Purpose.GRAPH, version=_VERSION, name=_NAME, suite=Suite.SMALL)


def open_payload(sealer: Sealer, tenant: TenantId, job_id: ObjectId, sealed: bytes) -> Payload:
    """Return what `seal_payload` sealed; raises IntegrityError."""
    opened = sealer.open(tenant, job_id, sealed, purpose=Purpose.GRAPH, version=_VERSION, name=_NAME, suite=Suite.SMALL)
    return msgspec.msgpack.decode(opened, type=Payload)
