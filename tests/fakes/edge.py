"""The edge over handmade endpoints: gateway, router and data plane, called with the very bytes that a test decides."""

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fakes.core import FakeClock, FakeEntropy, FakeEpoch, FakeLimits, FakeRecorder
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import Caller
from modelkeep_platform.core.errors import UnauthenticatedError
from modelkeep_platform.core.events import Outcome
from modelkeep_platform.core.ids import RequestId
from modelkeep_platform.http.gateway import Gateway
from modelkeep_platform.http.idempotency import IdempotencyStore
from modelkeep_platform.http.management import Management
from modelkeep_platform.http.routing import Endpoint
from modelkeep_platform.http.v2 import DataPlane
from modelkeep_platform.limits.service import RequestLimits
from modelkeep_platform.models.values import ServableVersion
from modelkeep_platform.serving.tensors import Tensor
from modelkeep_platform.storage.database import Database

BASE = "https://models.test"
STALL = b"the client stalls"
GONE = b"the client is gone"


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, and how many messages of the body were asked for before it came."""

    status: int
    headers: dict[str, str]
    body: bytes
    asked: int

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return str(self.headers.get("x-error-code") or self.json()["error"]["code"])


def call(
    app: Any,
    method: str,
    path: str,
    *,
    headers: Iterable[tuple[str, str]] = (),
    body: Sequence[bytes] = (),
    query: bytes = b"",
    client: tuple[str, int] | None = ("192.0.2.7", 4711),
) -> Answer:
    """Send one request; each item of `body` is one message, `STALL` waits for ever, `GONE` is a closed connection."""
    return asyncio.run(_call(app, method, path, headers, list(body), query, client))


async def _call(
    app: Any,
    method: str,
    path: str,
    headers: Iterable[tuple[str, str]],
    chunks: list[bytes],
    query: bytes,
    client: tuple[str, int] | None,
) -> Answer:
    sent: list[dict[str, Any]] = []
    asked = 0

    async def receive() -> dict[str, Any]:
        nonlocal asked
        asked += 1
        chunk = chunks.pop(0) if chunks else b""
        if chunk == STALL:
            await asyncio.Event().wait()
        if chunk == GONE:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": chunk, "more_body": bool(chunks)}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "scheme": "https",
        "path": path,
        "raw_path": path.encode("utf-8", "surrogateescape"),
        "root_path": "",
        "query_string": query,
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers],
        "client": client,
        "server": ("models.test", 443),
    }
    await app(scope, receive, send)
    start = sent[0]
    return Answer(
        status=start["status"],
        headers={name.decode().lower(): value.decode() for name, value in start["headers"]},
        body=b"".join(message.get("body", b"") for message in sent[1:]),
        asked=asked,
    )


class Tokens:
    """Knows callers by their token."""

    def __init__(self) -> None:
        self.callers: dict[str, Caller] = {}

    def authenticate(self, token: str, request_id: RequestId) -> Caller:
        if token not in self.callers:
            raise UnauthenticatedError("the token does not verify; log in again", code="token_invalid")
        return self.callers[token]

    def cached(self, token: str, request_id: RequestId) -> Caller | None:
        return None


class Noted:
    """Remembers refusals; can be told to be out of order."""

    def __init__(self) -> None:
        self.callers: list[tuple[str, str, str]] = []
        self.outcomes: list[Outcome] = []
        self.strangers: list[tuple[str, int]] = []
        self.broken: Exception | None = None

    def of_caller(
        self, caller: Caller, action: Action | str, *, code: str, route: str, outcome: Outcome = Outcome.DENIED
    ) -> None:
        if self.broken is not None:
            raise self.broken
        self.outcomes.append(outcome)
        self.callers.append((str(action), code, route))

    def of_stranger(self, source: str, status: int) -> None:
        self.strangers.append((source, status))


class Versions:
    """Resolves the versions it was given."""

    def __init__(self) -> None:
        self.known: dict[str, ServableVersion | Exception] = {}

    def resolve_version(self, caller: Caller, name: str, version: str | None, action: Action) -> ServableVersion:
        found = self.known[name]
        if isinstance(found, Exception):
            raise found
        return found


class Echo:
    """Answers with what it was given as ``y``, or fails."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    async def infer(
        self, servable: ServableVersion, inputs: dict[str, Tensor], *, timeout_s: float
    ) -> dict[str, Tensor]:
        if self.error is not None:
            raise self.error
        return {"y": next(iter(inputs.values()))}


class Edge:
    """Everything between a connection and the services."""

    def __init__(
        self, database: Database, clock: FakeClock, endpoints: Iterable[Endpoint], *, body_timeout_s: float = 60.0
    ) -> None:
        self.tokens, self.noted, self.versions, self.serving = Tokens(), Noted(), Versions(), Echo()
        self.recorder, self.epoch = FakeRecorder(), FakeEpoch()
        self.closed = 0
        self.limits = FakeLimits(concurrent_requests=8)
        limits = RequestLimits(database=database, clock=clock, limits=self.limits, process_id="here", others=frozenset)
        self.management = Management(
            endpoints=endpoints,
            authenticator=self.tokens,
            idempotency=IdempotencyStore(database=database, clock=clock, limits=self.limits),
            base_url=BASE,
            limits=limits,
            notes=self.noted,
            body_timeout_s=body_timeout_s,
        )
        plane = DataPlane(
            authenticator=self.tokens,
            models=self.versions,
            serving=self.serving,
            recorder=self.recorder,
            epoch=self.epoch,
            clock=clock,
            base_url=BASE,
            limits=limits,
            notes=self.noted,
            body_timeout_s=body_timeout_s,
        )
        self.app = Gateway(
            management=self.management.app(),
            data_plane=plane,
            entropy=FakeEntropy(),
            notes=self.noted,
            on_shutdown=self._close,
        )

    def call(self, method: str, path: str, *, token: str | None = None, **options: Any) -> Answer:
        headers = [*options.pop("headers", ())]
        if token is not None:
            headers.append(("authorization", f"Bearer {token}"))
        return call(self.app, method, path, headers=headers, **options)

    async def _close(self) -> None:
        self.closed += 1
