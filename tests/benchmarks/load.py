"""The load generator: keeps a number of connections busy with one request, and says how long each answer took.

It runs as a process of its own, so that it computes beside the server and not inside it:
``python load.py PLAN``, where PLAN is JSON; one line of JSON comes back. Both sides of a ratio get the same requests.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import uvloop


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to send, how, for how long.

    Args:
        port: where to, on loopback.
        request: the bytes of one request, as text.
        connections: how many are kept busy.
        seconds: how long.
        pause_s: what each connection waits between an answer and the next request.
    """

    port: int
    request: str
    connections: int
    seconds: float
    pause_s: float = 0.0


class _Connection(asyncio.Protocol):
    def __init__(self, plan: Plan, ends_at: float, times: list[float], statuses: Counter[str]) -> None:
        self._request = plan.request.encode()
        self._pause_s = plan.pause_s
        self._ends_at, self._times, self._statuses = ends_at, times, statuses
        self._buffer = b""
        self._began = 0.0
        self._transport: Any = None
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        if len(body) < length:
            return
        now = time.perf_counter()
        self._times.append(now - self._began)
        self._statuses[head[9:12].decode()] += 1
        self._buffer = b""
        if now > self._ends_at:
            self._transport.close()
        elif self._pause_s:
            asyncio.get_running_loop().call_later(self._pause_s, self._ask)
        else:
            self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over.done():
            self.over.set_result(None)

    def _ask(self) -> None:
        self._began = time.perf_counter()
        self._transport.write(self._request)


async def run(plan: Plan) -> dict[str, Any]:
    """Send, and return how many answers a second of which status, and their times in seconds."""
    times: list[float] = []
    statuses: Counter[str] = Counter()
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    ends_at = began + plan.seconds
    made = [
        await loop.create_connection(lambda: _Connection(plan, ends_at, times, statuses), "127.0.0.1", plan.port)
        for _ in range(plan.connections)
    ]
    await asyncio.gather(*(connection.over for _, connection in made))
    took = time.perf_counter() - began
    times.sort()
    return {
        "rate": len(times) / took,
        "p50_ms": times[len(times) // 2] * 1e3,
        "p99_ms": times[min(len(times) - 1, len(times) * 99 // 100)] * 1e3,
        "statuses": dict(statuses),
    }


if __name__ == "__main__":
    print(json.dumps(uvloop.run(run(Plan(**json.loads(sys.argv[1]))))))
