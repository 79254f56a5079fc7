import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from modelkeep_platform.core.limits import MIB
from modelkeep_platform.workers.channel_async import AsyncChannel
from modelkeep_platform.workers.channel_sync import SyncChannel
from modelkeep_platform.workers.errors import FrameError, WorkerDiedError, WorkerTimeoutError
from modelkeep_platform.workers.frames import Bounds, Frame, encode

BIG = bytes(range(256)) * 16 * 1024


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    yield one, other
    one.close()
    other.close()


def test_small_and_large_frames_pass_both_ways(ends: tuple[socket.socket, socket.socket]) -> None:
    near, far = (SyncChannel(end) for end in ends)

    def answer() -> None:
        for _ in range(2):
            far.send(far.receive(timeout_s=5), timeout_s=5)

    thread = threading.Thread(target=answer)
    thread.start()
    for buffers in ([], [b"", BIG, b"x"]):
        frame = Frame(kind="k", id=1, fields={"a": [1, 2]}, buffers=buffers)
        near.send(frame, timeout_s=5)
        assert near.receive(timeout_s=5) == frame
    thread.join()


def test_receive_stops_at_its_deadline(ends: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(WorkerTimeoutError) as caught:
        SyncChannel(ends[0]).receive(timeout_s=0.01)
    assert caught.value.error_code == "worker_timeout"


def test_receive_stops_in_the_middle_of_a_frame(ends: tuple[socket.socket, socket.socket]) -> None:
    ends[1].sendall(b"\0\0\0\x20half")
    with pytest.raises(WorkerTimeoutError):
        SyncChannel(ends[0]).receive(timeout_s=0.01)


def test_send_stops_at_its_deadline(ends: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(WorkerTimeoutError):
        SyncChannel(ends[0]).send(Frame(kind="k", buffers=[BIG]), timeout_s=0.01)


def test_wait_says_whether_something_came_and_takes_nothing(ends: tuple[socket.socket, socket.socket]) -> None:
    near, far = (SyncChannel(end) for end in ends)
    assert not near.wait(0)
    far.send(Frame(kind="k"))
    assert near.wait(1)
    assert near.receive(timeout_s=1).kind == "k"


@pytest.mark.parametrize("sent", [b"", b"\0\0", b"\0\0\0\x20half"], ids=["nothing", "prefix", "header"])
def test_a_closed_end_is_a_death(ends: tuple[socket.socket, socket.socket], sent: bytes) -> None:
    ends[1].sendall(sent)
    ends[1].close()
    with pytest.raises(WorkerDiedError) as caught:
        SyncChannel(ends[0]).receive(timeout_s=1)
    assert caught.value.error_code == "worker_died"


def test_sending_to_a_closed_end_is_a_death(ends: tuple[socket.socket, socket.socket]) -> None:
    ends[1].close()
    with pytest.raises(WorkerDiedError):
        SyncChannel(ends[0]).send(Frame(kind="k"), timeout_s=1)


def test_garbage_is_a_frame_error(ends: tuple[socket.socket, socket.socket]) -> None:
    ends[1].sendall(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(FrameError):
        SyncChannel(ends[0]).receive(timeout_s=1)


def test_async_frames_pass_both_ways(ends: tuple[socket.socket, socket.socket]) -> None:
    async def talk() -> None:
        near, far = await AsyncChannel.open(ends[0]), await AsyncChannel.open(ends[1])

        async def answer() -> None:
            for _ in range(2):
                await far.send(await far.receive())

        echo = asyncio.create_task(answer())
        for buffers in ([], [b"", BIG, b"x"]):
            frame = Frame(kind="k", id=1, fields={"a": [1, 2]}, buffers=buffers)
            await near.send(frame)
            assert await near.receive() == frame
        await echo
        near.close()
        far.close()

    asyncio.run(talk())


@pytest.mark.parametrize("sent", [b"", b"\0\0", b"\0\0\0\x20half"], ids=["nothing", "prefix", "header"])
def test_async_a_closed_end_is_a_death(ends: tuple[socket.socket, socket.socket], sent: bytes) -> None:
    async def talk() -> None:
        channel = await AsyncChannel.open(ends[0])
        ends[1].sendall(sent)
        ends[1].close()
        with pytest.raises(WorkerDiedError):
            await channel.receive()
        channel.close()

    asyncio.run(talk())


def test_async_garbage_and_oversized_frames_are_refused(ends: tuple[socket.socket, socket.socket]) -> None:
    async def talk() -> None:
        channel = await AsyncChannel.open(ends[0], bounds=Bounds(total_bytes=10))
        with pytest.raises(FrameError):
            await channel.send(Frame(kind="k", buffers=[b"x" * 11]))
        ends[1].sendall(b"\x7fELF" * 4)
        with pytest.raises(FrameError):
            await channel.receive()
        channel.close()

    asyncio.run(talk())


def test_async_what_nobody_waits_for_is_not_taken_in_without_bound(ends: tuple[socket.socket, socket.socket]) -> None:
    async def talk() -> int:
        channel = await AsyncChannel.open(ends[0])
        ends[1].setblocking(False)
        frame, sent = b"".join(encode(Frame(kind="k", buffers=[bytes(1 << 16)]))), 0
        for _ in range(400):
            await asyncio.sleep(0)
            with suppress(BlockingIOError):
                sent += ends[1].send(frame)
        assert (await channel.receive()).kind == "k"
        channel.close()
        return sent

    assert asyncio.run(talk()) < 8 * MIB


def test_async_the_end_is_told_while_nobody_waits(ends: tuple[socket.socket, socket.socket]) -> None:
    async def talk() -> None:
        lost = asyncio.Event()
        channel = await AsyncChannel.open(ends[0], on_lost=lost.set)
        ends[1].sendall(b"".join(encode(Frame(kind="last"))))
        ends[1].close()
        async with asyncio.timeout(5):
            await lost.wait()
        assert (await channel.receive()).kind == "last"
        with pytest.raises(WorkerDiedError):
            await channel.send(Frame(kind="k"))

    asyncio.run(talk())


@pytest.mark.parametrize("waits_to", ["receive", "send"])
def test_async_expiry_ends_the_wait(ends: tuple[socket.socket, socket.socket], waits_to: str) -> None:
    async def talk() -> None:
        channel = await AsyncChannel.open(ends[0])
        asyncio.get_running_loop().call_later(0.01, channel.expire)
        with pytest.raises(WorkerTimeoutError):
            await (channel.receive() if waits_to == "receive" else channel.send(Frame(kind="k", buffers=[BIG, BIG])))

    asyncio.run(talk())


@pytest.mark.parametrize("piece", [1, 3, 7, 1000])
def test_async_frames_arrive_whole_whatever_their_pieces(ends: tuple[socket.socket, socket.socket], piece: int) -> None:
    frames = [Frame(kind=f"k{at}", id=at, fields={"a": at}, buffers=[b"x" * at, b"", b"y" * 9]) for at in range(4)]
    raw = b"".join(b"".join(encode(frame)) for frame in frames)

    async def talk() -> list[Frame]:
        channel = await AsyncChannel.open(ends[0])

        async def feed() -> None:
            for at in range(0, len(raw), piece):
                ends[1].sendall(raw[at : at + piece])
                await asyncio.sleep(0)

        feeding = asyncio.create_task(feed())
        found = [await channel.receive() for _ in frames]
        await feeding
        channel.close()
        return found

    assert asyncio.run(talk()) == frames


@pytest.mark.parametrize("sizes", [(0, 1), (1 << 16, 5), ((1 << 16) - 1, (1 << 16) + 1), (200_000, 0)])
def test_sync_frames_behind_one_another_are_not_mixed_up(
    ends: tuple[socket.socket, socket.socket], sizes: tuple[int, int]
) -> None:
    near, far = (SyncChannel(end) for end in ends)
    frames = [Frame(kind="k", id=at, buffers=[bytes([at]) * sizes[0], bytes([at]) * sizes[1]]) for at in range(1, 5)]

    def send() -> None:
        for frame in frames:
            far.send(frame)

    thread = threading.Thread(target=send)
    thread.start()
    for frame in frames:
        assert near.wait(5)
        assert near.receive(timeout_s=5) == frame
    assert not near.wait(0)
    thread.join()
