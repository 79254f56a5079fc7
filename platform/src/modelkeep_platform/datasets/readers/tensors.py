"""The header of a safetensors file that holds a dataset; `core.safetensors` has the rules.

Nothing else is opened: pickles and archives do not begin like this.
"""

from typing import Final

from modelkeep_platform.core import safetensors
from modelkeep_platform.core.limits import MIB
from modelkeep_platform.core.safetensors import PREFIX_BYTES, SafetensorsError, TensorRange
from modelkeep_platform.datasets.spec import InvalidDatasetError

MAX_HEADER_BYTES: Final = 1 * MIB
HEAD_BYTES: Final = PREFIX_BYTES + 1


def header_end(head: bytes | bytearray, size_bytes: int) -> int:
    """Return where the tensors begin.

    Args:
        head: at least the first 9 bytes, or the whole file if it is shorter.
        size_bytes: the length of the file.

    Raises:
        InvalidDatasetError: it does not begin like a safetensors file.
    """
    end = safetensors.header_end(head, size_bytes, max_header_bytes=MAX_HEADER_BYTES)
    if end is None:
        raise InvalidDatasetError(
            "the file is not safetensors; save arrays with `safetensors.numpy.save` (pickles are never opened)"
        )
    return end


def parse_header(header: bytes, data_bytes: int) -> list[TensorRange]:
    """Return the tensors in the order of their bytes.

    Args:
        header: the JSON.
        data_bytes: how many bytes follow it.

    Raises:
        InvalidDatasetError: not such a header, or its ranges do not cover the data exactly once.
    """
    try:
        return safetensors.parse_header(header, data_bytes, max_header_bytes=MAX_HEADER_BYTES)
    except SafetensorsError as exc:
        raise InvalidDatasetError(f"the file of arrays is refused: {exc.message}") from exc


__all__ = ["HEAD_BYTES", "PREFIX_BYTES", "TensorRange", "header_end", "parse_header"]
