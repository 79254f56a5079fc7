"""A line of the log: one object, known fields, nothing that an exception or a library would say, nothing unescaped."""

import errno
import json
import logging
import os
import select
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from modelkeep_platform.core.errors import IntegrityError
from modelkeep_platform.telemetry import logs
from modelkeep_platform.telemetry.logs import JsonFormatter, LineWriter, TextFormatter, fields

SECRET = "s3cr3t-of-a-tenant"


def record(name: str = "modelkeep_platform.http", message: str = "request", *args: object, **more: Any) -> Any:
    made = logging.LogRecord(name, more.pop("level", logging.INFO), "file.py", 1, message, args, more.pop("exc", None))
    vars(made).update(more)
    return made


def line(made: logging.LogRecord) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(JsonFormatter().format(made))
    return found


def raised(error: BaseException, cause: BaseException | None = None) -> Any:
    try:
        raise error from cause
    except type(error):
        return sys.exc_info()


def test_a_line_has_time_level_logger_event_and_fields() -> None:
    made = record(created=1_700_000_000.25, msecs=250.0, **fields(status=200, tenant="t"))
    assert line(made) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "info",
        "logger": "modelkeep_platform.http",
        "event": "request",
        "pid": os.getpid(),
        "status": 200,
        "tenant": "t",
    }


def test_a_field_that_is_not_known_cannot_be_written() -> None:
    with pytest.raises(KeyError):
        fields(token=SECRET)


@pytest.mark.parametrize(
    ("error", "cause", "said"),
    [
        (ValueError(SECRET), None, "ValueError"),
        (IntegrityError(SECRET, code="key_missing"), KeyError(SECRET), "IntegrityError(key_missing) from KeyError"),
        (OSError(errno.ENOSPC, SECRET), None, "OSError(ENOSPC)"),
        (RuntimeError(SECRET), sqlite3.OperationalError(SECRET), "RuntimeError from OperationalError"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()], ids=["json", "text"])
def test_of_an_exception_types_codes_and_places_are_written(
    error: BaseException, cause: BaseException | None, said: str, formatter: logging.Formatter
) -> None:
    made = record(message="it failed", level=logging.ERROR, exc=raised(error, cause))
    text = formatter.format(made)
    assert SECRET not in text
    assert "\n" not in text
    assert said in text
    assert f"{__name__}:" in text
    assert __file__ not in text


def test_a_database_error_is_named_by_the_databases_code() -> None:
    database = sqlite3.connect(":memory:")
    with pytest.raises(sqlite3.OperationalError) as caught:
        database.execute("SELECT nothing FROM nowhere")
    database.close()
    info = (caught.type, caught.value, caught.tb)
    assert line(record(exc=info))["error"] == "OperationalError(SQLITE_ERROR)"


@pytest.mark.parametrize(
    ("message", "args", "said"),
    [
        ("row %s is bad", (SECRET,), "row %s is bad"),
        (f"Task exception was never retrieved\nfuture: {SECRET}", (), "Task exception was never retrieved"),
        ("", (), ""),
    ],
)
def test_of_a_library_only_the_fixed_text_is_written(message: str, args: tuple[object, ...], said: str) -> None:
    assert line(record("asyncio", message, *args))["event"] == said


def test_a_name_that_begins_like_ours_is_not_ours() -> None:
    assert line(record("modelkeep_platformer", "row %s", SECRET))["event"] == "row %s"


CONTROL = "a\n\r\t\x00\x1b[31m\x7f\x85\u2028\u202eé\U0001f600z"


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()], ids=["json", "text"])
def test_no_character_forges_a_line_or_steers_a_terminal(formatter: logging.Formatter) -> None:
    text = formatter.format(record("modelkeep_platform", CONTROL, **fields(route=CONTROL)))
    assert all(" " <= character <= "~" for character in text)


def test_text_is_readable_and_its_fields_are_quoted() -> None:
    text = TextFormatter().format(record(created=0.0, msecs=0.0, **fields(route="GET /v1/models", status=200)))
    assert text.startswith("1970-01-01T00:00:00.000Z info modelkeep_platform.http request pid=")
    assert text.endswith('route="GET /v1/models" status=200')


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


def test_lines_are_written_by_a_thread_and_all_of_them_at_the_end(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1])
    writer.setFormatter(JsonFormatter())
    for number in range(100):
        writer.emit(record(**fields(count=number)))
    writer.close()
    lines = os.read(pipe[0], 1 << 20).decode("ascii").splitlines()
    assert [json.loads(one)["count"] for one in lines] == list(range(100))


def test_lines_are_written_together_up_to_what_a_pipe_takes_whole(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several processes share one standard error: a longer write could be cut by another's lines.
    writer = LineWriter(pipe[1])
    writer.close()
    writer.setFormatter(JsonFormatter())
    for number in range(100):
        writer.emit(record(**fields(count=number)))
    written: list[bytes] = []
    real = os.write

    def writing(descriptor: int, data: bytes) -> int:
        written.append(data)
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", writing)
    writer.flush()
    assert len(written) < 20
    assert all(one.endswith(b"\n") and len(one) <= select.PIPE_BUF for one in written)
    assert [json.loads(one)["count"] for one in b"".join(written).splitlines()] == list(range(100))


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()], ids=["json", "text"])
@pytest.mark.parametrize("text", ["plain", "a\x7fb", "\u202e", "\ud800", "\x00\n", '"'], ids=ascii)
def test_what_is_said_is_the_line_of_a_record(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, formatter: logging.Formatter, text: str
) -> None:
    writer = LineWriter(pipe[1])
    writer.setFormatter(formatter)
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [writer])
    log = logging.getLogger("modelkeep_platform.http")
    monkeypatch.setattr(log, "disabled", False)
    monkeypatch.setattr(log, "level", logging.INFO)
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.25)
    logs.say(log, "request", route=text, status=200)
    log.info("request", extra=fields(route=text, status=200))
    writer.close()
    said, recorded = os.read(pipe[0], 1 << 16).decode("ascii").splitlines()
    assert said == recorded


def test_nothing_is_said_below_the_level(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("modelkeep_platform.http")
    with caplog.at_level(logging.WARNING, logger="modelkeep_platform.http"):
        logs.say(log, "request", status=200)
    assert not caplog.records
    with pytest.raises(KeyError), caplog.at_level(logging.INFO, logger="modelkeep_platform.http"):
        logs.say(log, "request", token=SECRET)


def test_a_reader_that_stands_still_holds_nobody_up_and_what_is_lost_is_counted(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1], most=50)
    writer.setFormatter(JsonFormatter())
    started = time.monotonic()
    for _ in range(20_000):  # more than a pipe holds
        writer.emit(record())
    assert time.monotonic() - started < 20
    assert writer.dropped > 10_000
    said: list[bytes] = []

    def read() -> None:
        # Ends by itself: a reader left behind would read from whatever gets the pipe's number next.
        while b"dropped" not in b"".join(said[-2:]):
            said.append(os.read(pipe[0], 1 << 16))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    writer.close()
    reader.join(timeout=10)
    found = json.loads([one for one in b"".join(said).splitlines() if b"dropped" in one][-1])
    assert found["event"] == "log lines were dropped"
    assert found["count"] > 0


def test_every_logger_of_the_process_goes_the_same_way(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    root, ours = logging.getLogger(), logging.getLogger("modelkeep_platform")
    before = (root.handlers[:], root.level, ours.level)
    hooks = (threading.excepthook, sys.excepthook, sys.unraisablehook)
    root.handlers[:] = []

    class Stderr:
        def fileno(self) -> int:
            return pipe[1]

    monkeypatch.setattr(sys, "stderr", Stderr())
    writer = logs.configure(level="info", form="json")
    try:
        logging.getLogger("some.library").warning("row %s", SECRET)
        logging.getLogger("some.library").info("not this")
        logging.getLogger("modelkeep_platform.x").info("this", extra=fields(count=1))
        dying = threading.Thread(target=lambda: 1 / 0)
        dying.start()
        dying.join()
        sys.excepthook(*raised(ValueError(SECRET)))
        writer.close()
        logging.getLogger("modelkeep_platform.x").info("late")
    finally:
        writer.close()
        root.handlers[:] = before[0]
        root.setLevel(before[1])
        ours.setLevel(before[2])
        threading.excepthook, sys.excepthook, sys.unraisablehook = hooks
        logging.captureWarnings(capture=False)
    lines = [json.loads(one) for one in os.read(pipe[0], 1 << 20).splitlines()]
    assert [(one["event"], one.get("error")) for one in lines] == [
        ("row %s", None),
        ("this", None),
        ("a thread ended with an exception", "ZeroDivisionError"),
        ("the process ended with an exception", "ValueError"),
        ("late", None),
    ]
    assert SECRET not in str(lines)
