"""A worker for tests: does to itself what frames say. Started from its file: `python -I` finds no test modules."""

import ctypes
import os
import resource
import signal
import socket
import tempfile
import time
from pathlib import Path

from modelkeep_platform.workers.channel_sync import SyncChannel
from modelkeep_platform.workers.child import READY, run
from modelkeep_platform.workers.frames import Frame
from modelkeep_platform.workers.limits import Limits


def state() -> dict[str, object]:
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    links = {entry.name: str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if _is_open(entry.name)}
    return {
        "environment": dict(os.environ),
        "cwd": str(Path.cwd()),
        "descriptors": links,
        "session": os.getsid(0) == os.getpid(),
        "dumpable": ctypes.CDLL(None).prctl(3, 0, 0, 0, 0),  # PR_GET_DUMPABLE
        "tempdir": tempfile.gettempdir(),
        "niceness": os.nice(0),
        "autogroup": _autogroup(),
        "no_new_privs": status["NoNewPrivs"].strip(),
        "limits": {
            name: list(resource.getrlimit(getattr(resource, f"RLIMIT_{name}")))
            for name in ("CORE", "FSIZE", "NOFILE", "DATA", "CPU")
        },
    }


def _autogroup() -> str:
    try:
        return Path("/proc/self/autogroup").read_text().rpartition(" ")[2].strip()
    except OSError:
        return ""


def _is_open(name: str) -> bool:
    try:
        os.fstat(int(name))
    except OSError:
        return False
    return True


def allocate() -> None:
    bytearray(1 << 30)


def write() -> None:
    with Path("/tmp/modelkeep-probe").open("wb") as file:  # noqa: S108 -- refused by the limit under test
        file.write(b"x")


def overwrite(path: str) -> str:
    try:
        with Path(path).open("r+b") as file:
            file.write(b"x")
    except OSError as exc:
        return type(exc).__name__
    return "done"


def attempt(what: str, target: str, pid: int) -> str:
    """Try what a sandbox would refuse; return the refusal's type, or `done`."""
    try:
        match what:
            case "read":
                Path(target).read_bytes()
            case "read memory":
                _read_memory(pid)
            case "read environment":
                assert Path(f"/proc/{pid}/environ").read_bytes()
            case "remove":
                Path(target).unlink()
            case "create":
                Path(target).touch()
            case "connect":
                host, _, port = target.rpartition(":")
                socket.create_connection((host, int(port)), timeout=5).close()
            case "signal":
                os.kill(pid, 0)
            case "fork":
                _fork_many()
            case _:
                raise AssertionError(what)
    except OSError as exc:
        return type(exc).__name__
    return "done"


def _read_memory(pid: int) -> None:
    begin = int(Path(f"/proc/{pid}/maps").read_text().partition("-")[0], 16)
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        memory.seek(begin)
        assert memory.read(16)


def _fork_many() -> None:
    children: list[int] = []
    try:
        for _ in range(64):
            child = os.fork()
            if child == 0:
                time.sleep(30)
                os._exit(0)
            children.append(child)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def open_many() -> None:
    kept = [socket.socket() for _ in range(1000)]
    raise AssertionError(len(kept))


def bomb() -> None:
    kept = []
    while True:
        kept.append(bytearray(os.urandom(1 << 20)))


def leave_child() -> int:
    """Fork a child that outlives this process and its channel."""
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    return child


def flood(channel: SyncChannel) -> None:
    while True:
        channel.send(Frame(kind="outcome", id=99, buffers=[bytes(1 << 16)]))


def main(channel: SyncChannel, limits: Limits) -> None:
    channel.send(Frame(kind=READY, fields=state()))
    while True:
        frame = channel.receive()
        match frame.kind:
            case "echo":
                channel.send(frame)
            case "stop":
                return
            case "exit":
                os._exit(7)
            case "hang":
                time.sleep(60)
            case "close":
                channel.close()
                time.sleep(60)
            case "bomb" | "flood":
                bomb() if frame.kind == "bomb" else flood(channel)
            case "leave_child":
                channel.send(Frame(kind="child", fields={"pid": leave_child()}))
                return
            case "overwrite" | "attempt":
                outcome = (overwrite if frame.kind == "overwrite" else attempt)(**frame.fields)
                channel.send(Frame(kind="outcome", fields={"outcome": outcome}))
            case "fault":
                raise ValueError("a row: 4711")
            case kind:
                try:
                    {"allocate": allocate, "write": write, "open_many": open_many}[kind]()
                    outcome = "done"
                except (OSError, MemoryError) as exc:
                    outcome = type(exc).__name__
                channel.send(Frame(kind="outcome", fields={"outcome": outcome}))


if __name__ == "__main__":
    run(main)
