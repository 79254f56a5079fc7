"""The platform's limits, in one place; checked before anything is parsed."""

from dataclasses import dataclass
from typing import Final

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """What one tenant may have; the operator sets each, here are the defaults.

    Args:
        storage_bytes: bytes of models, datasets, checkpoints and open uploads together.
        open_uploads: uploads that were begun and neither completed nor given up.
        active_jobs: jobs queued or running.
        members: people, invited ones included.
        service_accounts: applications' accounts.
        policy_versions: versions of its policy that are kept.
        idempotency_keys: Idempotency-Keys of a day, of all its principals together.
        refusals_per_minute: refusals that are log entries of their own each minute; the rest is counted.
    """

    storage_bytes: int = 200 * GIB
    open_uploads: int = 64
    active_jobs: int = 20
    members: int = 1_000
    service_accounts: int = 1_000
    policy_versions: int = 1_000
    idempotency_keys: int = 50_000
    refusals_per_minute: int = 600


DEFAULT_QUOTA: Final = Quota()
