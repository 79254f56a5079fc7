"""Attempts of a worker that was taken over: the lines *Workers* of the design's list of attacks.

What does not hold without a kernel sandbox (namespaces, Landlock, seccomp) is tried all the same, and named: each such
test is expected to fail, and fails the suite on the day that it holds. `docs/explanation/workers.md` lists the same.
"""

import asyncio
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from fakes.core import ACME, GLOBEX, FakeClock, FakeEntropy, FakeRecorder, tenant_caller
from fakes.rooms import (
    CELLS,
    OPEN_CELLS,
    ScriptedRunner,
    TrainingRoom,
    ask,
    cells,
    finish,
    hear_brief,
    honest,
    say_done,
    send_checkpoint,
    training_spec,
    zeros,
)
from fakes.serving import FakeWorker, Processes, doubled, doubles, rows, servable, values_of, weights_of
from modelkeep_platform.core.errors import UnavailableError
from modelkeep_platform.core.ids import TenantId
from modelkeep_platform.core.limits import MIB
from modelkeep_platform.serving.service import ServingService
from modelkeep_platform.storage.blobs import LocalBlobs
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.pages import PageRequest
from modelkeep_platform.workers.channel_sync import SyncChannel
from modelkeep_platform.workers.errors import FrameError, WorkerDiedError
from modelkeep_platform.workers.frames import Frame
from modelkeep_platform.workers.limits import Limits
from modelkeep_platform.workers.process import WorkerProcess, start
from modelkeep_platform.workers.sandbox import ProcessSandbox
from services.processes import alive

PROBE = str(Path(__file__).parents[1] / "unit" / "workers" / "probe_worker.py")
ME = tenant_caller()


class ProbeSandbox:
    def command(self, argv: Sequence[str]) -> Sequence[str]:
        at = argv.index("-m")
        return [*argv[:at], PROBE, *argv[at + 2 :]]


class Probe:
    """A real worker process that does what it is told."""

    def __init__(self) -> None:
        self.process: WorkerProcess = start("probe", limits=Limits(memory_bytes=256 * MIB), sandbox=ProbeSandbox())
        self.channel = SyncChannel(self.process.connection)
        self.state: Any = self.channel.receive(timeout_s=30).fields

    def tell(self, kind: str, **fields: Any) -> None:
        self.channel.send(Frame(kind=kind, id=1, fields=fields), timeout_s=5)

    def hear(self) -> Frame:
        return self.channel.receive(timeout_s=10)


@pytest.fixture
def probes() -> Iterator[Callable[[], Probe]]:
    started: list[Probe] = []

    def new() -> Probe:
        started.append(Probe())
        return started[-1]

    yield new
    for probe in started:
        probe.process.kill()


# --- the process -----------------------------------------------------------------------------------


def test_nothing_of_the_servers_environment_is_in_a_worker(
    monkeypatch: pytest.MonkeyPatch, probes: Callable[[], Probe]
) -> None:
    for name in ("MODELKEEP_ROOT_KEY", "AWS_SECRET_ACCESS_KEY", "PYTHONPATH", "LD_PRELOAD", "HOME", "PATH"):
        monkeypatch.setenv(name, os.environ.get(name, "") if name in ("PATH", "LD_PRELOAD") else "/tmp/s3cret")  # noqa: S108
    environment = probes().state["environment"]
    assert set(environment) <= {
        "LANG",
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MALLOC_ARENA_MAX",
        "CUDA_VISIBLE_DEVICES",
    }
    assert "s3cret" not in str(environment)


def test_a_worker_holds_no_descriptor_of_the_server_nor_of_another_worker(
    probes: Callable[[], Probe], tmp_path: Path
) -> None:
    database = os.open(tmp_path / "platform.db", os.O_RDWR | os.O_CREAT)
    os.set_inheritable(database, True)
    try:
        one, other = (probes().state["descriptors"] for _ in range(2))
    finally:
        os.close(database)
    sockets = [{link for link in found.values() if link != "/dev/null"} for found in (one, other)]
    assert [len(found) for found in sockets] == [1, 1]
    assert sockets[0] != sockets[1]
    assert "platform.db" not in str((one, other))


def test_a_worker_leaves_no_core_dump_and_cannot_be_read_by_its_user(probes: Callable[[], Probe]) -> None:
    probe = probes()
    assert probe.state["limits"]["CORE"] == [0, 0]
    assert probe.state["dumpable"] == 0
    os.kill(probe.process.pid, signal.SIGABRT)
    assert "signal SIGABRT" in str(probe.process.death())


def test_a_memory_bomb_ends_its_own_worker_only(probes: Callable[[], Probe]) -> None:
    bomber, neighbour = probes(), probes()
    bomber.tell("bomb")
    fault = bomber.hear()
    assert (fault.kind, fault.fields["type"]) == ("fault", "MemoryError")
    with pytest.raises(WorkerDiedError):
        bomber.hear()
    assert "exit status 1" in str(bomber.process.death())
    neighbour.tell("echo")
    assert neighbour.hear().kind == "echo"


def test_no_byte_is_written_to_a_file(probes: Callable[[], Probe], tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"sealed")
    probe = probes()
    probe.tell("overwrite", path=str(path))
    assert probe.hear().fields == {"outcome": "OSError"}
    assert path.read_bytes() == b"sealed"


def test_children_that_a_worker_left_behind_die_with_it(probes: Callable[[], Probe]) -> None:
    probe = probes()
    probe.tell("leave_child")
    child = probe.hear().fields["pid"]
    for _ in range(500):
        if not probe.process.alive():
            break
        time.sleep(0.005)
    assert alive(child)
    probe.process.kill()
    for _ in range(500):
        if not alive(child):
            break
        time.sleep(0.005)
    assert not alive(child)


def test_a_worker_that_hangs_is_killed(probes: Callable[[], Probe]) -> None:
    probe = probes()
    probe.tell("hang")
    began = time.monotonic()
    probe.process.kill()
    assert time.monotonic() - began < 5
    assert not probe.process.alive()


def test_a_flood_of_frames_waits_in_the_kernel_and_not_in_the_server(probes: Callable[[], Probe]) -> None:
    probe = probes()
    probe.tell("flood")
    for _ in range(50):
        assert probe.hear().id == 99
    assert probe.process.alive()
    probe.process.kill()
    with pytest.raises(WorkerDiedError):
        probe.channel.send(Frame(kind="echo"), timeout_s=1)


# --- what does not hold yet ------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parents[2]
NOT_YET = {
    "Files": "no mount namespace, no Landlock: it reads, removes and creates what the server's user may",
    "Network": "no network namespace: it connects wherever the server could, to metadata services, too",
    "Processes": "no process namespace: it sees and signals every process of the server's user, and as root reads them",
    "Forks": "no cgroup: neither the number of its processes nor their memory together is bounded",
}
"""What a kernel sandbox would refuse and a worker may do, by the words of the page on workers."""


def not_yet(what: str, *, as_root: bool = False) -> pytest.MarkDecorator:
    """Expect a test to fail, always or where it runs as root; one that passes means that the pages are to be mended."""
    expected = not as_root or os.geteuid() == 0
    return pytest.mark.xfail(expected, reason=NOT_YET[what], raises=AssertionError, strict=True)


def attempted(probe: Probe, what: str, *, target: str = "", pid: int = 0) -> str:
    """Let a worker try something; return the type of what refused it, or `done`."""
    probe.tell("attempt", what=what, target=target, pid=pid)
    return str(probe.hear().fields["outcome"])


@not_yet("Files")
def test_a_worker_reads_no_file_of_the_servers(probes: Callable[[], Probe], tmp_path: Path) -> None:
    key = tmp_path / "root.key"
    key.write_bytes(b"k" * 32)
    assert attempted(probes(), "read", target=str(key)) != "done"


@not_yet("Files")
@pytest.mark.parametrize("what", ["remove", "create"])
def test_a_worker_changes_no_folder_of_the_servers(probes: Callable[[], Probe], tmp_path: Path, what: str) -> None:
    path = tmp_path / "blob"
    if what == "remove":
        path.write_bytes(b"sealed")
    assert attempted(probes(), what, target=str(path)) != "done"


@not_yet("Network")
def test_a_worker_connects_to_nothing(probes: Callable[[], Probe]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert attempted(probes(), "connect", target=f"127.0.0.1:{listener.getsockname()[1]}") != "done"


@not_yet("Processes")
@pytest.mark.parametrize("whose", ["server", "other worker"])
def test_a_worker_signals_nobody(probes: Callable[[], Probe], whose: str) -> None:
    pid = os.getpid() if whose == "server" else probes().process.pid
    assert attempted(probes(), "signal", pid=pid) != "done"


@not_yet("Processes", as_root=True)
@pytest.mark.parametrize("what", ["read memory", "read environment"])
def test_a_worker_reads_no_other_worker(probes: Callable[[], Probe], what: str) -> None:
    assert attempted(probes(), what, pid=probes().process.pid) != "done"


@not_yet("Processes")
def test_a_worker_does_not_read_the_servers_environment(probes: Callable[[], Probe]) -> None:
    assert attempted(probes(), "read environment", pid=os.getpid()) != "done"


@not_yet("Forks")
def test_a_worker_does_not_fork_without_end(probes: Callable[[], Probe]) -> None:
    assert attempted(probes(), "fork") != "done"


def test_the_pages_name_what_does_not_hold() -> None:
    page = (ROOT / "docs/explanation/workers.md").read_text(encoding="utf-8")
    _, _, rest = page.partition("Not isolated until workers run in a kernel sandbox")
    assert set(re.findall(r"^\* \*\*(.+?)\*\*", rest, re.MULTILINE)) == {*NOT_YET, "Deleted models"}
    limits = (ROOT / "docs/explanation/limitations.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^\* \*\*No kernel sandbox around workers\.\*\*.*(?:\n  .*)*", limits, re.MULTILINE)
    assert [word for word in ("files", "network", "processes", "fork") if word not in line] == []


# --- serving ---------------------------------------------------------------------------------------


def serve(main: Callable[[ServingService], Any]) -> None:
    async def guarded() -> None:
        async with asyncio.timeout(10):
            service = ServingService(weights=weights_of, limits=Limits(), sandbox=ProcessSandbox())
            try:
                await main(service)
            finally:
                await service.close(limit_s=0)

    asyncio.run(guarded())


async def ask_for(
    service: ServingService, value: float, owner: TenantId = ACME, caller: TenantId = ACME
) -> list[float]:
    return values_of(await service.infer(servable(owner=owner, caller=caller), rows(value), timeout_s=5))


def test_a_worker_receives_its_own_tenants_frames_and_a_batch_one_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes(monkeypatch, doubles)

    async def main(service: ServingService) -> None:
        asked = [
            ask_for(service, 10 * number + tenant, owner, caller)
            for number in range(10)
            for tenant, (owner, caller) in enumerate([(ACME, ACME), (GLOBEX, GLOBEX), (ACME, GLOBEX)])
        ]
        answers = await asyncio.gather(*asked)
        assert answers == [[2 * (10 * n + tenant)] for n in range(10) for tenant in range(3)]

    serve(main)
    acme, globex = (
        [numbers(frame) for frame in process.frames if frame.kind == "infer"] for process in processes.started
    )
    assert {number % 10 for batch in globex for number in batch} == {1}
    assert {number % 10 for batch in acme for number in batch} == {0, 2}
    # ACME's own rows and those of a guest are never computed together.
    assert all(len({number % 10 for number in batch}) == 1 for batch in acme)


def numbers(frame: Frame) -> list[int]:
    return [int(number) for number in memoryview(bytes(frame.buffers[0])).cast("f")[::2]]


@pytest.mark.parametrize("shift", [-1, 1, 1000], ids=["an earlier", "the next", "none"])
def test_an_answer_for_another_request_reaches_nobody(monkeypatch: pytest.MonkeyPatch, shift: int) -> None:
    async def swaps(worker: FakeWorker) -> None:
        frame = await worker.until_asked()
        await worker.send(doubled(Frame(kind="infer", id=frame.id + shift, fields=frame.fields, buffers=frame.buffers)))
        await asyncio.Event().wait()

    processes = Processes(monkeypatch, swaps, doubles)

    async def main(service: ServingService) -> None:
        with pytest.raises(UnavailableError) as caught:
            await ask_for(service, 1)
        assert caught.value.error_code == "worker_died"
        assert await ask_for(service, 2) == [4]

    serve(main)
    assert processes.started[0].reaped


def test_frames_that_nobody_asked_for_answer_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = 0

    async def floods(worker: FakeWorker) -> None:
        nonlocal sent
        while True:
            await worker.send(Frame(kind="answer", id=sent + 1, buffers=[bytes(1 << 16)]))
            sent += 1

    Processes(monkeypatch, floods, doubles)

    async def main(service: ServingService) -> None:
        with pytest.raises(UnavailableError):
            await ask_for(service, 1)
        assert await ask_for(service, 2) == [4]

    serve(main)
    assert sent * (1 << 16) < 16 * MIB


# --- training --------------------------------------------------------------------------------------


@pytest.fixture
def room(
    database: Database, blobs: LocalBlobs, clock: FakeClock, entropy: FakeEntropy, recorder: FakeRecorder
) -> TrainingRoom:
    room = TrainingRoom(database, blobs, clock, entropy, recorder)
    room.add(CELLS, cells())
    room.add(OPEN_CELLS, cells())
    return room


def charged(room: TrainingRoom) -> tuple[int, float]:
    budget = room.datasets.budget(ME, "cells")
    return sum(charge.steps for charge in budget.charges), budget.epsilon_reserved


def models(room: TrainingRoom) -> list[str]:
    return [model.name for model in room.models.list(ME, PageRequest()).items if model.latest_version]


def segments(*asked: tuple[int, int]) -> Callable[[SyncChannel], None]:
    def script(channel: SyncChannel) -> None:
        fields, _ = hear_brief(channel)
        for number, steps in asked:
            ask(channel, number, steps)
        finish(channel, fields)

    return script


@pytest.mark.parametrize(
    ("asked", "steps"),
    [
        pytest.param([(1, 1)], 0, id="begins with another segment"),
        pytest.param([(0, 8)], 0, id="all at once"),
        pytest.param([(0, 2**62)], 0, id="overflow"),
        pytest.param([(0, 1), (0, 1)], 1, id="repeats one"),
        pytest.param([(0, 1), (2, 1)], 1, id="leaves one out"),
        pytest.param([(0, 1), (1, 1), (0, 1)], 2, id="goes back"),
        pytest.param([(0, 1), (1, 1)], 2, id="ends early"),
        pytest.param([], 0, id="takes no step at all"),
        pytest.param([(n, 1) for n in range(9)], 8, id="one more than declared"),
    ],
)
def test_a_worker_that_runs_other_steps_than_it_declared(
    room: TrainingRoom, asked: list[tuple[int, int]], steps: int
) -> None:
    job = room.run(segments(*asked))
    assert job.error is not None
    assert (job.state, job.error.code) == ("failed", "worker_protocol")
    assert charged(room) == (steps, 0.0)
    assert models(room) == []
    last = room.recorder.events[-1]
    assert (last.action, last.outcome, last.facts["error"]) == ("job:end", "failed", "worker_protocol")


def wide() -> bytes:
    """Weights as well-formed as ours, of another shape."""
    return zeros().replace(b'"shape": [2, 2]', b'"shape": [4, 1]').replace(b'"shape":[2,2]', b'"shape":[4,1]')


@pytest.mark.parametrize("weights", [wide(), zeros() + bytes(64), zeros()[:-8]], ids=["shape", "longer", "shorter"])
def test_weights_that_are_not_the_graphs_make_no_version(room: TrainingRoom, weights: bytes) -> None:
    def script(channel: SyncChannel) -> None:
        fields, _ = hear_brief(channel)
        for number in range(8):
            ask(channel, number, 1)
        finish(channel, fields, weights)

    assert weights != zeros()
    job = room.run(script)
    assert job.error is not None
    assert (job.state, job.error.code) == ("failed", "invalid_weights")
    assert (charged(room), models(room)) == ((8, 0.0), [])


def test_endless_weights_do_not_fill_the_disk(room: TrainingRoom) -> None:
    sent = 0

    def script(channel: SyncChannel) -> None:
        nonlocal sent
        fields, _ = hear_brief(channel)
        for number in range(8):
            ask(channel, number, 1)
        say_done(channel, fields)
        channel.send(Frame(kind="blob", fields={"step": 0, "last": False}, buffers=[zeros()]))
        while True:
            channel.send(Frame(kind="blob", fields={"step": 0, "last": False}, buffers=[bytes(1 << 20)]))
            sent += 1

    job = room.run(script)
    assert job.error is not None
    assert job.error.code == "invalid_weights"
    assert sent < 16


@pytest.mark.parametrize("code", ["row 98765", "budget_exceeded", "stale_lease", "", "x" * 10_000])
def test_a_fault_with_a_code_of_its_own_is_told_as_a_failure(room: TrainingRoom, code: str) -> None:
    def script(channel: SyncChannel) -> None:
        hear_brief(channel)
        channel.send(Frame(kind="fault", fields={"code": code, "type": code, "at": code}))

    job = room.run(script)
    assert job.error is not None
    assert job.error.code == "job_failed"
    shown = repr([job, room.training.logs(ME, job.id, PageRequest()), [dict(e.facts) for e in room.recorder.events]])
    assert code in ("", "budget_exceeded", "stale_lease") or code not in shown


@pytest.mark.parametrize("steps", [0, 3, 8], ids=["before a step", "in the middle", "after its last step"])
def test_a_zombie_commits_nothing(room: TrainingRoom, steps: int) -> None:
    job = room.training.create(ME, training_spec())
    other = room.dispatcher(ScriptedRunner(honest))

    def script(channel: SyncChannel) -> None:
        fields, _ = hear_brief(channel)
        for number in range(steps):
            ask(channel, number, 1)
        room.clock.advance(3600)
        assert [other.end_lapsed() for _ in range(2)] == [0, 1]
        for number in range(steps, 8):
            ask(channel, number, 1)
        finish(channel, fields)

    room.dispatcher(ScriptedRunner(script)).run_one()
    ended = room.training.get(ME, job.id)
    assert ended.error is not None
    assert (ended.state, ended.error.code, ended.result) == ("failed", "interrupted", None)
    assert (charged(room), models(room)) == ((steps, 0.0), [])


def test_a_zombie_that_loses_its_lease_while_it_sends_weights_makes_no_version(room: TrainingRoom) -> None:
    other = room.dispatcher(ScriptedRunner(honest))

    def script(channel: SyncChannel) -> None:
        fields, _ = hear_brief(channel)
        for number in range(8):
            ask(channel, number, 1)
        say_done(channel, fields)
        channel.send(Frame(kind="blob", fields={"step": 0, "last": False}, buffers=[zeros()]))
        for _ in range(500):
            if room.datasets.budget(ME, "cells").epsilon_reserved == 0.0:
                break  # committed: the server waits for the rest
            time.sleep(0.005)
        room.clock.advance(3600)
        assert [other.end_lapsed() for _ in range(2)] == [0, 1]
        channel.send(Frame(kind="blob", fields={"step": 0, "last": True}))

    job = room.run(script)
    assert (job.state, job.result) == ("failed", None)
    assert (charged(room), models(room)) == ((8, 0.0), [])


def test_checkpoints_that_were_not_asked_for_are_refused(room: TrainingRoom) -> None:
    def script(channel: SyncChannel) -> None:
        hear_brief(channel)
        ask(channel, 0, 1)
        send_checkpoint(channel, 2)

    job = room.run(script, checkpoint_every=2)
    assert job.error is not None
    assert job.error.code == FrameError.code
