"""Kills the real server at its N-th durable write, starts it again on the same folder, and lets a test compare."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import httpx

from modelkeep import Client, ClientCredentials
from modelkeep.errors import APIError, ModelkeepError
from modelkeep_platform.app.administration import verify_log
from modelkeep_platform.training.run import segment_steps
from services.house import GRAPH, PRIVATE, ROWS, SCHEMA, WEIGHTS, Installation, Tenant, join, wait_until
from services.opened import opened
from services.points import HELD, LAST, LOOK_MS, STEPS, Page

FULL: Final = os.environ.get("MODELKEEP_FAULTS") == "full"
CHEAP: Final[dict[str, Any]] = {"privacy": {"epsilon": 0.2, "clip_norm": 1.0}, "sample_rate": 0.1}
"""A job of which two hundred fit the world's dataset: nothing is refused because of what was killed before."""
SOON_MS: Final = 300
_TESTS: Final = Path(__file__).resolve().parents[1]
_MOST: Final = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Victim:
    """What is killed: the server at a durable write of some of its threads, or a worker at one of its moments.

    Args:
        threads: how the names of the server's threads begin, parted by ``|``.
        worker: the worker's module.
        with_server: whether the worker takes its server with it.
        moment: the one point that counts; empty for every one.
    """

    threads: str = ""
    worker: str = ""
    with_server: bool = False
    moment: str = ""

    @property
    def server(self) -> bool:
        """Return whether the server dies."""
        return self.with_server or bool(self.threads)


REQUESTS: Final = Victim(threads="AnyIO worker thread")
JOBS: Final = Victim(threads="dispatcher-")
LOG: Final = Victim(threads="audit-integrator")
EITHER: Final = Victim(threads="AnyIO worker thread|dispatcher-")
TRAINING: Final = Victim(worker="modelkeep_platform.training.worker")
SERVING: Final = Victim(worker="modelkeep_platform.serving.worker")


class Zygote:
    """The process that forks servers, and the one server it has running."""

    def __init__(self, made: Installation) -> None:
        self.made = made
        self.page = Page(made.folder / "page")
        self._log = (made.folder / "server.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "services.crashing_server", str(made.data), str(made.folder / "page")],
            env={**os.environ, "PYTHONPATH": str(_TESTS)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.pid = 0

    def start(self) -> None:
        """Fork a server and wait until it answers."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.pid = int(self._line())
        wait_until(self._answers, "the server to answer")

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, (self.made.folder / "server.log").read_text()[-4000:]
        return line

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.made.url}/v2/health/ready", timeout=2).status_code == 200
        except httpx.TransportError:
            return False

    def arm(self, at: int, victim: Victim) -> None:
        """Let the victim die at its `at`-th point, counted from now."""
        self.page.arm(
            at,
            threads=victim.threads,
            worker=victim.worker,
            moment=victim.moment,
            with_server=victim.with_server,
        )

    def workers(self, module: str = "") -> list[int]:
        """Return the workers that run, of one module when it is named: also those whose server is dead."""
        found = []
        for command in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = command.read_text().split("\0")
            except OSError:
                continue  # it ended while it was read
            # Our own zygote has the page among its words, too, but no module.
            if str(self.made.folder / "page") in words and any(
                word.startswith(f"modelkeep_platform.{module}") for word in words
            ):
                found.append(int(command.parent.name))
        return found

    def ended(self) -> int:
        """Wait for its end; return the signal that ended it, or 0."""
        self.pid = 0
        return os.waitstatus_to_exitcode(int(self._line())) * -1

    def kill(self) -> None:
        """Kill the server as a power cut would."""
        self._signal(signal.SIGKILL)
        assert self.ended() == signal.SIGKILL

    def stop(self) -> None:
        """Stop the server in order."""
        self._signal(signal.SIGTERM)
        assert self.ended() == 0

    def _signal(self, number: signal.Signals) -> None:
        assert self.pid, "no server runs"  # 0 would be the tests' own process group
        os.kill(self.pid, number)

    def close(self) -> None:
        """Stop the server in order, and the zygote."""
        if self.pid:
            self.stop()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()
        self._log.close()


class World:
    """An installation whose server dies and comes back, with a tenant that has a model, a dataset and every role.

    A context manager: whatever goes wrong, its processes end with it.
    """

    def __init__(self, folder: Path) -> None:
        self._open = ExitStack()
        self.made = Installation(folder).init()
        self.zygote = Zygote(self.made)
        self._open.callback(self.zygote.close)

    def fill(self) -> None:
        """Start a server and make what tests work on."""
        self.zygote.start()
        self.acme: Tenant = join(self.made, "acme")
        self.globex: Tenant = join(self.made, "globex")
        self.app = self.acme.clients["developer"]
        # Whoever is killed must not be answered by a repetition.
        self.once = Client(
            self.made.url,
            auth=ClientCredentials(*self.acme.secrets["developer"]),
            state_dir=self.made.folder / "state" / "once",
            retries=0,
        )
        for tenant in (self.acme, self.globex):
            for client in (tenant.admin, *tenant.clients.values()):
                self._open.callback(client.close)
        self._open.callback(self.once.close)
        self.app.models.upload("model", graph=GRAPH, weights=WEIGHTS)
        self.app.datasets.upload_csv("rows", ROWS, schema=SCHEMA, privacy=PRIVATE)
        self.once.models.get("model")
        self.acme.admin.audit.verify()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

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
        self.zygote.page.disarm()
        self.zygote.page[HELD] = 0
        self.zygote.page[LOOK_MS] = SOON_MS
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
        wait_until(lambda: self.zygote.page.reached or self.sql(query) == [(0,)], "the integrator")

    def verify_log(self) -> None:
        """Wait until every entry has its index; recompute the tree."""
        self.wait_integrated()
        verify_log(self.made.data)

    def ended(self, job_id: str) -> str:
        """Wait until a job is ended; return how."""
        active = ("queued", "running")
        wait_until(lambda: self.app.jobs.get(job_id).state not in active, "the job to be ended")
        return self.app.jobs.get(job_id).state

    def check_ledger(self) -> None:
        """Check the ledger against its own charges, when no job is under way: nothing is held back or counted twice."""
        rows = self.sql("SELECT reservation_id, state, charged_steps, steps FROM privacy_reservations")
        for reservation, state, charged, most in rows:
            ((summed,),) = self.sql(
                "SELECT coalesce(sum(steps), 0) FROM privacy_charges WHERE reservation_id = ?", reservation
            )
            assert state != "open", reservation
            assert summed == charged <= most, reservation

    def check_steps(self, job_id: str) -> None:
        """Compare what a job was charged with the noisy steps that its worker began: those since `STEPS` was set to 0.

        A charge comes before its segment: it is never less than what ran, and at most one segment more.
        """
        ((charged, most),) = self.sql("SELECT charged_steps, steps FROM privacy_reservations WHERE job_id = ?", job_id)
        ran = self.zygote.page[STEPS]
        assert ran <= charged <= min(most, ran + segment_steps(most)), (ran, charged, most)

    def without_key(self) -> set[str]:
        """Return the objects that have bytes and no key to open them."""
        root = self.made.data / "blobs"
        objects = {path.relative_to(root).parts[1] for path in root.rglob("*") if path.is_file()}
        return objects - {row[0] for row in self.sql("SELECT object_id FROM wrapped_deks")}

    def bytes_of(self, object_id: str, version: int) -> list[Path]:
        """Return the files of one version."""
        root = self.made.data / "blobs"
        return [path for path in root.glob(f"*/{object_id}/{version}/**/*") if path.is_file()]


@dataclass(slots=True, kw_only=True)
class Death:
    """One run: where the victim died, and what the caller heard."""

    n: int
    point: str
    answered: bool


def sweep(
    world: World,
    act: Callable[[int], object],
    *,
    victim: Victim = REQUESTS,
    step: int = 1,
    prepare: Callable[[int], object] | None = None,
) -> Iterator[Death]:
    """Kill the victim at each of its points during `act` (every `step`-th, unless the full sweep is asked for).

    Args:
        world: with a running server.
        act: what is interrupted; given the number of the point.
        victim: who dies.
        step: how many points lie between two that are tried.
        prepare: what comes before, not interrupted.

    Yields:
        Each death, when a server runs again; the caller checks what it finds. The last run is not interrupted:
        `point` is empty.
    """
    n = 1
    while n < _MOST:
        began = time.monotonic()
        try:
            death = strike(world, act, n, victim, prepare)
        except APIError as exc:
            if exc.code != "epoch_unreadable":
                raise
            continue  # a machine so busy that the epoch could not be read for a second: refused, as it should be
        if not death.point:
            assert n > 1, "nothing died: no durable step of the victim was recognised"
            yield death
            world.check()
            # Once a sweep: it starts a worker, and that costs more than everything else.
            assert world.app.predict("model", [[1.0, 1.0]]) == [[3.5, 6.5]]
            world.wait_integrated()
            assert {"model/1", "rows"} <= opened(world.made.data)
            return
        print(f"killed at {n}, {death.point}; {time.monotonic() - began:.1f} s")
        yield death
        n += 1 if FULL else step
    raise AssertionError("it never came to an end")


def strike(
    world: World,
    act: Callable[[int], object],
    n: int,
    victim: Victim,
    prepare: Callable[[int], object] | None = None,
) -> Death:
    """Run `act` once and kill the victim at its `n`-th point; return when a server runs again."""
    if prepare is not None:
        prepare(n)
    world.zygote.arm(n, victim)
    page = world.zygote.page
    answered = True
    try:
        act(n)
    except (ModelkeepError, httpx.TransportError):
        if not page.reached:
            raise  # nobody was killed
        answered = False
    if not page.reached:
        page.disarm()
        return Death(n=n, point="", answered=True)
    point = page.text(LAST)
    if victim.server:
        assert world.zygote.ended() == signal.SIGKILL
        wait_until(lambda: not world.zygote.workers(), "the workers of a dead server to end")
        world.restart()
    world.check()
    return Death(n=n, point=point, answered=answered)
