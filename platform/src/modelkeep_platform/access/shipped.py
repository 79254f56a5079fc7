"""The policies that ship with the platform, read from `policies/` and compiled once.

They see types, tenants, roles, actions and grants, never one principal, one object or the call's context, so that the
opinions which are kept of them serve every object of a tenant. They do not change while the process lives.
"""

from functools import cache
from pathlib import Path
from typing import Final

import cedarpy

from modelkeep_platform.access.opinions import Opinions

_INSTALLED: Final = Path(__file__).resolve().parents[1] / "_policies"
_CHECKOUT: Final = Path(__file__).resolve().parents[4] / "policies"
_KEPT: Final = 8192

OWN_SIDE: Final = ("guard.cedar", "roles.cedar", "operators.cedar")
"""Asked of a caller in its own tenant, and of the caller's own side of a call to another tenant's object."""

OWNER_SIDE: Final = ("guard.cedar", "grants.cedar")
"""Asked on behalf of the owner of an object that a caller of another tenant wants to use."""

SHIPPED: Final = ("guard.cedar", "roles.cedar", "operators.cedar", "grants.cedar")


@cache
def own_side() -> Opinions:
    """Return what the shipped policies say of a caller in its own tenant."""
    return Opinions(compiled(OWN_SIDE), kept=_KEPT)


@cache
def owner_side() -> Opinions:
    """Return what they say on behalf of the owner of an object that a caller of another tenant wants to use."""
    return Opinions(compiled(OWNER_SIDE), kept=_KEPT)


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
