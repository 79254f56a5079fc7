"""An answer sent part by part: whole, within its deadline, and holding its place until it is over."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from modelkeep_platform.core.errors import DeadlineError
from modelkeep_platform.core.limits import KIB, MIB
from modelkeep_platform.http.downloads import Download

SCOPE = {"type": "http", "asgi": {"spec_version": "2.3"}}


class Held:
    """Counts who holds a place."""

    count = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1


def sent(download: Download, *, stalls_at: int | None = None, leaves_at: int | None = None) -> list[bytes]:
    """Send it to a client that stalls, or leaves, after so many pieces; return the pieces."""
    pieces: list[bytes] = []
    gone = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            return
        if len(pieces) == stalls_at:
            await asyncio.sleep(3600)
        if len(pieces) == leaves_at:
            gone.set()
            await asyncio.sleep(3600)
        pieces.append(message["body"])

    asyncio.run(download(SCOPE, receive, send))
    return pieces


def test_the_parts_are_sent_whole_in_pieces_for_which_a_deadline_means_something() -> None:
    parts = [bytes([at]) * (MIB + at) for at in range(3)]
    pieces = sent(Download(iter(parts), headers={}))
    assert b"".join(pieces) == b"".join(parts)
    assert max(map(len, pieces)) == 256 * KIB


@pytest.mark.parametrize("behaviour", [{}, {"leaves_at": 2}])
def test_the_place_is_held_until_it_is_over_or_nobody_is_there(behaviour: dict[str, int]) -> None:
    held, seen = Held(), []

    def parts() -> Iterator[bytes]:
        for _ in range(3):
            seen.append(held.count)
            yield bytes(MIB)

    download = Download(parts(), headers={})
    download.held = held.place()
    sent(download, **behaviour)
    assert set(seen) == {1}
    assert held.count == 0


def test_whoever_does_not_read_on_loses_the_answer_and_the_place() -> None:
    held = Held()
    download = Download(iter([bytes(MIB)]), headers={})
    download.held, download.read_timeout_s = held.place(), 0.01
    with pytest.raises(DeadlineError) as caught:
        sent(download, stalls_at=1)
    assert caught.value.error_code == "answer_timeout"
    assert held.count == 0
