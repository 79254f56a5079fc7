"""The two clients: `Client` blocks, `AsyncClient` is awaited; both offer the same nouns and verbs.

with Client("https://models.example", auth=ClientCredentials(id, secret)) as client:
    client.models.upload("tumour", traced)
    client.predict("tumour", rows)
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from modelkeep._core.flows import Async, Mode, Runner, Sync
from modelkeep._core.retrying import Retrying
from modelkeep._core.session import Session
from modelkeep._core.site import Auth, Site
from modelkeep._core.state import State, default_folder
from modelkeep._core.urls import is_loopback, origin, server_url
from modelkeep.errors import ConfigurationError
from modelkeep.resources.audit import Audit
from modelkeep.resources.datasets import Datasets
from modelkeep.resources.governance import Budgets, Grants, Policies
from modelkeep.resources.jobs import Jobs
from modelkeep.resources.models import Models
from modelkeep.resources.people import Issuer, Members, ServiceAccounts, Tenants
from modelkeep.resources.predictions import Predictions
from modelkeep.resources.uploads import Uploads

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    import httpx

DEFAULT_TIMEOUT_S: Final = 60.0
DEFAULT_RETRIES: Final = 4
_MAX_RETRIES: Final = 20


class Settings:
    """What a client was made with, checked; see `Client` for the arguments."""

    def __init__(
        self,
        base_url: str,
        *,
        auth: Auth | None,
        timeout: float,
        retries: int,
        state_dir: str | os.PathLike[str] | None,
        unsafe_allow_http: bool,
        ca_file: str | os.PathLike[str] | None,
    ) -> None:
        url = server_url(base_url, unsafe_allow_http=unsafe_allow_http)
        if not timeout > 0:
            raise ConfigurationError("`timeout` is a number of seconds above 0")
        if not 0 <= retries <= _MAX_RETRIES:
            raise ConfigurationError(f"`retries` is between 0 and {_MAX_RETRIES}")
        scheme, host, _ = origin(url)
        self.session = Session(
            site=Site(
                base_url=url,
                state=State(default_folder() if state_dir is None else Path(state_dir)),
                retrying=Retrying(retries=retries, random=random.SystemRandom().random, now_s=time.time),
                now_s=time.time,
                unsafe_allow_http=unsafe_allow_http,
            ),
            auth=auth,
        )
        self.driver: Mapping[str, Any] = {
            "timeout_s": timeout,
            # A proxy must not see the plain HTTP of this machine's own server.
            "trust_env": not (scheme == "http" and is_loopback(host)),
            "ca_file": None if ca_file is None else os.fspath(ca_file),
        }


class Nouns(Predictions[Mode]):
    """What both clients offer: `predict`, `whoami`, and one attribute a noun."""

    models: Models[Mode]
    datasets: Datasets[Mode]
    uploads: Uploads[Mode]
    jobs: Jobs[Mode]
    budgets: Budgets[Mode]
    grants: Grants[Mode]
    policies: Policies[Mode]
    members: Members[Mode]
    service_accounts: ServiceAccounts[Mode]
    tenants: Tenants[Mode]
    issuer: Issuer[Mode]
    audit: Audit[Mode]

    def __init__(self, *, session: Session, runner: Runner) -> None:
        super().__init__(session=session, runner=runner)
        self.models = Models(session=session, runner=runner)
        self.datasets = Datasets(session=session, runner=runner)
        self.uploads = Uploads(session=session, runner=runner)
        self.jobs = Jobs(session=session, runner=runner)
        self.budgets = Budgets(session=session, runner=runner)
        self.grants = Grants(session=session, runner=runner)
        self.policies = Policies(session=session, runner=runner)
        self.members = Members(session=session, runner=runner)
        self.service_accounts = ServiceAccounts(session=session, runner=runner)
        self.tenants = Tenants(session=session, runner=runner)
        self.issuer = Issuer(session=session, runner=runner)
        self.audit = Audit(session=session, runner=runner)

    @property
    def base_url(self) -> str:
        """Return the server's address."""
        return self._session.site.base_url

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_url!r}, auth={self._session.auth!r})"


class Client(Nouns[Sync]):
    """Speaks to one server; calls block. May be shared by threads.

    Args:
        base_url: the server's address; plain HTTP only on this machine.
        auth: how to log in: `ClientCredentials`, `DeviceCode` or `StaticToken`.
        timeout: seconds for connecting, and for each read and write.
        retries: how often a call is repeated where that is safe; 0 for never.
        state_dir: the folder for pins, tokens and checkpoints; by default the user's, or `MODELKEEP_STATE_DIR`.
        unsafe_allow_http: accept plain HTTP to other machines; everybody on the way can read tokens and data.
        ca_file: PEM certificates to trust instead of the usual ones.
        transport: replaces the network, for tests.

    Raises:
        ConfigurationError: an argument cannot be.
    """

    def __init__(
        self,
        base_url: str,
        *,
        auth: Auth | None,
        timeout: float = DEFAULT_TIMEOUT_S,
        retries: int = DEFAULT_RETRIES,
        state_dir: str | os.PathLike[str] | None = None,
        unsafe_allow_http: bool = False,
        ca_file: str | os.PathLike[str] | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        settings = Settings(
            base_url,
            auth=auth,
            timeout=timeout,
            retries=retries,
            state_dir=state_dir,
            unsafe_allow_http=unsafe_allow_http,
            ca_file=ca_file,
        )
        from modelkeep._core.drivers import SyncDriver

        self._driver = SyncDriver(transport=transport, **settings.driver)
        super().__init__(session=settings.session, runner=self._driver)

    def close(self) -> None:
        """Close the connections."""
        self._driver.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient(Nouns[Async]):
    """Speaks to one server; calls are awaited. Belongs to one event loop. Arguments as for `Client`."""

    def __init__(
        self,
        base_url: str,
        *,
        auth: Auth | None,
        timeout: float = DEFAULT_TIMEOUT_S,
        retries: int = DEFAULT_RETRIES,
        state_dir: str | os.PathLike[str] | None = None,
        unsafe_allow_http: bool = False,
        ca_file: str | os.PathLike[str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        settings = Settings(
            base_url,
            auth=auth,
            timeout=timeout,
            retries=retries,
            state_dir=state_dir,
            unsafe_allow_http=unsafe_allow_http,
            ca_file=ca_file,
        )
        from modelkeep._core.drivers import AsyncDriver

        self._driver = AsyncDriver(transport=transport, **settings.driver)
        super().__init__(session=settings.session, runner=self._driver)

    async def close(self) -> None:
        """Close the connections."""
        await self._driver.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
