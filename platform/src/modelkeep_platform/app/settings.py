"""Settings: written by `init` to `settings.toml` in the data folder, read at every start; unknown ones are refused."""

import json
import tomllib
from dataclasses import dataclass, fields
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from modelkeep_platform.core.errors import ConflictError, UnprocessableError

FILE: Final = "settings.toml"
_POSITIVE: Final = (
    *("worker_memory_mib", "worker_threads", "tenant_requests_per_minute", "principal_requests_per_minute"),
    "tenant_concurrent_requests",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What an installation is set to.

    Args:
        base_url: the address that clients use, without a trailing slash; issuer and audience follow from it.
        root_key: path of the root key file, outside the data folder.
        log_origin: the audit log's name, first line of each checkpoint; never changes.
        host: the address to listen on.
        port: the port to listen on.
        worker_memory_mib: memory of one worker process, in MiB.
        worker_threads: threads that one worker computes with.
        tenant_requests_per_minute: requests a minute of one tenant, over all server processes.
        principal_requests_per_minute: requests a minute of one member or service account.
        tenant_concurrent_requests: requests of one tenant that are under way at once, in each server process.
    """

    base_url: str
    root_key: str
    log_origin: str
    host: str = "127.0.0.1"
    port: int = 8470
    worker_memory_mib: int = 4096
    worker_threads: int = 1
    tenant_requests_per_minute: int = 60_000
    principal_requests_per_minute: int = 60_000
    tenant_concurrent_requests: int = 256

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path or parts.query or parts.fragment:
            raise UnprocessableError("`base_url` is http(s)://host[:port] without a path", code="invalid_setting")
        for name in _POSITIVE:
            if getattr(self, name) < 1:
                raise UnprocessableError(f"`{name}` is at least 1", code="invalid_setting")
        if parts.scheme == "http" and not is_loopback(parts.hostname):
            raise UnprocessableError("`base_url` uses https beyond loopback", code="invalid_setting")

    @property
    def issuer(self) -> str:
        """Return the embedded issuer's identifier."""
        return f"{self.base_url}/issuer"


def is_loopback(host: str) -> bool:
    """Return whether `host` is this machine itself."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def load(data: Path) -> Settings:
    """Read the settings of the installation in `data`.

    Raises:
        ConflictError: there is no installation.
        UnprocessableError: a setting is unknown, missing, or of the wrong type.
    """
    try:
        values = tomllib.loads((data / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise ConflictError(
            "there is no installation in this folder; make one with `modelkeep-platform init`", code="not_initialised"
        ) from exc
    except tomllib.TOMLDecodeError as exc:
        raise UnprocessableError(f"settings.toml is not TOML: {exc}", code="invalid_setting") from exc
    return parse(values)


def parse(values: dict[str, Any]) -> Settings:
    """Check `values` and return them as settings.

    Raises:
        UnprocessableError: one is unknown, missing, or of the wrong type.
    """
    known = {field.name: field for field in fields(Settings)}
    for name, value in values.items():
        if name not in known:
            raise UnprocessableError(f"`{name}` is not a setting; known are {', '.join(known)}", code="invalid_setting")
        if type(value) is not known[name].type:
            raise UnprocessableError(f"the setting `{name}` is of another type", code="invalid_setting")
    try:
        return Settings(**values)
    except TypeError as exc:
        raise UnprocessableError("a setting without a default is missing", code="invalid_setting") from exc


def write(data: Path, settings: Settings) -> None:
    """Write `settings` into `data`; every value is one TOML line."""
    lines = [
        "# Settings of this Modelkeep installation; docs/reference/settings.md explains each.",
        *(f"{field.name} = {json.dumps(getattr(settings, field.name))}" for field in fields(Settings)),
    ]
    path = data / FILE
    path.touch(mode=0o600)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
