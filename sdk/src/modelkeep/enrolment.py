"""Uses an enrolment link or an invitation: the one call that needs no login, because the link is the credential."""

from __future__ import annotations

from typing import Any

from modelkeep._core.flows import Flow, Mode, Operation, Repeat
from modelkeep.client import Client
from modelkeep.resources.base import Resource
from modelkeep.types import Enrolled


class Enrolments(Resource[Mode]):
    """Enrolment links and invitations."""

    @Operation
    def use(self, token: str, *, username: str, password: str) -> Flow[Enrolled]:
        """Use a link, once."""
        # The link works once: when in doubt whether it was used, it is not sent again.
        body = {"token": token, "username": username, "password": password}
        return (
            yield from self._session.post(Enrolled, "v1", "enrolments", body=body, keyed=False, repeat=Repeat.UNSENT)
        )


def enrol(base_url: str, token: str, *, username: str, password: str, **options: Any) -> Enrolled:  # noqa: ANN401
    """Use an enrolment link or an invitation: choose a name and a password.

    Args:
        base_url: the server's address.
        token: from the link.
        username: the name to log in with; for an invitation the one invited.
        password: at least 12 characters.
        **options: those of `Client`, such as `timeout`.

    Returns:
        Who one has become.

    Raises:
        APIError: the link is unknown, used or over, or the password too short.
    """
    with Client(base_url, auth=None, **options) as client:
        enrolments: Enrolments[Any] = Enrolments(session=client._session, runner=client._driver)  # noqa: SLF001
        enrolled: Enrolled = enrolments.use(token, username=username, password=password)
    return enrolled
