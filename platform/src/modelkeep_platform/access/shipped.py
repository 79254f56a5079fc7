"""The policies that ship with the platform, read from `policies/`."""

from functools import cache
from pathlib import Path
from typing import Final

_INSTALLED: Final = Path(__file__).resolve().parents[1] / "_policies"
_CHECKOUT: Final = Path(__file__).resolve().parents[4] / "policies"


@cache
def shipped(name: str) -> str:
    """Return the text of one shipped file, for example ``guard.cedar``.

    Raises:
        FileNotFoundError: the installation is incomplete.
    """
    folder = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT
    return (folder / name).read_text(encoding="utf-8")
