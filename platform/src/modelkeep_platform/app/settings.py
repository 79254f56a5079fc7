"""Settings: from `settings.toml` in the data folder, which `init` writes, and from the environment, which comes first.

`MODELKEEP_PLATFORM_PORT=9000` sets `port`. An unknown setting, or one of another type, is refused by name wherever it
stands: a typing error must not leave a limit at its default. Nothing secret is a setting: a root key is a path here.
"""

import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from modelkeep_platform.core.errors import ConflictError, UnprocessableError
from modelkeep_platform.core.limits import DEFAULT_QUOTA, MIB, Quota
from modelkeep_platform.telemetry.logs import FORMATS, LEVELS

FILE: Final = "settings.toml"
PREFIX: Final = "MODELKEEP_PLATFORM_"
_MAY_BE_ZERO: Final = frozenset({"metrics_port", "source_connections", "disk_reserve_mib"})
_PORTS: Final = ("port", "metrics_port")
_MOST_PORTS: Final = 65_535
_INTEGER: Final = re.compile(r"[0-9]{1,15}\Z")


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
        tenant_storage_mib: what one tenant's models, datasets, checkpoints and open uploads may occupy, in MiB.
        tenant_open_uploads: uploads that one tenant may have begun and not ended.
        tenant_active_jobs: jobs that one tenant may have queued or running.
        tenant_members: people of one tenant, invited ones included.
        tenant_service_accounts: service accounts of one tenant.
        tenant_policy_versions: versions of its policy that one tenant may keep.
        tenant_idempotency_keys: Idempotency-Keys of one tenant that are kept for a day.
        tenant_refusals_per_minute: policy's refusals of one tenant that are log entries of their own each minute, the
            rest is counted; of refusals that no policy decided a fifth of it.
        max_workers: worker processes for predictions at once, in each server process.
        max_connections: open connections, in each server process.
        source_connections: open connections of one address, in each server process; 0 behind a proxy, which is one.
        disk_reserve_mib: what must be free on the data folder's disk for predictions and changes to be taken, in MiB;
            it is kept for the log.
        log_format: `json`, one object a line, or `text`.
        log_level: `debug`, `info`, `warning` or `error`; access lines are `info`.
        metrics_host: the loopback address that metrics are served on.
        metrics_port: the port of metrics, of the first server process; each further one has the next; 0 is off.
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
    tenant_concurrent_requests: int = 64
    tenant_storage_mib: int = DEFAULT_QUOTA.storage_bytes // MIB
    tenant_open_uploads: int = DEFAULT_QUOTA.open_uploads
    tenant_active_jobs: int = DEFAULT_QUOTA.active_jobs
    tenant_members: int = DEFAULT_QUOTA.members
    tenant_service_accounts: int = DEFAULT_QUOTA.service_accounts
    tenant_policy_versions: int = DEFAULT_QUOTA.policy_versions
    tenant_idempotency_keys: int = DEFAULT_QUOTA.idempotency_keys
    tenant_refusals_per_minute: int = DEFAULT_QUOTA.refusals_per_minute
    max_workers: int = 32
    max_connections: int = 4096
    source_connections: int = 1024
    disk_reserve_mib: int = 1024
    log_format: str = "json"
    log_level: str = "info"
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 0

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path or parts.query or parts.fragment:
            raise UnprocessableError("`base_url` is http(s)://host[:port] without a path", code="invalid_setting")
        if parts.scheme == "http" and not is_loopback(parts.hostname):
            raise UnprocessableError("`base_url` uses https beyond loopback", code="invalid_setting")
        self._check_numbers()
        for name, known in (("log_format", FORMATS), ("log_level", LEVELS)):
            if getattr(self, name) not in known:
                raise UnprocessableError(f"`{name}` is one of {', '.join(known)}", code="invalid_setting")
        if not is_loopback(self.metrics_host):
            raise UnprocessableError(
                "`metrics_host` is a loopback address: metrics are for this machine's own collector",
                code="invalid_setting",
            )

    def _check_numbers(self) -> None:
        for item in fields(self):
            least = 0 if item.name in _MAY_BE_ZERO else 1
            if item.type is int and getattr(self, item.name) < least:
                raise UnprocessableError(f"`{item.name}` is at least {least}", code="invalid_setting")
        for name in _PORTS:
            if getattr(self, name) > _MOST_PORTS:
                raise UnprocessableError(f"`{name}` is at most {_MOST_PORTS}", code="invalid_setting")

    @property
    def quota(self) -> Quota:
        """Return what one tenant may have."""
        return Quota(
            storage_bytes=self.tenant_storage_mib * MIB,
            open_uploads=self.tenant_open_uploads,
            active_jobs=self.tenant_active_jobs,
            members=self.tenant_members,
            service_accounts=self.tenant_service_accounts,
            policy_versions=self.tenant_policy_versions,
            idempotency_keys=self.tenant_idempotency_keys,
            refusals_per_minute=self.tenant_refusals_per_minute,
        )

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


def load(data: Path, environment: Mapping[str, str] | None = None) -> Settings:
    """Read the settings of the installation in `data`, and what the environment sets instead.

    Args:
        data: the data folder.
        environment: where `MODELKEEP_PLATFORM_…` are; None for the process's own.

    Raises:
        ConflictError: there is no installation.
        UnprocessableError: a setting is unknown, missing, or of the wrong type.
    """
    return parse(_read(data) | from_environment(os.environ if environment is None else environment))


def load_file(data: Path) -> Settings:
    """Read the settings that the folder itself holds: what is written back is not what one environment said."""
    return parse(_read(data))


def _read(data: Path) -> dict[str, Any]:
    try:
        return tomllib.loads((data / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise ConflictError(
            "there is no installation in this folder; make one with `modelkeep-platform init`", code="not_initialised"
        ) from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise UnprocessableError(f"settings.toml is not TOML: {exc}", code="invalid_setting") from exc


def from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings among the variables, each of its type.

    Raises:
        UnprocessableError: one is not a setting, or not of its type; the value is not repeated.
    """
    known = {f"{PREFIX}{field.name.upper()}": field for field in fields(Settings)}
    found: dict[str, Any] = {}
    for variable, text in environment.items():
        if not variable.startswith(PREFIX):
            continue
        if variable not in known:
            raise UnprocessableError(
                f"`{variable}` in the environment is not a setting; docs/reference/settings.md lists them",
                code="invalid_setting",
            )
        field = known[variable]
        if field.type is int and not _INTEGER.match(text):
            raise UnprocessableError(f"`{variable}` in the environment is a decimal number", code="invalid_setting")
        found[field.name] = int(text) if field.type is int else text
    return found


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
