"""Warns when an answer names server processes that had not seen a change as it was sent."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Final

from modelkeep._core.flows import Response
from modelkeep.errors import UnacknowledgedWarning, printable

HEADER: Final = "x-modelkeep-unacknowledged"
_PACKAGE: Final = str(Path(__file__).parents[1]) + os.sep
_MAX_NAMES: Final = 20
_MAX_NAME: Final = 80


def warn_unacknowledged(response: Response) -> None:
    """Warn where the caller called, if `response` names processes."""
    found = (printable(name, limit=_MAX_NAME).strip() for name in response.headers.get(HEADER, "").split(","))
    names = tuple(name for name in found if name)[:_MAX_NAMES]
    if names:
        request_id = response.headers.get("x-request-id", "")
        warnings.warn(UnacknowledgedWarning(names, request_id=request_id), stacklevel=_of_caller())


def _of_caller() -> int:
    """Return the level, seen from `warn_unacknowledged`, of the first frame outside this package."""
    frame, level = sys._getframe(1), 1  # noqa: SLF001 -- there is no other way to count the frames of a flow
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    return level
