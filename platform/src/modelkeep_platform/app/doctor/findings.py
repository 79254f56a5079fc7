"""What the doctor says of one thing it looked at."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from modelkeep_platform.app.settings import Settings


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARN = "warn"
    BAD = "bad"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at, and what to do about it when it is not well."""

    level: Level
    what: str
    advice: str = ""


Check = Callable[[Path, Settings], Iterator[Finding]]
"""Looks at one side of the installation in a data folder."""
