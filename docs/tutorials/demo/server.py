"""Starts, kills and restarts a platform of its own in a fresh folder, on a free port."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import httpx

_START_TIMEOUT_S = 60


class Platform:
    """One installation and its server process.

    Args:
        folder: a fresh folder; the data lie in `folder/data`, the root key in `folder/keys`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.url = f"http://127.0.0.1:{_free_port()}"
        self.operator_secret = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def init(self) -> str:
        """Make the installation; return what `init` printed."""
        printed = subprocess.run(  # noqa: S603 -- the project's own command
            [
                *_command("init"),
                *("--data", str(self.data)),
                *("--root-key", str(self.folder / "keys" / "root.key")),
                *("--base-url", self.url),
            ],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        found = re.search(r"client secret: (\S+)", printed)
        if found is None:
            raise RuntimeError("init printed no operator secret")
        self.operator_secret = found[1]
        return printed

    def start(self) -> None:
        """Start the server and wait until it is ready."""
        self._log = (self.folder / "server.log").open("ab")
        self._process = subprocess.Popen(  # noqa: S603 -- the project's own command
            [*_command("serve"), "--data", str(self.data)],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(self.temporary)},
            start_new_session=True,
        )
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{self.url}/v2/health/ready", timeout=2).status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass
            if self._process.poll() is not None:
                break
            time.sleep(0.1)
        raise RuntimeError(f"the server did not start:\n{(self.folder / 'server.log').read_text()[-4000:]}")

    def kill(self) -> None:
        """Kill the server as a power cut would: SIGKILL, no clean-up."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Stop the server in order."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            try:
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._log is not None:
            self._log.close()


def _command(verb: str) -> list[str]:
    return [str(Path(sys.executable).with_name("modelkeep-platform")), verb]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
