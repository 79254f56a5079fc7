"""What can go wrong between the platform and one of its child processes."""

from modelkeep_platform.core.errors import DeadlineError, UnavailableError


class WorkerError(UnavailableError):
    """A worker process could not do its work; the call itself may be fine."""

    code = "worker_failed"


class WorkerDiedError(WorkerError):
    """The process ended, or closed its end of the channel; `message` says how, never why in its own words."""

    code = "worker_died"


class FrameError(WorkerError):
    """The bytes are not a frame, or not the frame that the protocol wants here; the process is not to be trusted."""

    code = "worker_protocol"


class WorkerTimeoutError(DeadlineError):
    """The worker did not send or take a frame within the time allowed."""

    code = "worker_timeout"
