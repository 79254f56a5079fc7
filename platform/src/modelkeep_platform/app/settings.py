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
from modelkeep_platform.core.limits import LIMITS, TenantLimits
from modelkeep_platform.telemetry.logs import FORMATS, LEVELS

FILE: Final = "settings.toml"
PREFIX: Final = "MODELKEEP_PLATFORM_"
_MAY_BE_ZERO: Final = frozenset({"metrics_port", "source_connections", "disk_reserve_mib"})
_PORTS: Final = ("port", "metrics_port")
_MOST_PORTS: Final = 65_535
_INTEGER: Final = re.compile(r"[0-9]{1,15}\Z")
_OF_ALL: Final = TenantLimits()


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
        training_places: jobs that run at once in each server process; of several, the last that is free is for a tenant
            that has none of the others.
        tenant_requests_per_minute: requests a minute of one tenant, evenly, over all server processes.
        principal_requests_per_minute: requests a minute of one member or service account.
        tenant_burst_seconds: how many seconds' worth of these requests may come at once, of a tenant and of each of its
            accounts; at least 10 requests.
        tenant_concurrent_requests: requests of one tenant that are under way at once, over all server processes.
        principal_concurrent_requests: those of one member or service account, over all server processes.
        tenant_storage_mib: what one tenant's models, datasets, checkpoints and open uploads may occupy, in MiB.
        principal_storage_mib: what one member or service account made of these may occupy, in MiB.
        tenant_open_uploads: uploads that one tenant may have begun and not ended.
        principal_open_uploads: those of one member or service account.
        tenant_active_jobs: jobs that one tenant may have queued or running.
        principal_active_jobs: those that one member or service account started.
        tenant_running_jobs: jobs of one tenant that run at once, over all server processes; 0 lets them wait.
        tenant_serving_workers: workers that predict with one tenant's models, in each server process: 1, or 0 for none.
        tenant_members: people of one tenant, invited ones included.
        tenant_service_accounts: service accounts of one tenant.
        tenant_policy_versions: versions of its policy that one tenant may keep.
        tenant_idempotency_keys: Idempotency-Keys of one tenant that are kept for a day.
        tenant_refusals_per_minute: policy's refusals of one tenant that are log entries of their own each minute, of
            each server process an equal part, the rest is counted; of refusals that no policy decided a fifth of it.
        principal_refusals_per_minute: those of one member or service account, in the same way.
        max_workers: worker processes for predictions at once, in each server process.
        max_connections: open connections, in each server process.
        source_connections: open connections of one address, of IPv6 a /64, in each server process; 0 behind a proxy.
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
    training_places: int = 2
    tenant_requests_per_minute: int = _OF_ALL.requests_per_minute
    principal_requests_per_minute: int = _OF_ALL.principal_requests_per_minute
    tenant_burst_seconds: int = _OF_ALL.burst_seconds
    tenant_concurrent_requests: int = _OF_ALL.concurrent_requests
    principal_concurrent_requests: int = _OF_ALL.principal_concurrent_requests
    tenant_storage_mib: int = _OF_ALL.storage_mib
    principal_storage_mib: int = _OF_ALL.principal_storage_mib
    tenant_open_uploads: int = _OF_ALL.open_uploads
    principal_open_uploads: int = _OF_ALL.principal_open_uploads
    tenant_active_jobs: int = _OF_ALL.active_jobs
    principal_active_jobs: int = _OF_ALL.principal_active_jobs
    tenant_running_jobs: int = _OF_ALL.running_jobs
    tenant_serving_workers: int = _OF_ALL.serving_workers
    tenant_members: int = _OF_ALL.members
    tenant_service_accounts: int = _OF_ALL.service_accounts
    tenant_policy_versions: int = _OF_ALL.policy_versions
    tenant_idempotency_keys: int = _OF_ALL.idempotency_keys
    tenant_refusals_per_minute: int = _OF_ALL.refusals_per_minute
    principal_refusals_per_minute: int = _OF_ALL.principal_refusals_per_minute
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
            if item.type is not int:
                continue
            least, most = _bounds(item.name)
            if getattr(self, item.name) < least:
                raise UnprocessableError(f"`{item.name}` is at least {least}", code="invalid_setting")
            if most is not None and getattr(self, item.name) > most:
                raise UnprocessableError(f"`{item.name}` is at most {most}", code="invalid_setting")

    @property
    def tenant_limits(self) -> TenantLimits:
        """Return what a tenant may do and have for which the operator set nothing else."""
        names = {_limit(item.name): item.name for item in fields(self)}
        return TenantLimits(**{limit: getattr(self, names[limit]) for limit in LIMITS})

    @property
    def issuer(self) -> str:
        """Return the embedded issuer's identifier."""
        return f"{self.base_url}/issuer"


def _limit(setting: str) -> str:
    return setting.removeprefix("tenant_")


def _bounds(setting: str) -> tuple[int, int | None]:
    if _limit(setting) in LIMITS:
        return LIMITS[_limit(setting)]
    return 0 if setting in _MAY_BE_ZERO else 1, _MOST_PORTS if setting in _PORTS else None


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
