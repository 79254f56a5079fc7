"""The serving port: one worker a tenant, replaced when it died, room for newcomers, and an orderly end."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from fakes.core import ACME, GLOBEX
from fakes.serving import (
    LIMITS,
    FakeWorker,
    Processes,
    Script,
    dies,
    doubled,
    doubles,
    hangs,
    rows,
    servable,
    values_of,
    weights_of,
)
from modelkeep_platform.core.errors import DeadlineError, UnavailableError
from modelkeep_platform.core.ids import TenantId
from modelkeep_platform.serving.service import ServingService
from modelkeep_platform.serving.tensors import InputError
from modelkeep_platform.workers.sandbox import ProcessSandbox

OTHER = TenantId("cccccccc-0000-4000-8000-000000000003")
Main = Callable[[ServingService], Awaitable[None]]


def run(main: Main, **options: Any) -> None:
    async def guarded() -> None:
        async with asyncio.timeout(10):
            service = ServingService(weights=weights_of, limits=LIMITS, sandbox=ProcessSandbox(), **options)
            try:
                await main(service)
            finally:
                await service.close(limit_s=0.0)

    asyncio.run(guarded())


async def ask(service: ServingService, owner: TenantId = ACME, *, timeout_s: float = 5) -> list[float]:
    return values_of(await service.infer(servable(owner=owner), rows(1), timeout_s=timeout_s))


def test_one_worker_for_each_owner_of_models(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes(monkeypatch, doubles)

    async def main(service: ServingService) -> None:
        for owner in (ACME, GLOBEX, ACME):
            assert await ask(service, owner) == [2]

    run(main)
    assert [len(process.frames) for process in processes.started] == [6, 5]


def test_wrong_inputs_reach_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes(monkeypatch, doubles)

    async def main(service: ServingService) -> None:
        with pytest.raises(InputError):
            await service.infer(servable(), {}, timeout_s=5)

    run(main)
    assert processes.started == []


def test_a_worker_that_died_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes(monkeypatch, dies, doubles)

    async def main(service: ServingService) -> None:
        with pytest.raises(UnavailableError) as caught:
            await ask(service)
        assert caught.value.error_code == "worker_died"
        assert await ask(service) == [2]

    run(main)
    assert [process.reaped for process in processes.started] == [True, True]


def test_a_worker_that_died_while_idle_costs_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    async def once(worker: FakeWorker) -> None:
        await worker.send(doubled(await worker.until_asked()))

    processes = Processes(monkeypatch, once, doubles)

    async def main(service: ServingService) -> None:
        assert await ask(service) == [2]
        for _ in range(10):
            await asyncio.sleep(0)
        assert await ask(service) == [2]

    run(main)
    assert len(processes.started) == 2


def test_a_worker_that_hangs_is_ended_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes(monkeypatch, hangs, doubles)

    async def main(service: ServingService) -> None:
        with pytest.raises((DeadlineError, UnavailableError)):
            await ask(service, timeout_s=0.02)
        for _ in range(1000):
            if processes.started[0].reaped:
                break
            await asyncio.sleep(0.002)
        assert await ask(service) == [2]

    run(main, hang_s=0.02)
    assert len(processes.started) == 2


def test_the_worker_idle_longest_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes(monkeypatch, doubles)

    async def main(service: ServingService) -> None:
        for owner in (ACME, GLOBEX, ACME, OTHER, ACME):
            assert await ask(service, owner) == [2]

    run(main, max_workers=2)
    assert [process.frames[0].fields["key"] for process in processes.started] == ["mdl_1/1"] * 3
    assert len(processes.started[0].frames) == 7


def test_a_busy_worker_makes_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = asyncio.Event()

    async def script(worker: FakeWorker) -> None:
        frame = await worker.until_asked()
        await gate.wait()
        await worker.send(doubled(frame))
        await doubles(worker)

    Processes(monkeypatch, script, doubles)

    async def main(service: ServingService) -> None:
        running = asyncio.create_task(ask(service))
        await asyncio.sleep(0)
        with pytest.raises(UnavailableError) as caught:
            await ask(service, GLOBEX)
        assert caught.value.error_code == "overloaded"
        gate.set()
        assert await running == [2]
        assert await ask(service, GLOBEX) == [2]

    run(main, max_workers=1)


def slow(gate: asyncio.Event) -> Script:
    async def script(worker: FakeWorker) -> None:
        while True:
            frame = await worker.until_asked()
            await gate.wait()
            await worker.send(doubled(frame))

    return script


def test_closing_lets_what_runs_and_waits_finish_and_takes_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = asyncio.Event()
    processes = Processes(monkeypatch, slow(gate))

    async def main(service: ServingService) -> None:
        running = asyncio.gather(*(ask(service, owner) for owner in (ACME, GLOBEX, ACME)))
        await asyncio.sleep(0.01)
        closing = asyncio.create_task(service.close(limit_s=5))
        await asyncio.sleep(0.01)
        with pytest.raises(UnavailableError) as caught:
            await ask(service)
        assert caught.value.error_code == "stopping"
        assert not closing.done()
        gate.set()
        assert await running == [[2], [2], [2]]
        await closing

    run(main)
    assert [process.reaped for process in processes.started] == [True, True]


def test_closing_waits_no_longer_than_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes(monkeypatch, hangs)

    async def main(service: ServingService) -> None:
        running = asyncio.create_task(ask(service))
        await asyncio.sleep(0.01)
        await service.close(limit_s=0.01)
        with pytest.raises(UnavailableError) as caught:
            await running
        assert caught.value.error_code == "worker_stopped"

    run(main)
    assert processes.started[0].reaped


def test_closing_a_service_that_did_nothing() -> None:
    async def main(service: ServingService) -> None:
        await service.close()
        await service.close()

    run(main)
