"""Runs the server: checks where it may listen, starts every part, serves, stops in order.

On SIGTERM no new connection is taken, running requests and predictions finish (10 s at most), jobs keep a checkpoint
and wait again with what they ran charged, what the log still holds is written, and the heartbeat goes.
"""

import gc
import logging
import os
import signal
import socket
from pathlib import Path
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from modelkeep_platform.app import settings as settings_file
from modelkeep_platform.app.metrics_server import MetricsServer
from modelkeep_platform.app.platform import Platform
from modelkeep_platform.app.settings import is_loopback
from modelkeep_platform.app.supervisor import Supervisor
from modelkeep_platform.core.errors import ConflictError, UnprocessableError
from modelkeep_platform.http.connection import Connections, bounded
from modelkeep_platform.telemetry import logs
from modelkeep_platform.workers.confinement import end_with_parent

_COLLECT_AFTER: Final = (10_000, 20, 20)

_log = logging.getLogger(__name__)


def serve(
    *,
    data: Path,
    host: str | None,
    port: int | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    unsafe_no_tls: bool,
    workers: int = 1,
    listener_fd: int | None = None,
    process_number: int = 0,
    supervisor_pid: int | None = None,
) -> None:
    """Serve the installation in `data` until SIGTERM or SIGINT.

    Args:
        data: the data folder.
        host: where to listen; None for what the settings say.
        port: the port; None for what the settings say.
        tls_cert: a PEM certificate chain.
        tls_key: its PEM private key.
        unsafe_no_tls: whether plain HTTP may leave this machine.
        workers: how many server processes share the address.
        listener_fd: a bound socket inherited from a supervisor.
        process_number: which of the supervisor's servers this is; its metrics are at that port further on.
        supervisor_pid: the supervisor, with which this server ends.

    Raises:
        UnprocessableError: it would listen beyond loopback without TLS, or half of a TLS pair is missing.
        ConflictError: the address is taken.
    """
    settings = settings_file.load(data)
    host, port = host or settings.host, port or settings.port
    if (tls_cert is None) != (tls_key is None):
        raise UnprocessableError("give --tls-cert and --tls-key together", code="tls_incomplete")
    if tls_cert is None and not is_loopback(host) and not unsafe_no_tls:
        raise UnprocessableError(
            f"`{host}` is beyond loopback: give --tls-cert and --tls-key, or --unsafe-no-tls behind a TLS proxy",
            code="tls_required",
        )
    lines = logs.configure(level=settings.log_level, form=settings.log_format)
    listener = _listen(host, port) if listener_fd is None else socket.socket(fileno=listener_fd)
    if workers > 1:
        options: tuple[str, ...] = ("--unsafe-no-tls",) if unsafe_no_tls else ()
        if tls_cert is not None and tls_key is not None:
            options += ("--tls-cert", str(tls_cert), "--tls-key", str(tls_key))
        Supervisor(data=data, listener=listener, options=options, count=workers).run()
        return
    stop = _Stop()
    if supervisor_pid is not None:
        end_with_parent(signal.SIGTERM)
        stop.asked = os.getppid() != supervisor_pid  # it was gone before the kernel was told
    platform = Platform(data=data.resolve(), settings=settings, dropped_lines=lambda: lines.dropped)
    metrics: MetricsServer | None = None
    try:
        if settings.metrics_port:
            port = settings.metrics_port + process_number
            metrics = MetricsServer(platform.edge.metrics.registry, host=settings.metrics_host, port=port)
        platform.start()
        calm_collector()
        _log.info("the server takes requests")
        config = server_config(platform.edge.asgi, platform.edge.connections, tls_cert=tls_cert, tls_key=tls_key)
        stop.server = uvicorn.Server(config)
        stop.server.should_exit = stop.asked
        stop.server.run(sockets=[listener])
    finally:
        if metrics is not None:
            metrics.close()
        platform.close()
        _log.info("the server has stopped")
        lines.close()


def calm_collector() -> None:
    """Keep Python's cyclic garbage collector off what was loaded at start, and from looking every few requests.

    What is there now lives as long as the process; walking it again and again is what a collection would cost most.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)


class _Stop:
    """Heeds SIGTERM and SIGINT whenever they come.

    Before uvicorn listens to them they are kept for it; afterwards it raises the one that stopped it once more, which
    must not end the process before the rest is closed.
    """

    def __init__(self) -> None:
        self.asked = False
        self.server: uvicorn.Server | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, *_: object) -> None:
        self.asked = True
        if self.server is not None:
            self.server.should_exit = True


def server_config(
    app: ASGIApp, connections: Connections, *, tls_cert: Path | None = None, tls_key: Path | None = None
) -> uvicorn.Config:
    """Return how uvicorn serves the platform: what is measured is set up like what is shipped.

    Args:
        app: what answers.
        connections: bounds how many there are.
        tls_cert: a PEM certificate chain.
        tls_key: its PEM private key.
    """
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=bounded(connections),
        ws="none",
        access_log=False,
        log_config=None,
        lifespan="on",
        server_header=False,
        date_header=True,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=10,
        h11_max_incomplete_event_size=32 * 1024,
        ssl_certfile=tls_cert,
        ssl_keyfile=tls_key,
    )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as exc:
        listener.close()
        raise ConflictError(f"cannot listen on {host}:{port}: {exc.strerror}; choose another --port") from exc
    listener.set_inheritable(False)
    return listener
