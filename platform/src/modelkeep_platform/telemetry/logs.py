"""Logs: one line an event on standard error, as a JSON object or as text; never inputs, tokens or secrets.

What can get into a line is bounded by its form. An event is a text of our own sources; beside it stand only the fields
that `FIELDS` names, each an id, a template, a code or a number. Of an exception only the types, codes and places are
written: messages of foreign exceptions hold what was worked on (a database's hold the row). Of other libraries' records
only the fixed text is written, without what they would fill in. Everything outside ASCII and every control character is
escaped, so that no line can be forged and no terminal steered.

Lines are written by a thread of their own: a reader that stands still does not hold up requests. What does not fit the
queue meanwhile is dropped and counted (`lines_dropped`); a process that is killed loses the lines of its last 50 ms.
"""

import atexit
import errno
import json
import logging
import os
import select
import sys
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import MappingProxyType, TracebackType
from typing import Any, Final

import msgspec

from modelkeep_platform.core.errors import ModelkeepError

FORMATS: Final = ("json", "text")
LEVELS: Final = ("debug", "info", "warning", "error")
FIELDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "request_id": "the request, as in its answer's `x-request-id` and in the audit log",
        "tenant": "the id of the caller's tenant; empty for a stranger, `platform` for an operator",
        "principal": "the id of the member, service account or operator that called",
        "action": "the action that decides the route, as in policies",
        "route": "method and template of the path; `unmatched` when there is no such path",
        "status": "the status of the answer; 0 when the connection broke before there was one",
        "duration_ms": "from the head of the request to the last byte of the answer, in milliseconds",
        "code": "the stable code of the error (docs/reference/errors.md)",
        "reason": "why the server is not ready, or what was refused",
        "count": "how many, of what the event says",
        "error": "types of the exception and of its causes, with their codes",
        "trace": "where it was raised: module, line, function, the innermost last",
        "pid": "the server process",
    }
)
"""Every field that a line can have beside time, level, logger and event, and what it means."""

_OURS: Final = "modelkeep_platform"
_MAX_TEXT: Final = 400
_MAX_FOREIGN: Final = 120
_MAX_FRAMES: Final = 16
_QUEUED: Final = 20_000
_PAUSE_S: Final = 0.05
_WHOLE_BYTES: Final = select.PIPE_BUF
_encode_plain: Final = msgspec.json.Encoder().encode
_encode: Final = json.JSONEncoder(separators=(",", ":"), default=str).encode


def fields(**values: str | float) -> dict[str, Any]:
    """Return what to pass as `extra` to a logger's method.

    Raises:
        KeyError: a field is not one of `FIELDS`.
    """
    for name in values:
        FIELDS[name]
    return {"fields": values}


def say(log: logging.Logger, event: str, **values: str | float) -> None:
    """Say an event of our own: the line of `log.info(event, extra=fields(...))` at a third of its cost.

    A record of `logging` is made for who reads the caller's file, thread and line, which no line of ours has.

    Raises:
        KeyError: a field is not one of `FIELDS`.
    """
    if not log.isEnabledFor(logging.INFO):
        return
    writers = [one for one in logging.getLogger().handlers if isinstance(one, LineWriter)]
    if not writers:
        log.info(event, extra=fields(**values))
        return
    found = _head(time.time(), "info", log.name, event, os.getpid()) | fields(**values)["fields"]
    for writer in writers:
        writer.say(found)


def _head(at_s: float, level: str, logger: str, event: str, pid: int | None) -> dict[str, Any]:
    second = int(at_s)
    shown = f"{_second(second)}.{int((at_s - second) * 1000):03d}Z"
    return {"time": shown, "level": level, "logger": logger, "event": event, "pid": pid}


class _Formatter(logging.Formatter, ABC):
    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        return self.line(self.values(record))

    @abstractmethod
    def line(self, found: dict[str, Any]) -> str:
        """Return the line of these values."""

    def values(self, record: logging.LogRecord) -> dict[str, Any]:
        ours = record.name == _OURS or record.name.startswith(f"{_OURS}.")
        event = record.getMessage()[:_MAX_TEXT] if ours else _fixed(record)
        found = _head(record.created, record.levelname.lower(), record.name, event, record.process)
        found |= getattr(record, "fields", {})
        exc = record.exc_info[1] if record.exc_info else None
        if exc is not None:
            found["error"] = " from ".join(_named(one) for one in _chain(exc))
            found["trace"] = list(_places(exc))
        return found


class JsonFormatter(_Formatter):
    """One JSON object."""

    def line(self, found: dict[str, Any]) -> str:
        """Return the line; what is not plain ASCII is escaped by the slower of two encoders."""
        try:
            text = _encode_plain(found).decode()
        except (TypeError, UnicodeEncodeError):  # not a JSON value, or half of a surrogate pair
            text = ""
        if text.isascii() and text and "\x7f" not in text:
            return text
        return _encode(found).replace("\x7f", "\\u007f")


class TextFormatter(_Formatter):
    """Time, level, logger, event, and the fields as ``name=value``; for people at a terminal."""

    def line(self, found: dict[str, Any]) -> str:
        """Return the line."""
        head = " ".join(_plain(found.pop(name)) for name in ("time", "level", "logger", "event"))
        rest = (f"{name}={json.dumps(value, default=str)}" for name, value in found.items())
        return " ".join([head, *rest]).replace("\x7f", "\\u007f")


_JSON: Final = JsonFormatter()


class LineWriter(logging.Handler):
    """Writes lines to a file descriptor from its own thread.

    Args:
        descriptor: where to; not closed.
        most: how many lines may wait.
    """

    def __init__(self, descriptor: int, *, most: int = _QUEUED) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._most = most
        self._lines: deque[str] = deque()
        self._stop = threading.Event()
        self._writing = threading.Lock()
        self._told = 0
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="log-lines", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record's line; does no I/O."""
        if self._takes():
            self._lines.append(self.format(record))

    def say(self, found: dict[str, Any]) -> None:
        """Queue the line of these values; does no I/O."""
        if self._takes():
            form = self.formatter
            self._lines.append((form if isinstance(form, _Formatter) else _JSON).line(found))

    def _takes(self) -> bool:
        if len(self._lines) < self._most:
            return True
        self.dropped += 1
        return False

    def flush(self) -> None:
        """Write what is queued."""
        with self._writing:
            while self._lines:
                self._write(self._taken())
            if self.dropped > self._told:
                lost, self._told = self.dropped - self._told, self.dropped
                about = {
                    "name": __name__,
                    "levelname": "ERROR",
                    "msg": "log lines were dropped",
                    "fields": {"count": lost},
                }
                self._write(self.format(logging.makeLogRecord(about)))

    def close(self) -> None:
        """Write what is queued and stop."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2)
        self.flush()  # what was said since
        super().close()

    def _run(self) -> None:
        while not self._stop.wait(_PAUSE_S):
            self.flush()
        self.flush()

    def _taken(self) -> str:
        """Take lines from the queue: as many as a pipe takes whole, at least one."""
        lines = [self._lines.popleft()]
        size = len(lines[0]) + 1
        while self._lines and (size := size + len(self._lines[0]) + 1) <= _WHOLE_BYTES:
            lines.append(self._lines.popleft())
        return "\n".join(lines)

    def _write(self, lines: str) -> None:
        # Several processes share one standard error, and a short write of a pipe is whole. Each call gives the
        # interpreter away and waits for its turn again: many short ones slow every request down.
        data = f"{lines}\n".encode("ascii", "backslashreplace")
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except OSError:
                return  # nobody reads any more: there is nowhere to say so


def configure(*, level: str = "info", form: str = "json") -> LineWriter:
    """Send every log of this process to standard error; return what writes it.

    Args:
        level: one of `LEVELS`; other libraries' logs are taken from `warning` on.
        form: one of `FORMATS`.
    """
    writer = LineWriter(sys.stderr.fileno())
    writer.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(writer)
    root.setLevel(logging.WARNING)
    logging.getLogger(_OURS).setLevel(level.upper())
    logging.captureWarnings(capture=True)
    # What Python itself would print has messages in it, and is no line of ours.
    threading.excepthook = _thread_died
    sys.excepthook = _process_died
    sys.unraisablehook = _unraisable
    atexit.register(writer.close)
    return writer


@lru_cache(maxsize=2)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _thread_died(args: threading.ExceptHookArgs) -> None:
    logging.getLogger(__name__).error("a thread ended with an exception", exc_info=args.exc_value)


def _process_died(kind: type[BaseException], exc: BaseException, places: TracebackType | None) -> None:
    del kind, places
    logging.getLogger(__name__).error("the process ended with an exception", exc_info=exc)


def _unraisable(args: "sys.UnraisableHookArgs") -> None:
    logging.getLogger(__name__).error("an exception had nowhere to go", exc_info=args.exc_value)


def _fixed(record: logging.LogRecord) -> str:
    # A library's template may have been filled in before it was logged: only its first line is a text of its own.
    lines = str(record.msg).splitlines() or [""]
    return lines[0][:_MAX_FOREIGN]


def _chain(exc: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = exc
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _named(exc: BaseException) -> str:
    if isinstance(exc, ModelkeepError):
        return f"{type(exc).__name__}({exc.error_code})"
    if isinstance(exc, OSError) and exc.errno is not None:
        return f"{type(exc).__name__}({errno.errorcode.get(exc.errno, exc.errno)})"
    code = getattr(exc, "sqlite_errorname", None)
    return f"{type(exc).__name__}({code})" if isinstance(code, str) else type(exc).__name__


def _places(exc: BaseException) -> Iterator[str]:
    frames = list(traceback.walk_tb(exc.__traceback__))[-_MAX_FRAMES:]
    for frame, line in frames:
        yield f"{frame.f_globals.get('__name__', '?')}:{line} {frame.f_code.co_name}"


def _plain(text: str) -> str:
    return json.dumps(text)[1:-1]
