"""The doctor finds what is wrong with an installation, says how to mend it, and changes nothing."""

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from modelkeep_platform.app.doctor import Level, examine
from modelkeep_platform.cli.main import main
from services.house import Installation


@pytest.fixture
def made(tmp_path: Path) -> Installation:
    return Installation(tmp_path).init()


def bad(made: Installation) -> list[str]:
    return [finding.what for finding in examine(made.data) if finding.level is Level.BAD]


def test_a_fresh_installation_is_well(made: Installation) -> None:
    found = examine(made.data)
    assert bad(made) == []
    assert any("nothing answers" in finding.what for finding in found)
    assert all(finding.advice for finding in found if finding.level is not Level.OK)
    assert CliRunner().invoke(main, ["doctor", "--data", str(made.data)]).exit_code == 0


def open_the_key(made: Installation) -> None:
    (made.folder / "root.key").chmod(0o644)


def lose_the_key(made: Installation) -> None:
    (made.folder / "root.key").unlink()


def exchange_the_key(made: Installation) -> None:
    (made.folder / "root.key").write_text("modelkeep-root-key-v1 " + "ab" * 32 + "\n")


def damage_the_database(made: Installation) -> None:
    path = made.data / "platform.db"
    content = bytearray(path.read_bytes())
    content[4096:8192] = b"\xff" * 4096
    path.write_bytes(content)


def age_the_database(made: Installation) -> None:
    connection = sqlite3.connect(made.data / "platform.db")
    connection.execute("UPDATE alembic_version SET version_num = '0001'")
    connection.commit()
    connection.close()


def write_from_the_future(made: Installation) -> None:
    connection = sqlite3.connect(made.data / "platform.db")
    connection.execute("UPDATE audit_entries SET created_at = 4000000000")
    if not connection.total_changes:
        values = "('a', 'b', 4000000000, 'c', x'', x'')"
        connection.execute(
            f"INSERT INTO audit_entries (id, tenant, created_at, request_id, salt, body) VALUES {values}"  # noqa: S608
        )
    connection.commit()
    connection.close()


def add_a_setting(made: Installation) -> None:
    with (made.data / "settings.toml").open("a") as file:
        file.write("colour = 1\n")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (open_the_key, "root key"),
        (lose_the_key, "root key"),
        (exchange_the_key, "another root key"),
        (damage_the_database, "database"),
        (age_the_database, "revision 0001"),
        (write_from_the_future, "clock"),
        (add_a_setting, "`colour` is not a setting"),
    ],
)
def test_what_is_wrong_is_named(made: Installation, harm: Callable[[Installation], None], said: str) -> None:
    harm(made)
    assert any(said in what for what in bad(made)), bad(made)
    shown = CliRunner().invoke(main, ["doctor", "--data", str(made.data)])
    assert shown.exit_code == 1
    assert str(made.folder / "root.key") not in shown.output or harm is open_the_key


def test_nothing_that_an_installation_makes_is_readable_by_others(tmp_path: Path) -> None:
    data = tmp_path / "data"
    command = [sys.executable, "-m", "modelkeep_platform", "init", "--data", str(data)]
    command += ["--root-key", str(tmp_path / "keys" / "root.key"), "--base-url", "https://models.example"]
    subprocess.run(command, check=True, capture_output=True, umask=0o022)
    assert (data / "platform.db").exists()
    assert not [path for path in (data, *data.rglob("*"), tmp_path / "keys") if path.stat().st_mode & 0o077]
