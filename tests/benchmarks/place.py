"""A platform with two tenants and the net, served for a benchmark; and the bare endpoint beside it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from benchmarks.load import Plan
from benchmarks.served import VARIANTS
from modelkeep import Client
from modelkeep_platform.app import settings as settings_file
from services.house import TENANTS, Installation, Tenant, free_port, join, token_of, wait_until

HERE = Path(__file__).parent
FEATURES = 32
BODY = json.dumps(
    {
        "inputs": [
            {
                "name": "input",
                "shape": [1, FEATURES],
                "datatype": "FP32",
                "data": [round(at / 7, 4) for at in range(FEATURES)],
            }
        ]
    }
)


@dataclass(slots=True)
class Place:
    """What is running.

    Args:
        made: the installation.
        ports: of each variant of the platform.
        bare: the bare endpoint's.
        acme: a tenant with the model `net`.
        globex: another, with its own.
        server: the platform's process.
        tokens: each tenant's.
    """

    made: Installation
    ports: dict[str, int]
    bare: int
    acme: Tenant
    globex: Tenant
    server: int
    tokens: dict[str, str] = field(default_factory=dict)

    def processor_s(self) -> float:
        """Return the processor time that the platform's process has used, without its workers', in seconds."""
        # User and system time are fields 14 and 15 (proc_pid_stat(5)); the second, a name, may hold spaces.
        fields = Path(f"/proc/{self.server}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def predict(self, port: int, tenant: str = "acme") -> str:
        """Return the bytes of one prediction's request."""
        return (
            f"POST /v2/models/net/infer HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer "
            f"{self.tokens[tenant]}\r\ncontent-type: application/json\r\ncontent-length: {len(BODY)}\r\n\r\n{BODY}"
        )

    def load(
        self, port: int, *, tenant: str = "acme", connections: int = 1, seconds: float = 1.0, pause_s: float = 0.0
    ) -> dict[str, Any]:
        """Load a port with predictions from a process of its own; return what that saw."""
        with self.loading(port, tenant=tenant, connections=connections, seconds=seconds, pause_s=pause_s) as child:
            return seen(child)

    @contextmanager
    def loading(
        self, port: int, *, tenant: str, connections: int, seconds: float, pause_s: float = 0.0
    ) -> Iterator["subprocess.Popen[str]"]:
        """Load a port while the block runs, or longer."""
        plan = Plan(
            port=port, request=self.predict(port, tenant), connections=connections, seconds=seconds, pause_s=pause_s
        )
        command = [sys.executable, str(HERE / "load.py"), json.dumps(asdict(plan))]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            yield child


def seen(child: "subprocess.Popen[str]") -> dict[str, Any]:
    """Wait for a load's end and return what it saw."""
    out, _ = child.communicate()
    found: dict[str, Any] = json.loads(out)
    return found


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    """Start everything, warm it up, and end it."""
    made = Installation(folder).init()
    many = 1_000_000_000
    settings = replace(
        settings_file.load(made.data), tenant_requests_per_minute=many, principal_requests_per_minute=many
    )
    settings_file.write(made.data, settings)
    whole = int(made.url.rpartition(":")[2])
    ports = {name: whole if name == "whole" else free_port() for name in VARIANTS}
    bare = free_port()
    with ExitStack() as stack:
        log = stack.enter_context((folder / "server.log").open("wb"))

        def started(*command: str) -> int:
            child = subprocess.Popen(
                [sys.executable, *command], stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
            stack.callback(child.wait)
            stack.callback(child.terminate)
            return child.pid

        server = started(str(HERE / "served.py"), str(made.data), json.dumps(ports))
        started(str(HERE / "bare.py"), str(bare))
        wait_until(lambda: _answers(f"{made.url}/v2/health/live", {200}), "the platform", timeout_s=60)
        wait_until(lambda: _answers(f"http://127.0.0.1:{bare}/", {404}), "the bare endpoint", timeout_s=60)
        acme, globex = (join(made, slug) for slug in TENANTS)
        found = Place(made=made, ports=ports, bare=bare, acme=acme, globex=globex, server=server)
        for tenant in (acme, globex):
            client = tenant.clients["developer"]
            _upload(client)
            found.tokens[tenant.slug] = token_of(client)
        for port in [*ports.values(), bare]:
            for tenant in (acme, globex):
                answer = found.load(port, tenant=tenant.slug, seconds=0.1)
                if set(answer["statuses"]) != {"200"}:
                    raise RuntimeError(f"a prediction was answered with {answer['statuses']}")
        time.sleep(0.5)
        yield found


def _upload(client: Client) -> None:
    import torch

    from benchmarks.bare import net
    from modelkeep.torch import trace

    client.models.upload("net", trace(net(), torch.zeros(1, FEATURES)))


def _answers(url: str, statuses: set[int]) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code in statuses
    except httpx.TransportError:
        return False
