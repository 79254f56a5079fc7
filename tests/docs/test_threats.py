"""The page of threats names, for each line, tests that are there; and every file of attacks stands on it."""

import re

from docs.generate import ROOT

PAGE = (ROOT / "docs/explanation/threat-model.md").read_text(encoding="utf-8")
DEFENDED = PAGE.partition("## Defended")[2].partition("## Not defended")[0]
_FILE = re.compile(r"`((?:attacks|isolation|e2e)/test_\w+\.py)`")


def test_each_line_names_tests_that_are_there() -> None:
    lines = [line for line in DEFENDED.splitlines() if line.startswith("| ")][2:]
    assert len(lines) > 9
    for line in lines:
        named = _FILE.findall(line.rpartition(" | ")[2])
        assert named, line
        assert not [name for name in named if not (ROOT / "tests" / name).is_file()], line


def test_every_file_of_attacks_stands_on_the_page() -> None:
    tests = ROOT / "tests"
    there = {
        f"{path.parent.name}/{path.name}"
        for name in ("attacks", "isolation")
        for path in (tests / name).glob("test_*.py")
    }
    assert there == {name for name in _FILE.findall(PAGE) if not name.startswith("e2e/")}
