"""The platform's limits, in one place; checked before anything is parsed. And what one tenant may have."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from modelkeep_platform.core.errors import UnprocessableError

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

MAX_JSON_BYTES: Final = 1 * MIB
MAX_GRAPH_BYTES: Final = 4 * MIB
MAX_JSON_DEPTH: Final = 64
MAX_TOKEN_BYTES: Final = 8 * KIB
MAX_TOKEN_DEPTH: Final = 8
MAX_PART_BYTES: Final = 8 * MIB
MAX_PARTS: Final = 4096
MAX_UPLOAD_BYTES: Final = MAX_PART_BYTES * MAX_PARTS
MAX_INFER_BYTES: Final = 16 * MIB
MAX_POLICY_BYTES: Final = 64 * KIB
MAX_PAGE: Final = 200
DEFAULT_PAGE: Final = 50
UPLOAD_EXPIRY_S: Final = 24 * 3600


MAX_LIMIT: Final = 1_000_000_000
"""No limit of a tenant is larger: a larger one is a slip of the hand."""


def _limit(default: int, *, least: int = 0, most: int = MAX_LIMIT) -> Any:  # noqa: ANN401 -- as `field` returns
    return field(default=default, metadata={"range": (least, most)})


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantLimits:
    """What one tenant may do and have: the settings say it for all, the operator for one.

    Those that bound what is there (members, say) may be 0, which lets nothing more in and takes nothing away. Those
    without which nobody could call are at least 1: whoever should do nothing is suspended.

    Args:
        requests_per_minute: requests a minute of the whole tenant, over all server processes.
        principal_requests_per_minute: requests a minute of one member or service account.
        burst_seconds: how many seconds' worth of these may come at once, of the tenant and of each account.
        concurrent_requests: requests that are under way at once, over all server processes.
        principal_concurrent_requests: those of one member or service account.
        storage_mib: MiB of models, datasets, checkpoints and open uploads together.
        principal_storage_mib: MiB of what one member or service account made of them.
        open_uploads: uploads that were begun and neither completed nor given up.
        principal_open_uploads: those of one member or service account.
        active_jobs: jobs queued or running.
        principal_active_jobs: those that one member or service account started.
        running_jobs: jobs running at once, over all server processes: each has a worker process.
        serving_workers: worker processes that predict with the tenant's models, in each server process: 1 or none.
        members: people, invited ones included.
        service_accounts: applications' accounts.
        policy_versions: versions of its policy that are kept.
        idempotency_keys: Idempotency-Keys of a day, of all its principals together.
        refusals_per_minute: refusals that are log entries of their own each minute, of each server process an equal
            part; the rest is counted.
        principal_refusals_per_minute: those of one member or service account.
    """

    requests_per_minute: int = _limit(60_000, least=1)
    principal_requests_per_minute: int = _limit(60_000, least=1)
    burst_seconds: int = _limit(3, least=1, most=60)
    concurrent_requests: int = _limit(64, least=1)
    principal_concurrent_requests: int = _limit(64, least=1)
    storage_mib: int = _limit(200 * 1024)
    principal_storage_mib: int = _limit(200 * 1024)
    open_uploads: int = _limit(64)
    principal_open_uploads: int = _limit(64)
    active_jobs: int = _limit(20)
    principal_active_jobs: int = _limit(20)
    running_jobs: int = _limit(2)
    serving_workers: int = _limit(1, most=1)
    members: int = _limit(1_000)
    service_accounts: int = _limit(1_000)
    policy_versions: int = _limit(1_000)
    idempotency_keys: int = _limit(50_000, least=1)
    refusals_per_minute: int = _limit(600, least=1)
    principal_refusals_per_minute: int = _limit(600, least=1)

    @property
    def storage_bytes(self) -> int:
        """Return `storage_mib` in bytes."""
        return self.storage_mib * MIB

    @property
    def principal_storage_bytes(self) -> int:
        """Return `principal_storage_mib` in bytes."""
        return self.principal_storage_mib * MIB


LIMITS: Final[Mapping[str, tuple[int, int]]] = {item.name: item.metadata["range"] for item in fields(TenantLimits)}
"""The name of each limit of a tenant, with the least and the most that it can be."""


def check_limit(name: str, value: int | None) -> None:
    """Return when the limit `name` can be set to `value`, or with None be taken back.

    Raises:
        UnprocessableError: there is no such limit, or it is less or more than it can be.
    """
    if name not in LIMITS:
        raise UnprocessableError(f"`{name[:80]}` is not a limit; known are {', '.join(LIMITS)}", code="invalid_limit")
    least, most = LIMITS[name]
    if value is not None and not least <= value <= most:
        advice = "; to stop a tenant, suspend it" if value < least == 1 else ""
        raise UnprocessableError(f"`{name}` is between {least} and {most}{advice}", code="invalid_limit")
