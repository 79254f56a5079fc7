"""The words of the graph format that tracing and building share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch

from modelkeep.errors import TraceError

FORMAT: Final = "modelkeep.graph/1"

DTYPES: Final[Mapping[str, torch.dtype]] = {
    "float32": torch.float32,
    "float64": torch.float64,
    "int64": torch.int64,
    "int32": torch.int32,
    "bool": torch.bool,
    "uint8": torch.uint8,
}


def dtype_name(dtype: torch.dtype) -> str:
    """Return the format's name of `dtype`.

    Raises:
        TraceError: it has none.
    """
    for name, known in DTYPES.items():
        if known is dtype:
            return name
    raise TraceError(f"a tensor is {dtype}; use one of {', '.join(DTYPES)}")
