"""Looks for known plaintext in every file below some folders."""

from collections.abc import Iterable, Mapping
from pathlib import Path


def find(folders: Iterable[Path], needles: Mapping[str, bytes]) -> list[tuple[str, Path]]:
    """Return which needle stands in which file; files that vanish meanwhile are passed over."""
    found: list[tuple[str, Path]] = []
    for folder in folders:
        for path in folder.rglob("*"):
            try:
                content = path.read_bytes() if path.is_file() else b""
            except OSError:
                continue
            found += [(name, path) for name, needle in needles.items() if needle in content]
    return found
