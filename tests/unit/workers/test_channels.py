import asyncio
import socket
import threading
from collections.abc import Iterator

import pytest

from modelkeep_platform.workers.channel_async import AsyncChannel
from modelkeep_platform.workers.channel_sync import SyncChannel
from modelkeep_platform.workers.errors import FrameError, WorkerDiedError, WorkerTimeoutError
from modelkeep_platform.workers.frames import Bounds, Frame

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
