"""The site builds without a warning: every page has its place, every link and anchor leads on."""

import os
import subprocess
import sys
from pathlib import Path

from docs.generate import ROOT


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    shown = subprocess.run(
        [str(Path(sys.executable).with_name("mkdocs")), "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert (tmp_path / "site" / "reference" / "api.html").exists()
