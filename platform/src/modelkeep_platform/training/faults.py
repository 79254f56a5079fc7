"""What goes wrong with a job, in our own words: of a worker's words none is shown, they could hold a row."""

import builtins
from collections.abc import Mapping
from typing import Final

from modelkeep_platform.core.errors import UnprocessableError
from modelkeep_platform.workers.frames import Frame

FAULTS: Final[Mapping[str, str]] = {
    "batch_coupled": "an operation of the model mixes the records of a batch; keep the batch in the first dimension",
    "diverged": "the weights are not finite numbers any more; take a smaller learning rate",
    "layer_not_private": "a layer of the model cannot be trained privately; plan the job to see which",
    "out_of_memory": "the job ran out of memory; take a smaller `microbatch` or a smaller model",
}
"""Every failure a worker may name; anything else is shown as `job_failed`."""


class JobFailedError(UnprocessableError):
    """The job cannot be done as declared; the message holds no data."""

    code = "job_failed"


def fault(frame: Frame) -> JobFailedError:
    """Return the error of a worker's fault: by its code, never in its words."""
    code = str(frame.fields.get("code", ""))
    if frame.fields.get("type") == "MemoryError":
        code = "out_of_memory"
    if code in FAULTS:
        return JobFailedError(FAULTS[code], code=code)
    return JobFailedError("the training failed; check that the shapes of the model, the loss and the dataset agree")


def fault_type(frame: Frame) -> str:
    """Return the type of a worker's exception for the operator's log, if Python has such a type; no word of its own."""
    name = str(frame.fields.get("type", ""))
    known = getattr(builtins, name, None)
    return name if isinstance(known, type) and issubclass(known, BaseException) else "no type of Python's own"
