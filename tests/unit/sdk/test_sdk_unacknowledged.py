"""A change that server processes had not seen is said to whoever made it: once a call, with their names."""

import asyncio
import time as real_time
import warnings
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

import modelkeep
from fakes.server import BASE, FakePlatform, refusal
from modelkeep import UnacknowledgedWarning
from modelkeep._core.flows import Sync
from modelkeep.client import Nouns
from modelkeep.errors import ForbiddenError


def naming(
    names: str, *, method: str = "DELETE", request_id: str = "req-1"
) -> Callable[[httpx.Request, httpx.Response], httpx.Response]:
    def change(request: httpx.Request, answer: httpx.Response) -> httpx.Response:
        if request.method != method or not request.url.path.startswith("/v1/"):
            return answer
        headers = [
            *answer.headers.raw,
            (b"x-modelkeep-unacknowledged", names.encode()),
            (b"x-request-id", request_id.encode()),
        ]
        return httpx.Response(answer.status_code, headers=headers, content=answer.content)

    return change


def test_processes_are_named_where_the_caller_called(platform: FakePlatform, client: Nouns[Sync]) -> None:
    platform.after.append(naming("p-one, p-two"))
    with pytest.warns(UnacknowledgedWarning, match="had not reached p-one, p-two when") as caught:
        client.grants.revoke("g-1")
    (found,) = caught
    assert isinstance(found.message, UnacknowledgedWarning)
    assert (found.message.processes, found.message.request_id) == (("p-one", "p-two"), "req-1")
    assert str(found.message).endswith(" until they have seen it (request req-1)")
    assert found.filename == __file__


def test_it_is_said_by_the_asynchronous_client_too(tmp_path: Path) -> None:
    platform = FakePlatform(now_s=real_time.time)
    platform.after.append(naming("p-one"))

    async def story() -> None:
        login = modelkeep.ClientCredentials("app", "s3cret")
        async with modelkeep.AsyncClient(
            BASE, auth=login, state_dir=tmp_path, transport=platform.transport()
        ) as client:
            await client.grants.revoke("g-1")

    with pytest.warns(UnacknowledgedWarning, match="p-one") as caught:
        asyncio.run(story())
    assert [one.filename for one in caught] == [__file__]


def test_every_call_says_it(platform: FakePlatform, client: Nouns[Sync]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")  # Python's own: the same text from the same line is said once
        for number in range(3):
            platform.after[:] = [naming("p-one", request_id=f"req-{number}")]
            client.grants.revoke("g-1")
    assert len(caught) == 3


def test_a_call_that_is_refused_after_its_change_says_both(platform: FakePlatform, client: Nouns[Sync]) -> None:
    platform.before.append(
        lambda request: (
            refusal(403, "forbidden", headers={"x-modelkeep-unacknowledged": "p-one"})
            if request.method == "DELETE"
            else None
        )
    )
    with pytest.warns(UnacknowledgedWarning, match="p-one"), pytest.raises(ForbiddenError):
        client.grants.revoke("g-1")


@pytest.mark.parametrize("names", [None, "", " , ,", "\x1b,\x07"])
def test_nothing_is_said_where_nobody_is_named(platform: FakePlatform, client: Nouns[Sync], names: str | None) -> None:
    if names is not None:
        platform.after.append(naming(names))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        client.grants.revoke("g-1")


def test_names_steer_no_terminal_and_do_not_flood_it(platform: FakePlatform, client: Nouns[Sync]) -> None:
    platform.after.append(naming(",".join(["p\x1b[2J\x9b\u202eone", "x" * 5000, *map(str, range(1000))])))
    with pytest.warns(UnacknowledgedWarning) as caught:
        client.grants.revoke("g-1")
    message = caught[0].message
    assert isinstance(message, UnacknowledgedWarning)
    assert message.processes[0] == "p[2Jone"
    assert len(message.processes) == 20
    assert str(message).isprintable()
    assert len(str(message)) < 2000


def test_an_issuer_elsewhere_names_nothing(platform: FakePlatform, client: Nouns[Sync]) -> None:
    def name(request: httpx.Request, answer: httpx.Response) -> httpx.Response:
        if request.url.path.startswith("/issuer/"):
            answer.headers["x-modelkeep-unacknowledged"] = "forged"
        return answer

    platform.after.append(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        client.whoami()


def test_an_enrolment_says_it(platform: FakePlatform, tmp_path: Path) -> None:
    platform.after.append(naming("p-one", method="POST"))
    options = {"transport": platform.transport(), "state_dir": tmp_path}
    with pytest.warns(UnacknowledgedWarning, match="p-one") as caught:
        modelkeep.enrol(BASE, "link-1", username="ana", password="twelve letters", **options)
    assert caught[0].filename == __file__


def test_turned_into_an_error_it_is_raised(platform: FakePlatform, client: Nouns[Sync]) -> None:
    platform.after.append(naming("p-one"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnacknowledgedWarning)
        with pytest.raises(UnacknowledgedWarning):
            client.grants.revoke("g-1")
    assert platform.sent("DELETE", "/v1/grants/g-1")
