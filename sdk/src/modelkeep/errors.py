"""Everything the SDK raises, by whose fault it is, and the one warning it gives.

    ModelkeepError
    ├── ConfigurationError          an argument, setting or file on this machine
    │   ├── StateError              the SDK's own files: wrong permissions, unreadable, locked
    │   └── TraceError              a module that has no description as a graph; the layer or line is named
    ├── ConnectionFailedError       no answer; `sent` says whether the server may have acted
    │   └── TimeoutError            no answer in time
    ├── ProtocolError               an answer that breaks the protocol: redirect, size, type, JSON, another object
    ├── UntrustedServerError        an answer that would send a secret or a token elsewhere
    ├── AuditError                  the log does not verify; do not continue before you know why
    │   ├── CheckpointError         a checkpoint is malformed, or not signed by the log's key
    │   ├── KeyChangedError         the log's name or key is another than the one pinned
    │   ├── ProofError              a proof does not show what it claims
    │   ├── RollbackError           the log is shorter than the checkpoint kept
    │   └── ForkError               the log does not contain the checkpoint kept
    ├── JobFailedError              a job that was waited for failed or was cancelled
    ├── UploadInterruptedError      an upload stopped half-way; `upload_id` resumes it
    └── APIError                    the server refused or failed; `code`, `request_id`, `status`, `details`
        ├── AuthenticationError     401, or the login was refused: log in again
        ├── ForbiddenError          403; `reasons` and `policies` say why
        ├── NotFoundError           404: it does not exist, or you may not see it
        ├── ConflictError           409: a name is taken, a state does not allow it
        ├── BudgetExceededError     409: `largest_epsilon` still fits; nothing was spent
        ├── InvalidRequestError     400, 405, 413, 415, 422: the request itself is wrong
        ├── RateLimitedError        429: `retry_after_s`
        └── ServerError             5xx, 408: the platform could not; try again later

`UnacknowledgedWarning` is no error: the change it speaks of has happened.

Texts that came from a server are stripped of control characters, so that a traceback cannot steer a terminal.
"""

from __future__ import annotations

import builtins
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from modelkeep.types import Job

_MAX_TEXT: Final = 2000
_UNSAFE: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})


def printable(text: str, *, limit: int = _MAX_TEXT) -> str:
    """Return `text` without control, format and bidirectional characters, at most `limit` characters long.

    Line feeds and tabs become spaces: a server's text can neither move the cursor nor fake another line.
    """
    clean = "".join(
        " " if character in "\n\t" else character
        for character in text[: 2 * limit]
        if character in "\n\t" or unicodedata.category(character) not in _UNSAFE
    )
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


class UnacknowledgedWarning(UserWarning):
    """A change has happened, but some server processes had not seen it when the call returned.

    Each of them refuses every call until it has seen the change, or is dead: nothing is decided by the old state.

    Attributes:
        processes: their names.
        request_id: the server's name of the call; the audit log and the operator know it.
    """

    def __init__(self, processes: Sequence[str], *, request_id: str = "") -> None:
        self.processes = tuple(printable(name, limit=80) for name in processes)
        self.request_id = printable(request_id, limit=80)
        text = (
            f"the change holds, but had not reached {', '.join(self.processes)} when the call returned; these server "
            "processes refuse every call until they have seen it"
        )
        super().__init__(f"{text} (request {self.request_id})" if self.request_id else text)


class ModelkeepError(Exception):
    """Base of every error the SDK raises on purpose."""

    code: str = "error"

    def __init__(self, message: str) -> None:
        self.message = printable(message)
        super().__init__(self.message)


class ConfigurationError(ModelkeepError):
    """An argument, a setting or a file on this machine is wrong; nothing was sent."""

    code = "configuration"


class StateError(ConfigurationError):
    """The SDK's own files cannot be used: others may read them, or they are broken or locked."""

    code = "state"


class TraceError(ConfigurationError):
    """A module cannot be described as a graph, or a graph is not what the format says."""

    code = "trace"


class ConnectionFailedError(ModelkeepError):
    """There was no answer.

    Attributes:
        sent: whether the request may have reached the server, which may then have acted on it.
    """

    code = "connection_failed"

    def __init__(self, message: str, *, sent: bool = True) -> None:
        super().__init__(message)
        self.sent = sent


class TimeoutError(ConnectionFailedError, builtins.TimeoutError):  # noqa: A001 -- it is one, and is caught as one
    """There was no answer in time."""

    code = "timeout"


class ProtocolError(ModelkeepError):
    """An answer breaks the protocol: a redirect, too many bytes, not strict JSON, another object than asked for."""

    code = "protocol"


class UntrustedServerError(ModelkeepError):
    """What the server says would send a secret or a token somewhere else; nothing was sent."""

    code = "untrusted_server"


class AuditError(ModelkeepError):
    """The audit log does not verify. Keep the state file, ask the operator, and do not rely on the log meanwhile."""

    code = "audit"


class CheckpointError(AuditError):
    """A checkpoint is malformed, of another log, or not signed by the log's key."""

    code = "audit_checkpoint"


class KeyChangedError(AuditError):
    """The log has another name or key than the one this machine pinned."""

    code = "audit_key_changed"


class ProofError(AuditError):
    """A proof does not show what it claims."""

    code = "audit_proof"


class RollbackError(AuditError):
    """The log is shorter than the checkpoint kept: entries were taken away, or an old backup was restored."""

    code = "audit_rollback"


class ForkError(AuditError):
    """The log does not contain the checkpoint kept: history was rewritten, or differs between readers."""

    code = "audit_fork"


class JobFailedError(ModelkeepError):
    """A job that was waited for did not succeed.

    Attributes:
        job: the job as it ended; `job.error` has the server's code and message.
    """

    code = "job_failed"

    def __init__(self, message: str, *, job: Job) -> None:
        super().__init__(message)
        self.job = job


class UploadInterruptedError(ModelkeepError):
    """An upload stopped half-way; what arrived is kept for a day.

    Attributes:
        upload_id: pass it to `client.uploads.resume` with the same bytes.
    """

    code = "upload_interrupted"

    def __init__(self, message: str, *, upload_id: str) -> None:
        super().__init__(message)
        self.upload_id = printable(upload_id)


class APIError(ModelkeepError):
    """The server refused the call or failed.

    Attributes:
        code: stable; act on it.
        message: for people; may change.
        request_id: the server's name of the call; the audit log and the operator know it.
        status: the HTTP status.
        details: facts a program may act on.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        status: int,
        request_id: str = "",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = printable(code, limit=80)
        self.status = status
        self.request_id = printable(request_id, limit=80)
        self.details: dict[str, Any] = dict(details or {})

    def __str__(self) -> str:
        """Return message, code and request id in one line."""
        known = f"{self.code}, request {self.request_id}" if self.request_id else self.code
        return f"{self.message} ({known})"


class AuthenticationError(APIError):
    """There is no login, or it is over or refused: log in again."""


class ForbiddenError(APIError):
    """The caller is known and policy denies the call.

    Attributes:
        reasons: why, in the server's words.
        policies: the ids of the policies of your own tenant that decided; none when the owner's policies did.
    """

    @property
    def reasons(self) -> tuple[str, ...]:
        """Return why, in the server's words; the message where the server gives no list."""
        return _texts(self.details.get("reasons")) or (self.message,)

    @property
    def policies(self) -> tuple[str, ...]:
        """Return the ids of the policies of your own tenant that decided; none when the owner's policies did."""
        return _texts(self.details.get("policies"))


class NotFoundError(APIError):
    """There is no such object, or the caller may not see it; which of the two is not said."""


class ConflictError(APIError):
    """The state does not allow it: a name is taken, an upload is incomplete."""


class BudgetExceededError(APIError):
    """The dataset's privacy budget does not allow the job; nothing was spent."""

    @property
    def largest_epsilon(self) -> float | None:
        """Return the largest ε of a job of the same shape that still fits; None when the server names none."""
        value = self.details.get("largest_epsilon")
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


class InvalidRequestError(APIError):
    """The request itself is wrong; repeating it unchanged fails again. `details` names the place."""


class RateLimitedError(APIError):
    """Too many calls."""

    @property
    def retry_after_s(self) -> float | None:
        """Return how long to wait, in seconds, where the server says so."""
        value = self.details.get("retry_after_s")
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


class ServerError(APIError):
    """The platform could not do it; the call itself may be fine. Try again, or give the operator the request id."""


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return ()
    return tuple(printable(item) for item in value if isinstance(item, str))
