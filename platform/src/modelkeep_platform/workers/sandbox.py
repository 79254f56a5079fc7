"""The seam for what confines a worker from outside: namespaces, Landlock, seccomp, a container, another machine."""

from collections.abc import Sequence
from typing import Protocol


class Sandbox(Protocol):
    """Decides how a worker's command is started."""

    def command(self, argv: Sequence[str]) -> Sequence[str]:
        """Return the command that starts `argv` confined; it passes on the inherited descriptor."""


class ProcessSandbox:
    """A process of its own with the kernel's resource limits, and nothing more.

    It does not hide files, the network or other processes of the same user from a worker that was taken over.
    """

    def command(self, argv: Sequence[str]) -> Sequence[str]:
        """Return `argv` unchanged."""
        return argv
