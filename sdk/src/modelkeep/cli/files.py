"""Files that a command is given: read whole, bounded, and refused in a sentence."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

MAX_FILE_BYTES: Final = 64 * 1024 * 1024


def read_object(path: str) -> dict[str, Any]:
    """Read a JSON file that holds an object; ``-`` is standard input.

    Raises:
        ConfigurationError: it cannot be read, is not JSON, or is something else than an object.
    """
    from modelkeep.errors import ConfigurationError

    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as exc:
        raise ConfigurationError(f"`{path}` is not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise ConfigurationError(f"`{path}` does not hold a JSON object, {{...}}")
    return value


def read_text(path: str) -> str:
    """Read a text file; ``-`` is standard input.

    Raises:
        ConfigurationError: it cannot be read, is not UTF-8, or is larger than 64 MiB.
    """
    from modelkeep.errors import ConfigurationError

    try:
        if path == "-":
            data = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
        else:
            with Path(path).open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise ConfigurationError(f"`{path}` cannot be read: {exc.strerror}") from exc
    if len(data) > MAX_FILE_BYTES:
        raise ConfigurationError(f"`{path}` is larger than {MAX_FILE_BYTES} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise ConfigurationError(f"`{path}` is not UTF-8 text") from exc
