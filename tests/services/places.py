"""Holds places of requests that are under way at once, over bare connections whose bodies do not come."""

import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from modelkeep import Client
from services.house import token_of

PLACES: Final = 20
"""How many a limit is set to: few enough to be held, and enough that a tenth is more than one."""
_SETTLED_S: Final = 1.5


@contextmanager
def holding(client: Client, ports: list[int], each: int) -> Iterator[int]:
    """Begin `each` predictions at every port; give how many are not refused, and hold these until the block is left."""
    head = (
        "POST /v2/models/model/infer HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer "
        f"{token_of(client)}\r\ncontent-length: 100\r\n\r\n"
    ).encode()
    with ExitStack() as stack:
        asked = []
        for number in range(each * len(ports)):
            one = socket.create_connection(("127.0.0.1", ports[number % len(ports)]), timeout=10)
            stack.enter_context(one).sendall(head)
            asked.append(one)
        refused: set[socket.socket] = set()
        deadline = time.monotonic() + _SETTLED_S
        while (left_s := deadline - time.monotonic()) > 0:
            readable, _, _ = select.select([one for one in asked if one not in refused], [], [], left_s)
            refused |= set(readable)
        assert {one.recv(12) for one in refused} <= {b"HTTP/1.1 429"}
        yield len(asked) - len(refused)


def held_at_once(client: Client, ports: list[int], each: int) -> int:
    """Return how many predictions of `each` at every port are under way at once."""
    with holding(client, ports, each) as held:
        return held


def nearly_all(held: int) -> bool:
    """Return whether all places are held, or all but a tenth; never more."""
    assert held <= PLACES, held
    return held >= 0.9 * PLACES
