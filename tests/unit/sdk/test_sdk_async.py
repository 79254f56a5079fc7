"""The asynchronous client performs the same flows."""

import asyncio
from pathlib import Path

import httpx
import pytest

import modelkeep
from fakes.sdk import FakeTime
from fakes.server import BASE, FakePlatform, new_job, refusal
from modelkeep import errors


def make(platform: FakePlatform, folder: Path, time: FakeTime) -> modelkeep.AsyncClient:
    client = modelkeep.AsyncClient(
        BASE,
        auth=modelkeep.ClientCredentials("app", "s3cret"),
        state_dir=folder,
        transport=platform.transport(),
    )

    async def wait(seconds: float) -> None:
        time.wait(seconds)
        await asyncio.sleep(0)

    client._driver.sleep = wait
    return client


@pytest.fixture
def live() -> FakePlatform:
    import time

    return FakePlatform(now_s=time.time)


def test_calls_are_awaited(live: FakePlatform, folder: Path, time: FakeTime) -> None:
    async def story() -> None:
        async with make(live, folder, time) as client:
            assert (await client.whoami()).name == "app"
            version = await client.models.upload("m", graph={}, weights=b"0123456789")
            assert version.version == 1
            assert (await client.models.download("m")).weights == b"0123456789"
            assert await client.predict("m", [1, 2, 3]) == [2.0, 4.0, 6.0]
            live.jobs["j-1"] = [new_job("running"), new_job("succeeded")]
            assert (await client.jobs.wait("j-1")).state == "succeeded"
            live.log.add(4)
            assert (await client.audit.verify()).size == 4

    asyncio.run(story())


def test_many_calls_at_once_log_in_once(live: FakePlatform, folder: Path, time: FakeTime) -> None:
    async def story() -> None:
        async with make(live, folder, time) as client:
            await asyncio.gather(*(client.whoami() for _ in range(10)))

    asyncio.run(story())
    assert len(live.sent("POST", "/issuer/token")) == 1


def test_errors_and_retries_are_the_same(live: FakePlatform, folder: Path, time: FakeTime) -> None:
    live.before.append(lambda request: refusal(503, "unavailable") if request.url.path == "/v1/whoami" else None)

    async def story() -> None:
        async with make(live, folder, time) as client:
            await client.whoami()

    with pytest.raises(errors.ServerError):
        asyncio.run(story())
    assert len(live.sent("GET", "/v1/whoami")) == 5


def test_a_broken_connection_is_mapped(live: FakePlatform, folder: Path, time: FakeTime) -> None:
    def broken(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("x", request=request)

    live.before.append(broken)

    async def story() -> None:
        async with make(live, folder, time) as client:
            await client.whoami()

    with pytest.raises(errors.ConnectionFailedError):
        asyncio.run(story())


def test_a_cancelled_login_gives_its_lock_back(live: FakePlatform, folder: Path, time: FakeTime) -> None:
    async def story() -> None:
        async with make(live, folder, time) as client:
            live.before.append(lambda _: refusal(503, "unavailable"))

            async def stuck(_seconds: float) -> None:
                await asyncio.sleep(60)

            wait, client._driver.sleep = client._driver.sleep, stuck
            call = asyncio.ensure_future(client.whoami())
            await asyncio.sleep(0.02)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            live.before.clear()
            client._driver.sleep = wait
            assert (await client.whoami()).name == "app"

    asyncio.run(story())


def test_a_closed_client_says_so(live: FakePlatform, folder: Path, time: FakeTime) -> None:
    async def story() -> None:
        client = make(live, folder, time)
        await client.close()
        await client.whoami()

    with pytest.raises(errors.ModelkeepError, match="closed"):
        asyncio.run(story())
