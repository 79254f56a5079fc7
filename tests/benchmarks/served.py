"""A platform in a process of its own, on several ports: without limits that are met, with the shipped ones, with one
layer each left out.

What is left out is replaced by a null port, here and nowhere else: shipped code has no such switch.
``python served.py DATA PORTS`` where PORTS is JSON, a port for each name of `VARIANTS`.
"""

import copy
import json
import os
import socket
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import uvicorn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from modelkeep_platform.app import settings as settings_file
from modelkeep_platform.app.platform import Platform
from modelkeep_platform.app.server import calm_collector, server_config
from modelkeep_platform.core.callers import Caller
from modelkeep_platform.core.epoch_cache import EpochCache
from modelkeep_platform.core.events import Event
from modelkeep_platform.core.ids import RequestId
from modelkeep_platform.core.limits import TenantLimits
from modelkeep_platform.core.ports import Transaction
from modelkeep_platform.http import v2
from modelkeep_platform.limits.bucket import Rate
from modelkeep_platform.limits.rates import Standing
from modelkeep_platform.limits.service import RequestLimits
from modelkeep_platform.limits.store import LimitStore
from modelkeep_platform.telemetry import logs
from modelkeep_platform.telemetry.system import SystemClock

LIMITED_TO = 6_000
"""Requests a minute of a tenant on the port `limited`."""


class NullAuthenticator:
    """Knows one caller, whatever token is sent; the first is the real one's."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self._caller: Caller | None = None

    def cached(self, token: str, request_id: RequestId) -> Caller | None:
        return self._caller

    def authenticate(self, token: str, request_id: RequestId) -> Caller:
        self._caller = self._real.authenticate(token, request_id)
        caller: Caller = self._real.authenticate(token, request_id)
        return caller


class NullRecorder:
    """Records nothing."""

    def record(self, tx: Transaction, event: Event) -> None:
        return None

    def record_soon(self, event: Event) -> None:
        return None


class NullLimits:
    """Counts nothing."""

    _standing = Standing("", Rate.of(1, burst_seconds=1), remaining=1, wait_s=1, allowed=True)

    def admit_now(self, caller: Caller) -> Standing:
        return self._standing

    async def turn(self, caller: Caller) -> None:
        return None

    async def place(self, caller: Caller) -> AbstractContextManager[None]:
        return nullcontext()


class NullWatch:
    """Writes no access line and counts nothing."""

    def saw(self, scope: Any, seconds: float) -> None:
        return None


def variants(platform: Platform) -> dict[str, Any]:
    """Return an application for each name."""
    whole: Any = platform.edge.asgi
    plane = whole._data_plane

    def without(**changes: Any) -> Any:
        gateway, data_plane = copy.copy(whole), copy.copy(plane)
        for name, value in changes.items():
            setattr(gateway if name == "_watch" else data_plane, name, value)
        data_plane._known = EpochCache(v2._CACHED)
        gateway._data_plane = data_plane
        return gateway

    nothing = {
        "_authenticator": NullAuthenticator(plane._authenticator),
        "_servable": _null_decisions(plane),
        "_recorder": NullRecorder(),
        "_limits": NullLimits(),
        "_watch": NullWatch(),
    }
    small = TenantLimits(
        requests_per_minute=LIMITED_TO,
        principal_requests_per_minute=LIMITED_TO,
        concurrent_requests=256,
        principal_concurrent_requests=256,
    )
    return {
        "whole": whole,
        "authenticator": without(_authenticator=NullAuthenticator(plane._authenticator)),
        "decisions": without(_servable=_null_decisions(plane)),
        "recorder": without(_recorder=NullRecorder()),
        "limits": without(_limits=NullLimits()),
        "watch": without(_watch=NullWatch()),
        "nothing": without(**nothing),
        "default": without(_limits=_limits(platform, TenantLimits())),
        "limited": without(_limits=_limits(platform, small)),
    }


VARIANTS = ("whole", "authenticator", "decisions", "recorder", "limits", "watch", "nothing", "default", "limited")


def _limits(platform: Platform, limits: TenantLimits) -> RequestLimits:
    ground = platform.ground
    store = LimitStore(database=ground.database, defaults=limits, epoch=ground.epoch)
    return RequestLimits(
        database=ground.database, clock=SystemClock(), limits=store, process_id="here", others=frozenset
    )


def _null_decisions(plane: Any) -> Callable[..., Any]:
    found: dict[str, Any] = {}

    async def servable(caller: Caller, name: str, version: str | None, action: Any) -> Any:
        if name not in found:
            found[name] = await plane._servable(caller, name, version, action)
        return found[name]

    return servable


def main(data: Path, ports: dict[str, int]) -> None:
    """Serve until killed."""
    settings = settings_file.load(data)
    lines = logs.configure(level=settings.log_level, form=settings.log_format)
    platform = Platform(data=data, settings=settings, dropped_lines=lambda: lines.dropped)
    platform.start()
    calm_collector()
    by_port = {ports[name]: app for name, app in variants(platform).items()}
    main_app = platform.edge.asgi

    async def dispatch(scope: Any, receive: Any, send: Any) -> None:
        server = scope.get("server")
        await (by_port[server[1]] if server else main_app)(scope, receive, send)

    listeners = [socket.create_server(("127.0.0.1", port), backlog=512) for port in by_port]
    config = server_config(dispatch, platform.edge.connections)
    uvicorn.Server(config).run(sockets=listeners)
    platform.close()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
