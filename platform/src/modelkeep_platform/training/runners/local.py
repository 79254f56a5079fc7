"""Runs a job in a process on this machine."""

from modelkeep_platform.workers.limits import Limits
from modelkeep_platform.workers.process import WorkerProcess, start
from modelkeep_platform.workers.sandbox import Sandbox

_MODULE = "modelkeep_platform.training.worker"


class LocalRunner:
    """Starts one worker process for each job.

    Args:
        limits: what a worker may use.
        sandbox: what confines it.
    """

    def __init__(self, *, limits: Limits, sandbox: Sandbox) -> None:
        self._limits = limits
        self._sandbox = sandbox

    def start(self) -> WorkerProcess:
        """Start a worker; its first frame says that it is ready."""
        return start(_MODULE, limits=self._limits, sandbox=self._sandbox)
