"""Makes clients of the SDK for a fake platform, with a clock that the client's own waiting moves."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from fakes.server import FakePlatform
from modelkeep._core.drivers import SyncDriver
from modelkeep._core.flows import Sync
from modelkeep._core.retrying import Retrying
from modelkeep._core.session import Session
from modelkeep._core.site import Auth, Site
from modelkeep._core.state import State
from modelkeep.auth import ClientCredentials
from modelkeep.client import Nouns


@dataclass
class FakeTime:
    """Stands still until somebody waits."""

    now: float = 1_800_000_000.0
    waits: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


def fake_site(base_url: str, folder: Path, time: FakeTime, *, retries: int = 4) -> Site:
    """Return a site whose jitter is always the longest."""
    return Site(
        base_url=base_url,
        state=State(folder),
        retrying=Retrying(retries=retries, random=lambda: 1.0, now_s=time),
        now_s=time,
        unsafe_allow_http=False,
    )


def fake_driver(transport: httpx.BaseTransport, time: FakeTime) -> SyncDriver:
    """Return a driver that waits by moving the clock."""
    driver = SyncDriver(timeout_s=5, trust_env=False, ca_file=None, transport=transport)
    driver.sleep = time.wait
    return driver


@contextmanager
def fake_client(
    platform: FakePlatform, folder: Path, time: FakeTime, *, auth: Auth | None = None, retries: int = 4
) -> Iterator[Nouns[Sync]]:
    """Give a client of `platform`; by default it logs in as `app`."""
    site = fake_site(platform.base_url, folder, time, retries=retries)
    driver = fake_driver(platform.transport(), time)
    try:
        yield Nouns(session=Session(site=site, auth=auth or ClientCredentials("app", "s3cret")), runner=driver)
    finally:
        driver.close()
