"""Serves metrics on a listener of its own, on loopback: never at the address that clients use."""

from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import start_http_server

from modelkeep_platform.core.errors import ConflictError

_STOP_S: Final = 5.0


class MetricsServer:
    """Serves one registry, from threads of its own.

    Args:
        registry: what is served.
        host: a loopback address.
        port: where to listen.

    Raises:
        ConflictError: the address is taken.
    """

    def __init__(self, registry: CollectorRegistry, *, host: str, port: int) -> None:
        try:
            self._server, self._thread = start_http_server(port, addr=host, registry=registry)
        except OSError as exc:
            raise ConflictError(
                f"cannot serve metrics on {host}:{port}: {exc.strerror}; choose another `metrics_port`",
                code="metrics_unavailable",
            ) from exc

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=_STOP_S)
