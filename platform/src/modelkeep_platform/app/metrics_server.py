"""Serves metrics on a listener of its own, on loopback: never at the address that clients use.

A page in this machine's browser whose name resolves to loopback (DNS rebinding) could read them: so a request must name
this machine in its Host, which a browser takes from the page's address.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import start_http_server

from modelkeep_platform.app.settings import is_loopback
from modelkeep_platform.core.errors import ConflictError

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

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
        self._server.set_app(_for_this_machine(make_wsgi_app(registry)))

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=_STOP_S)


def _for_this_machine(app: "WSGIApplication") -> "WSGIApplication":
    """Return `app` for requests whose Host is a loopback address or `localhost`; every other one is refused."""

    def checked(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        if _is_of_this_machine(environ.get("HTTP_HOST", "")):
            return app(environ, start_response)
        start_response("421 Misdirected Request", [("Content-Type", "text/plain")])
        return [b"ask for metrics by a loopback address\n"]

    return checked


def _is_of_this_machine(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    return name is not None and is_loopback(name)
