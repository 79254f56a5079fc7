"""Addresses: which servers may be spoken to, and how paths are put together.

Plain HTTP is for the loopback interface only: a token sent over it elsewhere is public.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Final
from urllib.parse import SplitResult, quote, urlencode, urlsplit

from modelkeep.errors import ConfigurationError

_PORTS: Final = {"http": 80, "https": 443}
_MAX_URL: Final = 2048


def server_url(text: str, *, unsafe_allow_http: bool) -> str:
    """Return the address of a server in the form it is compared in: no trailing slash.

    Raises:
        ConfigurationError: not an HTTP address, it carries a user, query or fragment, or it is plain HTTP elsewhere
            than on this machine.
    """
    parts = _split(text)
    if parts.query or parts.fragment or parts.username is not None or parts.password is not None:
        # Not repeated: what stands before the `@` is a secret.
        raise ConfigurationError("a server's address has no user, password, query or fragment; leave them out")
    if parts.scheme == "http" and not is_loopback(parts.hostname or "") and not unsafe_allow_http:
        raise ConfigurationError(
            f"`{text}` is plain HTTP, over which everybody on the way reads your token; use https, "
            "or pass `unsafe_allow_http=True` (`--unsafe-allow-http`) where you know the network"
        )
    return text.rstrip("/")


def origin(text: str) -> tuple[str, str, int]:
    """Return scheme, host and port, in the form they are compared in.

    Raises:
        ConfigurationError: not an HTTP address.
    """
    parts = _split(text)
    return parts.scheme, (parts.hostname or "").rstrip("."), parts.port or _PORTS[parts.scheme]


def is_loopback(host: str) -> bool:
    """Return whether `host` is this machine, by name or number."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def path(*segments: str | int, query: Mapping[str, str | int | None] | None = None) -> str:
    """Return ``/v1/...`` of percent-encoded segments, and a query without the parameters that are None.

    Raises:
        ConfigurationError: a segment is empty, ``.`` or ``..``, and would name another path.
    """
    words = [str(segment) for segment in segments]
    for word in words:
        if word in {"", ".", ".."} or not word.isprintable():
            raise ConfigurationError(f"`{word}` is not a name or an id")
    encoded = "/" + "/".join(quote(word, safe="~") for word in words)
    parameters = {name: value for name, value in (query or {}).items() if value is not None}
    return f"{encoded}?{urlencode(parameters)}" if parameters else encoded


def _split(text: str) -> SplitResult:
    # What stands before the `@` is a secret and is not repeated.
    wrong = ConfigurationError(f"`{text.rpartition('@')[2][:200]}` is not an address like https://models.example")
    if len(text) > _MAX_URL or not text.isascii() or not text.isprintable() or " " in text or "\\" in text:
        raise wrong
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError as exc:
        raise wrong from exc
    if parts.scheme not in _PORTS or not parts.hostname:
        raise wrong
    return parts
