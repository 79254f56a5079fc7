"""Nothing of a test outlives it, not even when pytest itself is killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from services.house import wait_until
from services.processes import alive

pytestmark = pytest.mark.e2e

_TESTS = Path(__file__).resolve().parents[1]
_KILLED = """
import os, signal, sys
from pathlib import Path
from faults.harness import Zygote
from services.house import Installation, ServerProcess

zygote = Zygote(Installation(Path(sys.argv[1])).init())
zygote.start()
server = ServerProcess(zygote.made)
print(zygote.process.pid, zygote.pid, server.process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_servers_end_with_the_process_that_tests(tmp_path: Path) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(_TESTS)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    pids = killed.stdout.split()
    assert len(pids) == 3
    wait_until(lambda: not any(alive(int(pid)) for pid in pids), "everything to end")
