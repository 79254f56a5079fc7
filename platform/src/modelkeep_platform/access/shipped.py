"""The policies that ship with the platform, read from `policies/` and compiled once.

They speak of types, tenants, roles, actions and grants, never of one principal, one object or the call's context. So
they are asked once for each *shape* of a question, with everything else left out of it, and the opinion is kept: it
cannot depend on what the question did not hold. They do not change while the process lives.
"""

from functools import cache, lru_cache
from pathlib import Path
from typing import Final, NamedTuple

import cedarpy

from modelkeep_platform.access.engine import Context, Opinion, Question, ask
from modelkeep_platform.core.ids import ObjectId, TenantId
from modelkeep_platform.core.refs import Kind, ResourceRef

_INSTALLED: Final = Path(__file__).resolve().parents[1] / "_policies"
_CHECKOUT: Final = Path(__file__).resolve().parents[4] / "policies"
_SHAPES: Final = 8192

OWN_SIDE: Final = ("guard.cedar", "roles.cedar", "operators.cedar")
"""Asked of a caller in its own tenant, and of the caller's own side of a call to another tenant's object."""

OWNER_SIDE: Final = ("guard.cedar", "grants.cedar")
"""Asked on behalf of the owner of an object that a caller of another tenant wants to use."""

SHIPPED: Final = ("guard.cedar", "roles.cedar", "operators.cedar", "grants.cedar")


class _Shape(NamedTuple):
    principal_type: str
    tenant: str
    roles: tuple[str, ...]
    action: str
    owner: TenantId
    kind: Kind
    granted: frozenset[TenantId]


class ShippedPolicies:
    """Several shipped files, asked together.

    Args:
        names: of the files: `OWN_SIDE` or `OWNER_SIDE`.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self._policies = compiled(names)
        self._opinions = lru_cache(maxsize=_SHAPES)(self._ask)

    def opinion(self, asked: Question) -> Opinion:
        """Return what they say to every question of this shape."""
        shape = _Shape(
            asked.principal_type,
            asked.tenant,
            asked.roles,
            asked.action,
            asked.ref.owner,
            asked.ref.kind,
            asked.granted,
        )
        return self._opinions(shape)

    def _ask(self, shape: _Shape) -> Opinion:
        # INVARIANT: nothing but the shape goes into the question, so the opinion holds for all that share it.
        asked = Question(
            principal_type=shape.principal_type,
            principal="*",
            tenant=shape.tenant,
            roles=shape.roles,
            name="",
            action=shape.action,
            ref=ResourceRef(owner=shape.owner, kind=shape.kind, object_id=ObjectId("*")),
            context=Context("", "", 0),
            granted=shape.granted,
        )
        return ask(asked, self._policies)


@cache
def shipped(name: str) -> str:
    """Return the text of one shipped file, for example ``guard.cedar``.

    Raises:
        FileNotFoundError: the installation is incomplete.
    """
    folder = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT
    return (folder / name).read_text(encoding="utf-8")


@cache
def compiled(names: tuple[str, ...]) -> cedarpy.PolicySet:
    """Return several shipped files as one policy set."""
    return cedarpy.PolicySet.from_str("\n".join(shipped(name) for name in names))
