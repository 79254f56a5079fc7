"""What a login needs of its surroundings: the server's address, the state files, the clock, a way to send."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from modelkeep._core.flows import Flow
from modelkeep._core.retrying import Retrying
from modelkeep._core.state import State


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One server, as logins and calls see it.

    Attributes:
        base_url: the server's address, which is also the OAuth resource's name.
        state: where pins, tokens and checkpoints are kept.
        retrying: sends requests.
        now_s: seconds since the epoch.
        unsafe_allow_http: whether plain HTTP is accepted beyond this machine.
    """

    base_url: str
    state: State
    retrying: Retrying
    now_s: Callable[[], float]
    unsafe_allow_http: bool


class Auth(Protocol):
    """A way to log in."""

    def token(self, site: Site, *, rejected: str | None) -> Flow[str]:
        """Return an access token for `site`.

        Args:
            site: the server.
            rejected: a token the server refused just now, which must not be returned again if another can be got.

        Raises:
            AuthenticationError: the login was refused.
            UntrustedServerError: the server names another issuer than the one pinned.
        """


@runtime_checkable
class Interactive(Protocol):
    """A way to log in that can be asked to do so anew."""

    def login(self, site: Site) -> Flow[object]:
        """Log in, whatever is kept."""


@runtime_checkable
class Kept(Protocol):
    """A way to log in that keeps tokens."""

    def logout(self, site: Site) -> Flow[bool]:
        """Forget them, here and at the issuer."""
