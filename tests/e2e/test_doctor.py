"""The doctor finds what is wrong with an installation, says how to mend it, and changes nothing."""

import ctypes
import json
import os
import resource
import shutil
import sqlite3
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy.exc import DBAPIError

from modelkeep_platform.app import settings as settings_file
from modelkeep_platform.app.doctor import Finding, Level, contents, examine, owners, surroundings
from modelkeep_platform.app.doctor.findings import Check
from modelkeep_platform.app.doctor.unfinished import RESTORE, unfinished
from modelkeep_platform.cli.main import main
from modelkeep_platform.storage.blobs import StorageError
from modelkeep_platform.workers.limits import Limits
from modelkeep_platform.workers.trial import PROMISES
from services.certificates import certificate
from services.house import Installation, ServerThread


@pytest.fixture
def made(tmp_path: Path) -> Installation:
    return Installation(tmp_path / "the operator's").init()


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


def lose_the_database(made: Installation) -> None:
    (made.data / "platform.db").unlink()


def exchange_the_database(made: Installation) -> None:
    (made.data / "platform.db").write_bytes(b"this was a database once, before the wrong file was put here\n" * 100)


def empty_the_database(made: Installation) -> None:
    (made.data / "platform.db").write_bytes(b"")


def put_a_folder_there(made: Installation) -> None:
    (made.data / "platform.db").unlink()
    (made.data / "platform.db").mkdir()


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
    ("harm", "said", "advice"),
    [
        (open_the_key, "root key: the root key file is open to others", "give it to the server's user and mode 0600"),
        (lose_the_key, "root key: the root key file cannot be opened", "restore it from its offline copy"),
        (exchange_the_key, "under another root key", "put back the root key that this installation was made with"),
        (damage_the_database, "the database is damaged", RESTORE),
        (lose_the_database, "the database is missing", "platform.db' back, with the files beside it, or " + RESTORE),
        (exchange_the_database, "platform.db is not a database", "platform.db' away, and " + RESTORE),
        (put_a_folder_there, "platform.db is not a file", "platform.db' away, and " + RESTORE),
        (empty_the_database, "the database holds no installation", RESTORE),
        (age_the_database, "revision 0001", "stop the server and run `modelkeep-platform migrate`"),
        (write_from_the_future, "the clock stands", "set the clock"),
        (add_a_setting, "`colour` is not a setting", "see docs/reference/settings.md"),
    ],
)
def test_what_is_wrong_is_named_once_and_said_how_to_mend(
    made: Installation, harm: Callable[[Installation], None], said: str, advice: str
) -> None:
    harm(made)
    before = {path: path.stat().st_size for path in made.data.iterdir()}
    (one,) = (found for found in examine(made.data) if said in found.what)
    assert one.level is Level.BAD
    assert advice in one.advice
    shown = CliRunner().invoke(main, ["doctor", "--data", str(made.data)])
    assert shown.exit_code == 1
    assert f"      {one.advice}\n" in shown.output
    if harm in (lose_the_database, exchange_the_database, put_a_folder_there, empty_the_database):
        assert {path: path.stat().st_size for path in made.data.iterdir()} == before
    assert str(made.folder / "root.key") not in shown.output or harm is open_the_key


def test_a_database_that_another_process_holds_is_named(made: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "_WAIT_S", 0.05)
    with closing(sqlite3.connect(made.data / "platform.db", isolation_level=None)) as holder:
        holder.execute("PRAGMA locking_mode = EXCLUSIVE")
        holder.execute("UPDATE epoch SET number = number + 1")
        one = finding(made, "another process holds the database for itself")
        assert one.level is Level.BAD
        assert "platform.db'` names the processes that have it open" in one.advice
    assert bad(made) == []


def sqlite_error(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("said by SQLite")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("raised", "said", "advice"),
    [
        (sqlite_error(sqlite3.SQLITE_CANTOPEN), "the database cannot be opened", "run as the user who owns "),
        (sqlite_error(sqlite3.SQLITE_IOERR_READ), "clock: said by SQLite", "mend what else is said here first"),
        (DBAPIError("", None, sqlite_error(sqlite3.SQLITE_BUSY)), "another process holds the database", "fuser -v "),
        (StorageError("the database is busy; try again", code="database_busy"), "another process holds", "fuser -v "),
        (StorageError("the disk is full", code="disk_full"), "clock: the disk is full", "mend what else is said"),
        (PermissionError("not yours"), "clock: not yours", "mend what else is said here first"),
    ],
)
def test_what_keeps_a_check_from_its_end_is_said(made: Installation, raised: Exception, said: str, advice: str) -> None:
    one = unfinished("clock", raised, made.data)
    assert one.level is Level.BAD
    assert said in one.what
    assert advice in one.advice


def test_nothing_that_an_installation_makes_is_readable_by_others(tmp_path: Path) -> None:
    data = tmp_path / "data"
    command = [sys.executable, "-m", "modelkeep_platform", "init", "--data", str(data)]
    command += ["--root-key", str(tmp_path / "keys" / "root.key"), "--base-url", "https://models.example"]
    subprocess.run(command, check=True, capture_output=True, umask=0o022)
    assert (data / "platform.db").exists()
    assert not [path for path in (data, *data.rglob("*"), tmp_path / "keys") if path.stat().st_mode & 0o077]


def said_by(made: Installation, said: str, *checks: Check) -> list[Finding]:
    """Return what says so, of all checks or of those that are named."""
    settings = settings_file.load(made.data)
    found = [one for check in checks for one in check(made.data, settings)] if checks else examine(made.data)
    return [one for one in found if said in one.what]


def finding(made: Installation, said: str, *checks: Check) -> Finding:
    (one,) = said_by(made, said, *checks)
    assert one.advice or one.level is Level.OK
    return one


def change(made: Installation, **settings: Any) -> None:
    settings_file.write(made.data, replace(settings_file.load(made.data), **settings))


# --- who else may read or write ---------------------------------------------------------------------


OWNERS = (owners.permissions, owners.blobs)
PLACES: dict[str, Callable[[Installation], Path]] = {
    "data": lambda made: made.data,
    "settings.toml": lambda made: made.data / "settings.toml",
    "platform.db": lambda made: made.data / "platform.db",
    "platform.db-wal": lambda made: made.data / "platform.db-wal",
    "platform.db-shm": lambda made: made.data / "platform.db-shm",
    "the root key": lambda made: made.folder / "root.key",
    "blobs": lambda made: made.data / "blobs",
}


@pytest.fixture
def in_use(made: Installation) -> Iterator[Installation]:
    """An installation whose database is open, and has its files beside it."""
    with closing(sqlite3.connect(made.data / "platform.db", isolation_level=None)) as connection:
        connection.execute("UPDATE epoch SET number = number + 1")
        yield made


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("bits", [0o002, 0o020, 0o004, 0o040], ids=oct)
def test_what_others_may_write_or_read_is_named_and_mended(in_use: Installation, name: str, bits: int) -> None:
    path = PLACES[name](in_use)
    path.chmod(path.stat().st_mode | bits)
    verb = "write" if bits & 0o022 else "enter" if path.is_dir() else "read"
    one = finding(in_use, f"others may {verb} {name}", *OWNERS)
    assert one.level is (Level.BAD if bits & 0o022 or name == "the root key" else Level.WARN)
    assert one.advice.startswith("chmod ")
    subprocess.run(["sh", "-c", one.advice], check=True)
    assert not said_by(in_use, "others may", *OWNERS)


@pytest.mark.parametrize(("mode", "said", "level"), [(0o666, "write", Level.BAD), (0o644, "read", Level.WARN)])
def test_files_among_the_blobs_count(made: Installation, mode: int, said: str, level: Level) -> None:
    folder = made.data / "blobs" / "ten_a" / "it's"
    folder.mkdir(parents=True, mode=0o700)
    folder.parent.chmod(0o700)
    (folder / "1").touch()
    (folder / "1").chmod(mode)
    one = finding(made, f"others may {said} 1 files and folders in blobs", *OWNERS)
    assert one.level is level
    subprocess.run(["sh", "-c", one.advice], check=True)
    assert not said_by(made, "others may", *OWNERS)


def test_blobs_may_be_missing_only_while_nothing_is_stored(made: Installation) -> None:
    shutil.rmtree(made.data / "blobs")
    assert finding(made, "blobs").level is Level.OK
    with closing(sqlite3.connect(made.data / "platform.db")) as connection, connection:
        connection.execute(
            "INSERT INTO datasets (tenant_id, id, name, state, spec, upload_id, created_at, created_by) "
            "VALUES ('t', 'd', 'n', 'ready', '{}', 'u', 1, 'p')"
        )
    assert finding(made, "the folder blobs is missing, and 1 ").level is Level.BAD


def test_what_belongs_to_another_user_is_named(made: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    (made.data / "blobs" / "x").touch()
    real = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: real + 1)
    named = [one.what for one in said_by(made, "another user", *OWNERS)]
    for name in ("data", "settings.toml", "platform.db", "the root key", "blobs"):
        assert f"{name} belongs to another user" in named
    assert "1 files and folders in blobs belong to another user" in named


@pytest.mark.parametrize("name", ["keys", "."])
def test_a_folder_in_which_everybody_may_replace_things_is_named(made: Installation, name: str) -> None:
    folder = made.folder / name
    folder.mkdir(exist_ok=True)
    (made.folder / "root.key").rename(folder / "root.key")
    change(made, root_key=str(folder / "root.key"))
    folder.chmod(0o777)
    one = finding(made, "everybody may replace", *OWNERS)
    assert one.level is Level.BAD
    folder.chmod(0o1777)  # as /tmp is: who may write it may not replace what others have there
    assert not said_by(made, "everybody may replace", *OWNERS)
    folder.chmod(0o777)
    subprocess.run(["sh", "-c", one.advice], check=True)
    assert not said_by(made, "everybody may replace", *OWNERS)


def test_root_is_warned(made: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert finding(made, "runs as root", *OWNERS).level is Level.WARN
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert not said_by(made, "runs as root", *OWNERS)


# --- the machine ------------------------------------------------------------------------------------


def test_a_disk_that_fills_is_named(made: Installation) -> None:
    free_mib = shutil.disk_usage(made.data).free // 2**20
    change(made, disk_reserve_mib=free_mib // 2)
    assert finding(made, "MiB are free", surroundings.disk).level is Level.WARN
    change(made, disk_reserve_mib=free_mib * 2)
    assert finding(made, "MiB are free", surroundings.disk).level is Level.BAD


def test_too_few_files_are_named(made: Installation) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
        assert finding(made, "only 1024 files", surroundings.machine).level is Level.WARN
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
        assert finding(made, "files may be open", surroundings.machine).level is Level.OK
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_worker_that_may_take_more_than_there_is_is_named(made: Installation) -> None:
    change(made, worker_memory_mib=2**30)
    assert finding(made, "more memory than this machine has", surroundings.machine).level is Level.WARN


def test_an_unconfined_process_breaks_every_promise() -> None:
    # Otherwise the trial would find that a promise is kept whatever the kernel does.
    script = (
        "import json, resource; from modelkeep_platform.workers.trial import broken, Limits\n"
        "_, most = resource.getrlimit(resource.RLIMIT_CORE); resource.setrlimit(resource.RLIMIT_CORE, (most, most))\n"
        "print(json.dumps([most, *broken(Limits(memory_bytes=2**26, files=8))]))"
    )
    told = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    most, *broken = json.loads(told.stdout)
    dumping = "it would dump its memory"
    assert set(broken) | ({dumping} if most == 0 else set()) == set(PROMISES)


def test_a_confined_process_keeps_every_promise() -> None:
    limits = json.dumps({"memory_bytes": Limits().memory_bytes})
    command = [sys.executable, "-I", "-B", "-m", "modelkeep_platform.workers.trial", limits]
    assert json.loads(subprocess.run(command, check=True, capture_output=True).stdout) == []


@pytest.mark.parametrize(
    ("trial", "said"),
    [
        ("print('[\"it may write files\"]')", "a worker cannot be confined here: it may write files"),
        ("raise SystemExit(1)", "a worker cannot be confined here: the trial ended without an answer"),
    ],
)
def test_a_kernel_that_does_not_confine_is_named(
    made: Installation, monkeypatch: pytest.MonkeyPatch, trial: str, said: str
) -> None:
    assert finding(made, "the kernel confines a worker").level is Level.OK
    run = subprocess.run

    def instead(command: list[str], **options: Any) -> Any:
        asked = "modelkeep_platform.workers.trial" in command
        return run([sys.executable, "-c", trial] if asked else command, **options)

    monkeypatch.setattr(subprocess, "run", instead)
    assert finding(made, said).level is Level.BAD
    assert not said_by(made, "the kernel confines a worker")


def test_elsewhere_than_on_linux_is_for_trials(made: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert finding(made, "this is not Linux", surroundings.kernel).level is Level.WARN


def test_a_heartbeat_from_the_future_is_named(made: Installation) -> None:
    with closing(sqlite3.connect(made.data / "platform.db")) as connection, connection:
        beat = (int(time.time()) + 3600,)
        connection.execute("INSERT INTO server_processes (id, started_at, seen_at, epoch) VALUES ('p', 1, ?, 1)", beat)
    assert finding(made, "s before the newest log entry or heartbeat", surroundings.clock).level is Level.BAD


@pytest.mark.parametrize(
    ("status", "contained", "said", "level"),
    [
        (0, False, "the clock is synchronised", Level.OK),
        (0, True, "the clock is synchronised", Level.OK),
        (0x40, False, "nothing synchronises the clock", Level.WARN),
        (0x41, False, "nothing synchronises the clock", Level.WARN),
        (0x40, True, "unknown", Level.OK),
        (None, False, "unknown", Level.OK),
    ],
)
def test_a_clock_that_nothing_keeps_is_named(
    made: Installation,
    monkeypatch: pytest.MonkeyPatch,
    status: int | None,
    contained: bool,
    said: str,
    level: Level,
) -> None:
    monkeypatch.setattr(surroundings, "_clock_status", lambda: status)
    monkeypatch.setattr(surroundings, "_in_container", lambda: contained)
    assert finding(made, "synchronise", surroundings.clock) == finding(made, said, surroundings.clock)
    assert finding(made, said, surroundings.clock).level is level


def test_the_kernel_is_asked_for_the_clock_without_setting_it() -> None:
    told = (ctypes.c_char * 1024)()  # all zero: `modes` says that nothing is set
    known = ctypes.CDLL(None).adjtimex(ctypes.byref(told)) >= 0
    assert surroundings._clock_status() == (int.from_bytes(bytes(told)[40:44], sys.byteorder) if known else None)
    filtered = "import ctypes, os; os.kill(os.getpid(), 31)"  # as a filter of system calls ends a process: SIGSYS
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(surroundings, "_READ_CLOCK", filtered)
        assert surroundings._clock_status() is None


def test_a_container_is_known_by_its_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(surroundings, "_CONTAINERS", (tmp_path / "mark",))
    assert not surroundings._in_container()
    (tmp_path / "mark").touch()
    assert surroundings._in_container()


# --- who answers ------------------------------------------------------------------------------------


@contextmanager
def served(made: Installation) -> Iterator[ServerThread]:
    server = ServerThread(made)
    try:
        yield server
    finally:
        server.close()


@contextmanager
def answering(
    made: Installation, answers: dict[str, Any], *, late_s: float = 0, tls: ssl.SSLContext | None = None
) -> Iterator[None]:
    """Answer at the installation's address as something else than its server."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answers.get(self.path)
            body = json.dumps(found).encode()
            self.send_response(404 if found is None else 200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def date_time_string(self, timestamp: float | None = None) -> str:
            return formatdate(time.time() + late_s, usegmt=True)

        def log_message(self, *_args: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", int(made.url.rpartition(":")[2])), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_own_server_is_known_also_after_a_rotation(made: Installation) -> None:
    known = "answers as this platform, and its issuer's keys are this one's"
    with served(made):
        assert finding(made, known).level is Level.OK
        with made.operator() as operator:
            operator.issuer.rotate_key()
        assert finding(made, known).level is Level.OK
        assert bad(made) == []
        assert not said_by(made, "the clock stands")


def test_another_installation_at_the_address_is_known_by_its_keys(made: Installation, tmp_path: Path) -> None:
    other = Installation(tmp_path / "other", url=made.url).init()
    with served(other):
        assert finding(made, "another platform answers").level is Level.BAD  # ours has no keys yet
        assert "issuer-keys" not in names_of_secrets(made)
    with served(made):
        assert finding(made, "answers as this platform").level is Level.OK
    with served(other):
        assert "keys are not this one's" in finding(made, "another platform answers").what


def names_of_secrets(made: Installation) -> set[str]:
    with closing(sqlite3.connect(made.data / "platform.db")) as connection:
        return {row[0] for row in connection.execute("SELECT name FROM platform_secrets")}


def test_a_copy_from_before_a_rotation_is_another_platform(made: Installation, tmp_path: Path) -> None:
    with served(made):
        assert finding(made, "answers as this platform").level is Level.OK
    shutil.copytree(made.data, tmp_path / "copy")
    with served(made), made.operator() as operator:
        operator.issuer.rotate_key()
        old = [one for one in examine(tmp_path / "copy") if "another platform answers" in one.what]
        assert [one.level for one in old] == [Level.BAD]


def test_an_address_of_another_installation_is_named(made: Installation) -> None:
    with served(made):
        change(made, base_url=made.url.replace("127.0.0.1", "localhost"))
        assert finding(made, "another platform answers").level is Level.BAD


METADATA = "/.well-known/oauth-protected-resource"
DISCOVERY = "/issuer/.well-known/openid-configuration"


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({}, "answers 404"),
        ({METADATA: {"resource": "{url}"}}, "the issuer {url}/issuer answers 404"),
        ({METADATA: ["{url}"]}, "another platform answers"),
        (
            {METADATA: {"resource": "{url}"}, DISCOVERY: {"issuer": "https://a.example/realms/x"}, "/issuer/jwks": {}},
            "is another issuer",
        ),
        (
            {
                METADATA: {"resource": "{url}"},
                DISCOVERY: {"issuer": "{url}/issuer", "jwks_uri": "{url}/issuer/jwks"},
                "/issuer/jwks": {"keys": []},
            },
            "keys are not this one's",
        ),
    ],
    ids=["nothing known", "no issuer", "no metadata", "another issuer", "no keys"],
)
def test_something_else_at_the_address_is_named(made: Installation, answers: dict[str, Any], said: str) -> None:
    with answering(made, json.loads(json.dumps(answers).replace("{url}", made.url))):
        assert finding(made, said.replace("{url}", made.url)).level is Level.BAD


@pytest.mark.parametrize(("late_s", "said"), [(3600, "s behind the one of"), (-3600, "s ahead of the one of")])
def test_a_proxy_of_another_time_is_named(made: Installation, late_s: float, said: str) -> None:
    with answering(made, {METADATA: {"resource": made.url}}, late_s=late_s):
        assert finding(made, said).level is Level.WARN


def test_a_certificate_that_does_not_verify_is_named(made: Installation, tmp_path: Path) -> None:
    chain, key = certificate(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(chain, key)
    change(made, base_url=made.url.replace("http:", "https:"))
    with answering(made, {}, tls=tls):
        assert finding(made, "does not verify").level is Level.BAD
