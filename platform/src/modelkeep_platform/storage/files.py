"""What the standard library leaves to its caller: making a file or a folder durable."""

import os
from pathlib import Path


def fsync(path: Path) -> None:
    """Make what was written to a file, or the names in a folder, durable; raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
