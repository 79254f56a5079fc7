"""Errors on the terminal: `error (code): message`, then the place, the next step and the request id, a line each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from modelkeep.cli.output import safe

if TYPE_CHECKING:
    from modelkeep.errors import ModelkeepError

_MAX_PLACES: Final = 20


def explained(error: ModelkeepError) -> str:
    """Return an error as the lines that are printed."""
    from modelkeep.errors import APIError

    lines = [f"error ({error.code}): {error.message}"]
    if isinstance(error, APIError):
        lines += [f"  {place}" for place in _places(error.details.get("errors"))]
    step = _next_step(error)
    if step:
        lines.append(f"  {step}")
    if isinstance(error, APIError) and error.request_id:
        lines.append(f"  request {error.request_id}; the audit log and the operator know it by this id")
    return "\n".join(safe(line) for line in lines)


def _places(found: object) -> Iterator[str]:
    for place in found[:_MAX_PLACES] if isinstance(found, list) else []:
        if isinstance(place, Mapping):
            yield f"line {place.get('line', '?')}, column {place.get('column', '?')}: {place.get('message', '')}"


def _next_step(error: ModelkeepError) -> str | None:  # noqa: C901 -- one case an error
    from modelkeep import errors

    match error:
        case errors.AuthenticationError(code="login_required") | errors.TimeoutError():
            return None  # the message says it
        case errors.AuthenticationError():
            return (
                "log in with `modelkeep login`; an application checks MODELKEEP_CLIENT_ID and MODELKEEP_CLIENT_SECRET"
            )
        case errors.BudgetExceededError(largest_epsilon=float(largest)):
            return f"the largest ε of a job of this shape that still fits is {largest:g}"
        case errors.ForbiddenError(policies=(_, *_) as policies):
            return f"decided by {', '.join(policies)}"
        case errors.NotFoundError(code="not_found"):
            return "check the name and who you are (`modelkeep whoami`); what another tenant granted is `owner~name`"
        case errors.RateLimitedError(retry_after_s=float(wait_s)):
            return f"try again in {wait_s:g} s"
        case errors.RateLimitedError() | errors.ServerError():
            return "try again in a while; if it stays, give the request id to the operator"
        case errors.ConnectionFailedError():
            return "check the address (`--server`) and whether the platform runs"
        case errors.UploadInterruptedError():
            return "or upload the file again from the start"
        case errors.JobFailedError(job=job):
            return f"read its log with `modelkeep jobs logs {job.id}`"
        case errors.AuditError():
            return "do not rely on the log before you know why; keep the state folder and ask the operator"
        case errors.UntrustedServerError():
            return "nothing secret was sent; ask the operator which address and issuer are right"
    return None
