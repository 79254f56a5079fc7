import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from modelkeep_platform.core.limits import MIB
from modelkeep_platform.workers.channel_sync import SyncChannel
from modelkeep_platform.workers.errors import WorkerDiedError, WorkerError
from modelkeep_platform.workers.frames import Frame
from modelkeep_platform.workers.limits import Limits
from modelkeep_platform.workers.process import WorkerProcess, start

PROBE = str(Path(__file__).with_name("probe_worker.py"))
LIMITS = Limits(memory_bytes=256 * MIB, files=32, cpu_s=30)


class ProbeSandbox:
    """Starts the probe's file in place of a module; shows that the seam decides the command."""

    def command(self, argv: Sequence[str]) -> Sequence[str]:
        at = argv.index("-m")
        return [*argv[:at], PROBE, *argv[at + 2 :]]


class MissingSandbox:
    def command(self, argv: Sequence[str]) -> Sequence[str]:
        return ["/nonexistent/sandbox", *argv]


@pytest.fixture
def probe() -> Iterator[tuple[WorkerProcess, SyncChannel, Frame]]:
    with start("probe", limits=LIMITS, sandbox=ProbeSandbox()) as worker:
        channel = SyncChannel(worker.connection)
        yield worker, channel, channel.receive(timeout_s=30)


Probe = tuple[WorkerProcess, SyncChannel, Frame]


def test_a_worker_gets_a_fixed_environment_and_nothing_of_the_platforms(
    monkeypatch: pytest.MonkeyPatch, probe: Probe
) -> None:
    assert set(probe[2].fields["environment"]) == {
        "LANG",
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MALLOC_ARENA_MAX",
        "CUDA_VISIBLE_DEVICES",
    }
    assert probe[2].fields["cwd"] == "/"
    assert probe[2].fields["session"] is True
    assert probe[2].fields["no_new_privs"] == "1"


def test_a_worker_inherits_one_socket_and_no_other_descriptor(tmp_path: Path) -> None:
    with (tmp_path / "secret").open("w") as secret:
        os.set_inheritable(secret.fileno(), True)
        with start("probe", limits=LIMITS, sandbox=ProbeSandbox()) as worker:
            descriptors = SyncChannel(worker.connection).receive(timeout_s=30).fields["descriptors"]
    streams = [descriptors.pop(name) for name in ("0", "1", "2")]
    assert streams == ["/dev/null"] * 3
    assert [link.partition(":")[0] for link in descriptors.values()] == ["socket"]


def test_libraries_in_a_worker_are_told_of_no_temporary_folder(probe: Probe) -> None:
    # They would look for one by writing a file, which fails, and with it their import.
    assert probe[2].fields["tempdir"] == "/nonexistent"


def test_limits_hold_hard(probe: Probe) -> None:
    assert probe[2].fields["limits"] == {
        "CORE": [0, 0],
        "FSIZE": [0, 0],
        "NOFILE": [32, 32],
        "DATA": [256 * MIB, 256 * MIB],
        "CPU": [30, 30],
    }


def test_a_worker_stands_back_as_far_as_it_is_told(probe: Probe) -> None:
    with start("probe", limits=replace(LIMITS, niceness=7), sandbox=ProbeSandbox()) as worker:
        back = SyncChannel(worker.connection).receive(timeout_s=30).fields
    assert back["niceness"] == os.nice(0) + 7
    assert back["autogroup"] in {"7", ""}  # empty where the kernel knows no such groups
    assert probe[2].fields["niceness"] == os.nice(0)


@pytest.mark.parametrize(
    ("attempt", "outcome"), [("allocate", "MemoryError"), ("write", "OSError"), ("open_many", "OSError")]
)
def test_what_is_past_a_limit_fails_in_the_worker(probe: Probe, attempt: str, outcome: str) -> None:
    _, channel, _ = probe
    channel.send(Frame(kind=attempt), timeout_s=5)
    assert channel.receive(timeout_s=5).fields == {"outcome": outcome}


def test_a_frame_goes_there_and_back(probe: Probe) -> None:
    _, channel, _ = probe
    frame = Frame(kind="echo", id=5, fields={"a": 1}, buffers=[b"x" * 3_000_000])
    channel.send(frame, timeout_s=5)
    assert channel.receive(timeout_s=5) == frame


def stopped(worker: WorkerProcess) -> None:
    SyncChannel(worker.connection).send(Frame(kind="stop"))


def exited(worker: WorkerProcess) -> None:
    SyncChannel(worker.connection).send(Frame(kind="exit"))


def killed(worker: WorkerProcess) -> None:
    os.kill(worker.pid, signal.SIGSEGV)


def closed(worker: WorkerProcess) -> None:
    SyncChannel(worker.connection).send(Frame(kind="close"))


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (stopped, "it stopped by itself"),
        (exited, "exit status 7"),
        (killed, "signal SIGSEGV"),
        (closed, "it closed its channel"),
    ],
    ids=["stop", "exit", "signal", "close"],
)
def test_a_death_is_noticed_with_its_reason(probe: Probe, end: Callable[[WorkerProcess], None], reason: str) -> None:
    worker, channel, _ = probe
    end(worker)
    with pytest.raises(WorkerDiedError):
        channel.receive(timeout_s=5)
    assert str(worker.death()) == f"the worker process ended: {reason}; try again"
    assert not worker.alive()


def test_a_fault_tells_type_and_place_but_never_the_message(probe: Probe) -> None:
    worker, channel, _ = probe
    channel.send(Frame(kind="fault"), timeout_s=5)
    report = channel.receive(timeout_s=5)
    assert report.kind == "fault"
    assert report.fields["type"] == "ValueError"
    assert report.fields["at"].startswith("__main__:")
    assert set(report.fields) == {"type", "at"}
    assert str(worker.death()) == "the worker process ended: exit status 1; try again"


def test_a_worker_stops_when_the_platform_closes_the_channel(probe: Probe) -> None:
    worker, channel, _ = probe
    channel.close()
    assert "it stopped by itself" in str(worker.death())


def test_kill_ends_a_hanging_worker_and_may_be_called_again(probe: Probe) -> None:
    worker, channel, _ = probe
    channel.send(Frame(kind="hang"), timeout_s=5)
    began = time.monotonic()
    worker.kill()
    worker.kill()
    assert not worker.alive()
    assert time.monotonic() - began < 5


def test_a_detached_channel_is_its_new_owners(probe: Probe) -> None:
    worker, _, _ = probe
    with worker.detach() as connection:
        worker.kill()
        with pytest.raises(WorkerDiedError):
            SyncChannel(connection).receive(timeout_s=5)


def test_killing_soon_needs_no_wait_and_tells_the_reason(probe: Probe) -> None:
    worker, _, _ = probe
    worker.kill_soon()
    assert "signal SIGKILL" in str(worker.death())
    worker.kill_soon()
    assert not worker.alive()


def test_a_command_that_cannot_start_is_a_worker_error() -> None:
    with pytest.raises(WorkerError) as caught:
        start("probe", limits=LIMITS, sandbox=MissingSandbox())
    assert caught.value.error_code == "worker_start"
    assert "nonexistent" not in str(caught.value)
