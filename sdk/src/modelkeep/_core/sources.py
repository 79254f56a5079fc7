"""Bytes to be uploaded: in memory, or in a file that is read part by part."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final, Protocol, TypeAlias

from modelkeep.errors import ConfigurationError

_BLOCK: Final = 1024 * 1024

SourceLike: TypeAlias = bytes | bytearray | memoryview | str | os.PathLike[str]
"""Bytes, or the path of a file."""


class Source(Protocol):
    """Bytes of known length that can be read again."""

    @property
    def size(self) -> int:
        """Return the length in bytes."""

    def read(self, start: int, length: int) -> bytes:
        """Return exactly `length` bytes from `start`."""

    def sha256(self) -> str:
        """Return the digest of all bytes, in hex."""


class MemorySource:
    """Bytes in memory."""

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._data = memoryview(data).cast("B")
        self.size = len(self._data)

    def read(self, start: int, length: int) -> bytes:
        """Return exactly `length` bytes from `start`."""
        return bytes(self._data[start : start + length])

    def sha256(self) -> str:
        """Return the digest of all bytes, in hex."""
        return hashlib.sha256(self._data).hexdigest()


class FileSource:
    """A file, opened anew for each read; it must not change meanwhile, which the digests would show."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self.size = path.stat().st_size
        except OSError as exc:
            raise ConfigurationError(f"`{path}` cannot be read: {exc.strerror}") from exc

    def read(self, start: int, length: int) -> bytes:
        """Return exactly `length` bytes from `start`.

        Raises:
            ConfigurationError: the file became shorter or cannot be read.
        """
        try:
            with self._path.open("rb") as file:
                file.seek(start)
                data = file.read(length)
        except OSError as exc:
            raise ConfigurationError(f"`{self._path}` cannot be read: {exc.strerror}") from exc
        if len(data) != length:
            raise ConfigurationError(f"`{self._path}` changed while it was uploaded; upload it again")
        return data

    def sha256(self) -> str:
        """Return the digest of all bytes, in hex."""
        digest = hashlib.sha256()
        for start in range(0, self.size, _BLOCK):
            digest.update(self.read(start, min(_BLOCK, self.size - start)))
        return digest.hexdigest()


def source_of(data: SourceLike) -> Source:
    """Return `data` as a source; text is a path.

    Raises:
        ConfigurationError: it is empty, or neither bytes nor a path of a readable file.
    """
    source: Source
    if isinstance(data, bytes | bytearray | memoryview):
        source = MemorySource(data)
    elif isinstance(data, str | os.PathLike):
        source = FileSource(Path(data))
    else:
        raise ConfigurationError(f"bytes or a path can be uploaded, not a `{type(data).__name__}`")
    if source.size == 0:
        raise ConfigurationError("there is nothing to upload: it is empty")
    return source
