"""Kills the real server at its N-th durable write, starts it again on the same folder, and lets a test compare."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from modelkeep import Client, ClientCredentials
from modelkeep.errors import ModelkeepError
from modelkeep_platform.app.administration import verify_log
from services.crashing_server import AT, COUNT, FAULT, NONE, Page
from services.house import GRAPH, PRIVATE, ROWS, SCHEMA, WEIGHTS, Installation, Tenant, join, wait_until

FULL: Final = os.environ.get("MODELKEEP_FAULTS") == "full"
REQUESTS: Final = ("AnyIO worker thread",)
JOBS: Final = ("dispatcher-",)
LOG: Final = ("audit-integrator",)
_SCRIPT: Final = Path(__file__).resolve().parents[1] / "services" / "crashing_server.py"
_MOST: Final = 200


class Zygote:
    """The process that forks servers, and the one server it has running."""

    def __init__(self, made: Installation) -> None:
        self.made = made
        self.page = Page(made.folder / "page")
        self._log = (made.folder / "server.log").open("ab")
        self._process = subprocess.Popen(
            [sys.executable, str(_SCRIPT), str(made.data), str(made.folder / "page")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.pid = 0

    def start(self) -> None:
        """Fork a server and wait until it answers."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self.pid = int(self._line())
        wait_until(self._answers, "the server to answer")

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, (self.made.folder / "server.log").read_text()[-4000:]
        return line

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.made.url}/v2/health/ready", timeout=2).status_code == 200
        except httpx.TransportError:
            return False

    def arm(self, at: int, threads: tuple[str, ...]) -> None:
        """Let it die at the `at`-th write of these threads, counted from now; 0 for never."""
        self.page.threads = ()
        self.page[COUNT], self.page[AT] = 0, at
        self.page.last = ""
        self.page.threads = threads

    @property
    def reached(self) -> bool:
        """Return whether the point was reached: the server is dead or about to be."""
        return 0 < self.page[AT] <= self.page[COUNT]

    def ended(self) -> int:
        """Wait for its end; return the signal that ended it, or 0."""
        self.pid = 0
        return os.waitstatus_to_exitcode(int(self._line())) * -1

    def kill(self) -> None:
        """Kill the server as a power cut would."""
        os.kill(self.pid, signal.SIGKILL)
        assert self.ended() == signal.SIGKILL

    def close(self) -> None:
        """Stop the server in order, and the zygote."""
        if self.pid:
            os.kill(self.pid, signal.SIGTERM)
            self.ended()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()
        self._log.close()


class World:
    """An installation whose server dies and comes back, with a tenant that has a model, a dataset and every role."""

    def __init__(self, folder: Path) -> None:
        self.made = Installation(folder).init()
        self.zygote = Zygote(self.made)
        self.zygote.start()
        self.acme: Tenant = join(self.made, "acme")
        self.globex: Tenant = join(self.made, "globex")
        self.app = self.acme.clients["developer"]
        self.app.models.upload("model", graph=GRAPH, weights=WEIGHTS)
        self.app.datasets.upload_csv("rows", ROWS, schema=SCHEMA, privacy=PRIVATE)
        # Whoever is killed must not be answered by a repetition.
        self.once = Client(
            self.made.url,
            auth=ClientCredentials(*self.acme.secrets["developer"]),
            state_dir=self.made.folder / "state" / "once",
            retries=0,
        )
        self.once.models.get("model")
        self.acme.admin.audit.verify()

    def sql(self, statement: str, *values: Any) -> list[Any]:
        """Look into the database, or let time pass in it."""
        connection = sqlite3.connect(self.made.data / "platform.db", timeout=30)
        try:
            with connection:
                return connection.execute(statement, values).fetchall()
        finally:
            connection.close()

    def restart(self) -> None:
        """Start a server in the dead one's place, when the leases of the dead are over."""
        self.zygote.arm(0, ())
        self.zygote.page[FAULT] = NONE
        self.sql("UPDATE jobs SET lease_until = 1 WHERE state = 'running'")
        self.sql("UPDATE audit_lease SET until = 1")
        self.sql("DELETE FROM server_processes")
        self.zygote.start()

    def check(self) -> None:
        """Check what holds whatever was interrupted."""
        assert self.app.models.download("model").weights == WEIGHTS
        for budget in self.app.budgets.list():
            assert budget.epsilon_spent <= budget.epsilon + 1e-9
        self.acme.admin.audit.verify()  # what this client keeps is extended
        assert self.sql("PRAGMA integrity_check") == [("ok",)]

    def wait_integrated(self) -> None:
        """Wait until every entry has its index, or the server has died."""
        query = "SELECT count(*) FROM audit_entries WHERE log_index IS NULL"
        wait_until(lambda: self.zygote.reached or self.sql(query) == [(0,)], "the integrator")

    def verify_log(self) -> None:
        """Wait until every entry has its index; recompute the tree."""
        self.wait_integrated()
        verify_log(self.made.data)

    def without_key(self) -> set[str]:
        """Return the objects that have bytes and no key to open them."""
        root = self.made.data / "blobs"
        objects = {path.relative_to(root).parts[1] for path in root.rglob("*") if path.is_file()}
        return objects - {row[0] for row in self.sql("SELECT object_id FROM wrapped_deks")}

    def close(self) -> None:
        """Stop everything."""
        for tenant in (self.acme, self.globex):
            for client in (tenant.admin, *tenant.clients.values()):
                client.close()
        self.once.close()
        self.zygote.close()


@dataclass(slots=True, kw_only=True)
class Death:
    """One run: where the server died, and what the caller heard."""

    n: int
    point: str
    answered: bool


def sweep(
    world: World,
    act: Callable[[int], object],
    *,
    threads: tuple[str, ...] = REQUESTS,
    step: int = 1,
    prepare: Callable[[int], object] | None = None,
) -> Iterator[Death]:
    """Kill the server at every write of `act` (every `step`-th, unless the full sweep is asked for).

    Args:
        world: with a running server.
        act: what is interrupted; given the number of the point.
        threads: whose writes count.
        step: how many points lie between two that are tried.
        prepare: what comes before, not interrupted.

    Yields:
        Each death, when a new server runs; the caller checks what it finds. The last run is not interrupted:
        `point` is empty.
    """
    n = 1
    while n < _MOST:
        began = time.monotonic()
        if prepare is not None:
            prepare(n)
        world.zygote.arm(n, threads)
        answered = True
        try:
            act(n)
        except (ModelkeepError, httpx.TransportError):
            answered = False
        if not world.zygote.reached:
            assert answered, "the call failed, although nobody killed the server"
            world.zygote.arm(0, ())
            yield Death(n=n, point="", answered=True)
            world.check()
            # Once a sweep: it starts a worker, and that costs more than everything else.
            assert world.app.predict("model", [[1.0, 1.0]]) == [[3.5, 6.5]]
            world.verify_log()
            return
        point = world.zygote.page.last
        assert world.zygote.ended() == signal.SIGKILL
        world.restart()
        world.check()
        print(f"killed at {n}, {point}; {time.monotonic() - began:.1f} s")
        yield Death(n=n, point=point, answered=answered)
        n += 1 if FULL else step
    raise AssertionError("it never came to an end")
