"""Who was refused at the edge: known callers are noted in their tenant's log, strangers are counted by the gateway.

What does not authenticate when it is opened is noted, too, as failed: somebody changed it, or a disk did.
"""

from typing import Any, Final, Protocol

from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import Caller
from modelkeep_platform.core.errors import (
    ForbiddenError,
    IntegrityError,
    ModelkeepError,
    NotFoundError,
    UnavailableError,
)
from modelkeep_platform.core.events import Outcome
from modelkeep_platform.http.status import REFUSALS, status_of

CALLER: Final = "modelkeep.caller"
"""The key under which a request's scope holds its caller, once its token was verified."""


class Notes(Protocol):
    """Notes refusals that no policy decided."""

    def of_caller(
        self, caller: Caller, action: Action | str, *, code: str, route: str, outcome: Outcome = Outcome.DENIED
    ) -> None:
        """Note that a call was refused, or failed; raises `UnavailableError` when the log takes no entries."""

    def of_stranger(self, source: str, status: int) -> None:
        """Count a refusal of somebody without a token that verifies."""


def noted(error: Exception, scope: Any, *, notes: Notes, action: Action | str, route: str) -> Exception:  # noqa: ANN401
    """Note a refusal of a known caller, or what did not authenticate; return the error to answer with.

    Args:
        error: what was raised.
        scope: the request's.
        notes: where it is noted.
        action: what the route is guarded by.
        route: the method and the path's template.
    """
    caller = scope.get(CALLER)
    failed = isinstance(error, IntegrityError)
    if caller is None or not isinstance(error, ModelkeepError) or not (failed or status_of(error) in REFUSALS):
        return error
    if error.recorded:
        return error
    # Policy has recorded its own refusals before it raised them, what it may not say included.
    if isinstance(error, NotFoundError) or (isinstance(error, ForbiddenError) and "reasons" in error.details):
        return error
    try:
        outcome = Outcome.FAILED if failed else Outcome.DENIED
        notes.of_caller(caller, action, code=error.error_code, route=route, outcome=outcome)
    except UnavailableError as unavailable:
        return unavailable
    return error
