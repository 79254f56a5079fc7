"""What stands in the pages: fenced blocks with their language, commands, and commands within the text."""

import re
import shlex
import textwrap
from pathlib import Path
from typing import Final

import click

from docs.generate import ROOT
from modelkeep.cli.main import main as sdk_command
from modelkeep_platform.cli.main import main as platform_command

PAGES: Final = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
COMMANDS: Final[dict[str, click.Command]] = {"modelkeep": sdk_command, "modelkeep-platform": platform_command}
_FENCE: Final = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


def name_of(page: Path) -> str:
    """Return the page's path below the root."""
    return page.relative_to(ROOT).as_posix()


def fences(page: Path) -> list[tuple[str, str]]:
    """Return language and code of each block of a page; the language of a bare one is empty."""
    found = _FENCE.findall(page.read_text(encoding="utf-8"))
    return [(language, textwrap.dedent(code)) for _, language, code in found]


def blocks(page: Path, language: str) -> list[str]:
    """Return the blocks of one language."""
    return [code for named, code in fences(page) if named == language]


def typed(code: str) -> list[str]:
    """Return the lines of a console block that a reader types."""
    return [line[2:] for line in code.replace("\\\n", " ").splitlines() if line.startswith("$ ")]


def within(page: Path, *commands: str) -> list[str]:
    """Return what the text of a page, outside its blocks, names that begins with one of `commands`."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    named = "|".join(map(re.escape, commands))
    return re.findall(rf"`((?:{named}) [^`]+)`", text)


def check_command(words: list[str], where: str, *, whole: bool = True) -> None:
    """Assert that a command with these options exists.

    Args:
        words: as a shell splits them, the program first.
        where: named when it does not.
        whole: whether a group of commands is too little.
    """
    at: click.Command = COMMANDS[Path(words[0]).name]
    rest, line = words[1:], shlex.join(words)
    while rest:
        names = {option: one for one in at.params if isinstance(one, click.Option) for option in one.opts}
        word = rest.pop(0)
        if word == ">":
            break
        if word.startswith("--"):
            option = word.partition("=")[0]
            assert option in names, f"{where}: `{line}` has no option {option}"
            assert not names[option].hidden, f"{where}: `{line}` has an option that nobody is told of"
            if not names[option].is_flag and "=" not in word and rest:
                rest.pop(0)
        elif isinstance(at, click.Group):
            assert word in at.commands, f"{where}: `{line}` names no command {word}"
            at = at.commands[word]
    assert not (whole and isinstance(at, click.Group)), f"{where}: `{line}` is no whole command"
