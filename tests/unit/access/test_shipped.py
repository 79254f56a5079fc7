"""The shipped policies: found in a checkout and in an installation, and compiled once."""

from pathlib import Path

import pytest

from modelkeep_platform.access import shipped as module
from modelkeep_platform.access.shipped import OWN_SIDE, compiled, shipped


def test_an_installation_reads_its_own_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "guard.cedar").write_text("// installed")
    monkeypatch.setattr(module, "_INSTALLED", tmp_path)
    assert shipped.__wrapped__("guard.cedar") == "// installed"
    with pytest.raises(FileNotFoundError):
        shipped.__wrapped__("roles.cedar")


def test_files_are_compiled_once() -> None:
    assert compiled(OWN_SIDE) is compiled(OWN_SIDE)
