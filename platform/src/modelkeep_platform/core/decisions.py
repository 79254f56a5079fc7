"""The outcome of asking policy."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.ids import TenantId
from modelkeep_platform.core.refs import ResourceRef

Attributes: TypeAlias = Mapping[str, str | int | bool]
"""Facts about the call that policies may test (Cedar context), for example ``{"alias": "production"}``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Allow or deny, and what determined it.

    An allow decision is also the key that opens a storage transaction of a foreign owner.
    """

    allow: bool
    action: Action
    ref: ResourceRef
    caller_tenant: TenantId
    policies: tuple[str, ...]
    policy_version: int
    reasons: tuple[str, ...] = ()
    grant_id: str | None = None
