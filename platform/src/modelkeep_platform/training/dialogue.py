"""What a run and its worker say to one another: a brief, rows and weights down; segments, checkpoints and weights up.

A checkpoint is what it takes to go on (`training.state`). A worker that asks for a segment is told to go, or to stop.

The worker is not believed: what it says is one of three things, of the declared shape, or it is ended.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from modelkeep_platform.privacy.plan import RanMechanism
from modelkeep_platform.training.faults import fault, fault_type
from modelkeep_platform.training.heartbeat import Heartbeat
from modelkeep_platform.workers.channel_sync import SyncChannel
from modelkeep_platform.workers.child import FAULT, READY
from modelkeep_platform.workers.errors import FrameError, WorkerDiedError, WorkerTimeoutError
from modelkeep_platform.workers.frames import Frame
from modelkeep_platform.workers.process import WorkerProcess

_WAIT_S: Final = 0.5
_SEND_S: Final = 60.0
_RESULT: Final = 0
"""The step under which the weights of a finished run are sent."""

_log = logging.getLogger(__name__)


class Segment(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The worker asks for leave to run a segment: which, counted from 0, and how many steps it has."""

    number: int
    steps: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The worker sends what it takes to go on after a step."""

    step: int
    chunks: Iterator[bytes]


@dataclass(frozen=True, slots=True)
class Done:
    """Every step ran; `ran` is what sampler and noise report of a private run."""

    ran: RanMechanism | None


class _Blob(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    step: int
    last: bool


class Dialogue:
    """The platform's side of it.

    Args:
        worker: a started worker; who started it ends it.
        heartbeat: beaten while the worker is waited for and fed.
        job_id: names the job in the operator's log.
        max_silence_s: how long the worker may say nothing: a segment takes less.
    """

    def __init__(self, worker: WorkerProcess, heartbeat: Heartbeat, *, job_id: str, max_silence_s: float) -> None:
        self._worker = worker
        self._heartbeat = heartbeat
        self._job_id = job_id
        self._max_silence_s = max_silence_s
        self._channel = SyncChannel(worker.connection)

    def brief(self, job: dict[str, Any], graph: bytes) -> None:
        """Wait until the worker is ready and tell it what to do."""
        self._receive(READY)
        self._send(Frame(kind="job", fields=job, buffers=[graph]))

    def stream(self, kind: str, chunks: Iterator[bytes]) -> None:
        """Send rows, or weights or a checkpoint to go on from."""
        for chunk in chunks:
            self._send(Frame(kind=kind, fields={"last": False}, buffers=[chunk]))
            self._heartbeat.beat()
        self._send(Frame(kind=kind, fields={"last": True}))

    def hear(self) -> Segment | Checkpoint | Done:
        """Return what the worker says next.

        Raises:
            JobFailedError: it failed, and named a fault.
            WorkerError: it died, or says what is not to be said.
        """
        frame = self._receive("segment", "blob", "done")
        if frame.kind == "segment":
            return frame.read(Segment)
        if frame.kind == "blob":
            step = frame.read(_Blob).step
            return Checkpoint(step, self._blobs(frame, step))
        return Done(frame.read(RanMechanism) if frame.fields else None)

    def go(self) -> None:
        """Let the worker run the segment it asked for."""
        self._send(Frame(kind="go"))

    def stop(self) -> None:
        """Let the worker send a checkpoint of where it is, in place of the segment it asked for, and end."""
        self._send(Frame(kind="stop"))

    def result(self) -> Iterator[bytes]:
        """Yield the weights that follow on `Done`, in chunks; raises as `hear` does."""
        yield from self._blobs(self._receive("blob"), _RESULT)

    def _blobs(self, frame: Frame, step: int) -> Iterator[bytes]:
        while True:
            head = frame.read(_Blob)
            if head.step != step or len(frame.buffers) != (0 if head.last else 1):
                raise FrameError("the worker mixed up what it sent, and was ended")
            if head.last:
                # Whoever lost the lease while it received must not go on with what was received.
                self._heartbeat.beat(force=True)
                return
            yield bytes(frame.buffers[0])
            self._heartbeat.beat()
            frame = self._receive("blob")

    def _send(self, frame: Frame) -> None:
        try:
            self._channel.send(frame, timeout_s=_SEND_S)
        except WorkerDiedError:
            raise self._worker.death() from None

    def _receive(self, *kinds: str) -> Frame:
        until = time.monotonic() + self._max_silence_s
        while not self._channel.wait(_WAIT_S):
            self._heartbeat.beat()
            if time.monotonic() > until:
                # It hangs, or its segment has no end in sight: its place is another's.
                raise WorkerTimeoutError("the worker said nothing for too long, and was ended; take smaller batches")
        try:
            frame = self._channel.receive(timeout_s=_SEND_S)
        except WorkerDiedError:
            raise self._worker.death() from None
        if frame.kind == FAULT:
            _log.warning("the worker of job %s failed: %s", self._job_id, fault_type(frame))
            raise fault(frame)
        if frame.kind not in kinds:
            raise FrameError("the worker sent what was not expected, and was ended")
        return frame
