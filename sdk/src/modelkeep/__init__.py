"""Modelkeep: a secure platform for models, shared by organisations that need not trust one another.

    from modelkeep import Client, ClientCredentials

Names are loaded when they are first used: importing this package loads no HTTP client and no cryptography.
`modelkeep.torch` (extra ``torch``) traces modules and loads downloads.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from modelkeep._version import __version__

if TYPE_CHECKING:
    from modelkeep.auth import ClientCredentials, DeviceCode, DevicePrompt, StaticToken
    from modelkeep.client import AsyncClient, Client
    from modelkeep.enrolment import enrol
    from modelkeep.errors import APIError, AuditError, ModelkeepError, UnacknowledgedWarning

__all__ = [
    "APIError",
    "AsyncClient",
    "AuditError",
    "Client",
    "ClientCredentials",
    "DeviceCode",
    "DevicePrompt",
    "ModelkeepError",
    "StaticToken",
    "UnacknowledgedWarning",
    "__version__",
    "enrol",
    "errors",
    "types",
]

_HOMES: Final = {
    "APIError": "modelkeep.errors",
    "AsyncClient": "modelkeep.client",
    "AuditError": "modelkeep.errors",
    "Client": "modelkeep.client",
    "ClientCredentials": "modelkeep.auth",
    "DeviceCode": "modelkeep.auth",
    "DevicePrompt": "modelkeep.auth",
    "ModelkeepError": "modelkeep.errors",
    "StaticToken": "modelkeep.auth",
    "UnacknowledgedWarning": "modelkeep.errors",
    "enrol": "modelkeep.enrolment",
}
_MODULES: Final = frozenset({"auth", "errors", "torch", "types"})


def __getattr__(name: str) -> Any:  # noqa: ANN401 -- any public name
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _MODULES:
        return import_module(f"modelkeep.{name}")
    raise AttributeError(f"module `modelkeep` has no attribute `{name}`")


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES})
