"""What every resource holds: the session that sends, and the runner that performs."""

from __future__ import annotations

from modelkeep._core.flows import Bound, Mode, Runner
from modelkeep._core.session import Session


class Resource(Bound[Mode]):
    """A noun of the client.

    Args:
        session: sends calls.
        runner: performs flows.
    """

    def __init__(self, *, session: Session, runner: Runner) -> None:
        self._session = session
        self._runner = runner
