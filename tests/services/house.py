"""A real platform for tests: a fresh installation, its server on a free port, two tenants with every role.

The server runs in this process, in a thread, or in a process of its own (`ServerProcess`) when it is to be killed.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self
from urllib.parse import urljoin

import httpx
import uvicorn

import modelkeep
from modelkeep import Client, ClientCredentials, DeviceCode
from modelkeep._core import safetensors
from modelkeep.auth import DevicePrompt
from modelkeep_platform.app import installation
from modelkeep_platform.app import settings as settings_file
from modelkeep_platform.app.platform import Platform
from modelkeep_platform.http.connection import bounded

PASSWORD = "correct horse battery staple"
_BIND = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""
"""Becomes Python with the arguments after the first, and is killed by the kernel when its parent, the first, ends."""
_TLS = httpx.create_ssl_context()
"""Of every bare client: to make one takes longer than a call."""
ROLES = ("developer", "analyst", "auditor")
TENANTS = ("acme", "globex")

GRAPH: dict[str, Any] = {
    "format": "modelkeep.graph/1",
    "inputs": [{"name": "x", "dtype": "float32", "shape": [-1, 2]}],
    "nodes": [
        {
            "id": "linear",
            "op": "linear",
            "inputs": ["x"],
            "attrs": {"in_features": 2, "out_features": 2, "bias": True},
            "params": {"weight": "w", "bias": "b"},
        }
    ],
    "outputs": [{"name": "y", "dtype": "float32", "shape": [-1, 2], "node": "linear"}],
}
"""``y = W x + b`` for rows of two numbers."""

WEIGHTS = safetensors.write({"w": [[1.0, 2.0], [3.0, 4.0]], "b": [0.5, -0.5]}, dtypes={"w": "float32", "b": "float32"})

SCHEMA: dict[str, Any] = {
    "columns": [
        {"name": "a", "type": "float", "min": -1, "max": 1},
        {"name": "b", "type": "float", "min": -1, "max": 1},
        {"name": "kind", "type": "category", "categories": ["no", "yes"]},
    ],
    "target": "kind",
}
ROWS = b"a,b,kind\n" + b"".join(
    f"{(at % 7) / 7:.4f},{(at % 5) / 5 - 0.5:.4f},{'yes' if at % 7 > 3 else 'no'}\n".encode() for at in range(64)
)
PRIVATE: dict[str, Any] = {
    "visibility": "private",
    "unit": "row",
    "n_public": 60,
    "budget": {"epsilon": 3.0, "delta": 1e-4},
}


def job(**changes: Any) -> dict[str, Any]:
    """Return a small private job on the dataset `rows`."""
    return {
        "dataset": "rows",
        "into": "trained",
        "model": {"graph": GRAPH},
        "loss": "cross_entropy",
        "optimizer": {"name": "sgd", "learning_rate": 0.1},
        "steps": 4,
        "sample_rate": 0.5,
        "privacy": {"epsilon": 1.0, "clip_norm": 1.0},
        **changes,
    }


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(slots=True)
class Installation:
    """An installation in a folder: data in `data`, the root key beside it."""

    folder: Path
    url: str = field(default_factory=lambda: f"http://127.0.0.1:{free_port()}")
    operator_secret: str = ""

    @property
    def data(self) -> Path:
        """Return the data folder."""
        return self.folder / "data"

    def init(self) -> Self:
        """Make it."""
        made = installation.init(
            data=self.data, root_key=self.folder / "root.key", base_url=self.url, host="127.0.0.1", port=None
        )
        self.operator_secret = made.client_secret
        return self

    def client(self, auth: Any, who: str) -> Client:
        """Return a client with a state folder of its own."""
        return Client(self.url, auth=auth, state_dir=self.folder / "state" / who, retries=2)

    def operator(self) -> Client:
        """Return the operator's client."""
        return self.client(ClientCredentials("operator", self.operator_secret), "operator")


class ServerThread:
    """Serves an installation from this process."""

    def __init__(self, made: Installation) -> None:
        self.platform = Platform(data=made.data, settings=settings_file.load(made.data))
        self.platform.start()
        self._listener = socket.create_server(("127.0.0.1", int(made.url.rpartition(":")[2])))
        config = uvicorn.Config(
            self.platform.edge.asgi,
            loop="uvloop",
            http=bounded(self.platform.edge.connections),
            ws="none",
            log_config=None,
            lifespan="on",
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listener]}, daemon=True)
        self._thread.start()
        wait_until(lambda: self._server.started, "the server to start")

    def close(self) -> None:
        """Stop it in order."""
        self._server.should_exit = True
        self._thread.join(timeout=20)
        self._listener.close()
        self.platform.close()


class ServerProcess:
    """Serves an installation from a process of its own, which can be killed.

    Args:
        made: what is served.
        env: what is added to the environment.
        options: further options of `serve`.
        program: what Python is to run as the platform.
    """

    def __init__(
        self,
        made: Installation,
        *,
        env: Mapping[str, str] | None = None,
        options: tuple[str, ...] = (),
        program: tuple[str, ...] = ("-m", "modelkeep_platform"),
    ) -> None:
        self.made = made
        self.log = made.folder / "server.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-c", _BIND, str(os.getpid())),
                    *(*program, "serve", "--data", str(made.data), *options),
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )

    def ready(self) -> Self:
        """Wait until it answers."""
        wait_until(self._answers, "the server to answer")
        return self

    def _answers(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(f"the server ended: {self.log.read_text()[-4000:]}")
        try:
            return httpx.get(f"{self.made.url}/v2/health/ready", timeout=2).status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """Kill it as a power cut would."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Stop it in order; return its status."""
        self._end(signal.SIGTERM)
        return self.process.returncode

    def _end(self, number: signal.Signals) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def wait_until(condition: Any, what: str, *, timeout_s: float = 180.0) -> None:
    """Wait for `condition()`, polling.

    Raises:
        TimeoutError: it did not come true.
    """
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited in vain for {what}")
        time.sleep(0.02)


def approve(prompt: DevicePrompt, username: str, password: str = PASSWORD) -> None:
    """Do what a person does on the sign-in page."""
    with httpx.Client(timeout=30) as browser:
        page = browser.get(prompt.verification_uri)
        csrf = re.findall(r'name="csrf" value="([0-9a-f]+)"', page.text)[0]
        form = {"csrf": csrf, "user_code": prompt.user_code, "username": username, "password": password}
        origin = urljoin(prompt.verification_uri, "/").rstrip("/")
        answer = browser.post(prompt.verification_uri, data=form, headers={"origin": origin})
    assert answer.status_code == 200, answer.text


@dataclass(slots=True)
class Tenant:
    """One tenant's clients, by role."""

    slug: str
    admin: Client
    clients: dict[str, Client]
    secrets: dict[str, tuple[str, str]]

    def role(self, name: str) -> Client:
        """Return the client of `name`, or of the administrator."""
        return self.admin if name == "tenant-admin" else self.clients[name]


def join(made: Installation, slug: str) -> Tenant:
    """Add a tenant, enrol its administrator, and make an account for every other role."""
    with made.operator() as operator:
        link = operator.tenants.create(slug, name=slug.title()).enrolment
    username = f"{slug}-admin"
    modelkeep.enrol(made.url, link.token, username=username, password=PASSWORD)
    auth = DeviceCode(prompt=lambda prompt: approve(prompt, username), organization=slug)
    admin = made.client(auth, username)
    clients: dict[str, Client] = {}
    secrets: dict[str, tuple[str, str]] = {}
    for role in ROLES:
        account = admin.service_accounts.create(role, roles=[role])
        secrets[role] = (account.service_account.client_id, account.client_secret)
        clients[role] = made.client(ClientCredentials(*secrets[role]), f"{slug}-{role}")
    return Tenant(slug=slug, admin=admin, clients=clients, secrets=secrets)


def token_of(client: Client) -> str:
    """Return a token of the client's."""
    session = client._session
    assert session.auth is not None
    return client._driver.run(session.auth.token(session.site, rejected=None))


def bare(client: Client | None, url: str) -> httpx.Client:
    """Return a bare HTTP client of the server at `url`, with a token of `client` that is good now, or without one."""
    headers = {} if client is None else {"authorization": f"Bearer {token_of(client)}"}
    return httpx.Client(base_url=url, headers=headers, timeout=30, verify=_TLS)


class House:
    """A running platform with both tenants and things that Acme owns.

    Args:
        folder: an empty one.
        settings: what is not as usual.
    """

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.made = Installation(folder).init()
        if settings:
            settings_file.write(self.made.data, replace(settings_file.load(self.made.data), **settings))
        self.server = ServerThread(self.made)
        self.operator = self.made.operator()
        self.acme, self.globex = (join(self.made, slug) for slug in TENANTS)

    @property
    def url(self) -> str:
        """Return the server's address."""
        return self.made.url

    def fill(self, tenant: Tenant | None = None) -> None:
        """Give a tenant (Acme) a model `model`, a private dataset `rows` and a public one `open`."""
        app = (tenant or self.acme).clients["developer"]
        app.models.upload("model", graph=GRAPH, weights=WEIGHTS)
        app.datasets.upload_csv("rows", ROWS, schema=SCHEMA, privacy=PRIVATE)
        public = {"visibility": "public", "reason": "made up for a test"}
        app.datasets.upload_csv("open", ROWS, schema=SCHEMA, privacy=public)

    def token(self, client: Client) -> str:
        """Return a token of the client's."""
        return token_of(client)

    def http(self, client: Client | None) -> httpx.Client:
        """Return a bare HTTP client with the token of `client`."""
        return bare(client, self.url)

    def close(self) -> None:
        """Stop everything."""
        for tenant in (self.acme, self.globex):
            for client in (tenant.admin, *tenant.clients.values()):
                client.close()
        self.operator.close()
        self.server.close()


def pretty(answer: httpx.Response) -> str:
    """Return an answer for a test's message."""
    return f"{answer.status_code} {json.dumps(answer.json())[:400]}"
