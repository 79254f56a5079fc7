"""What one worker process may use of the machine."""

from dataclasses import dataclass

from modelkeep_platform.core.limits import GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of one worker, set by the kernel on the process itself before any library is loaded.

    Args:
        memory_bytes: private writable memory (RLIMIT_DATA): heap, anonymous and private file mappings. Not the
            address space: torch maps 3 GB of read-only libraries before it does anything. An idle torch takes 0.75 GB.
        files: open file descriptors.
        processes: processes and threads of the same user (RLIMIT_NPROC); None leaves it alone. The kernel counts
            every process of the user and does not enforce it for root.
        cpu_s: processor seconds of the whole life, after which the kernel kills it; None for none.
        threads: threads it computes with.
        start_s: seconds from start to its first frame.
        niceness: how far it stands back for other processes, 0 to 19.
    """

    memory_bytes: int = 4 * GIB
    files: int = 64
    processes: int | None = None
    cpu_s: int | None = None
    threads: int = 1
    start_s: float = 60.0
    niceness: int = 0
