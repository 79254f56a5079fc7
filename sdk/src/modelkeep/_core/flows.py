"""Flows: what a call does, written once, without I/O.

A flow is a generator. It yields commands (`Request`: exchange it; `Sleep`: wait), gets the answers sent in, and
returns the call's result. Two drivers perform the commands, one with `httpx.Client` and one with
`httpx.AsyncClient`; `Operation` makes a flow a method that blocks on `Client` and is awaited on `AsyncClient`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Generator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Concatenate, Final, Generic, ParamSpec, Protocol, TypeAlias, TypeVar, overload

P = ParamSpec("P")
T = TypeVar("T")

MIB: Final = 1024 * 1024
MAX_ANSWER_BYTES: Final = 8 * MIB


class Repeat(Enum):
    """When a request may be sent again."""

    SAFE = "repeating it changes nothing more: reads, PUT, DELETE, pure computations, POST with an idempotency key"
    UNSENT = "only when the server surely did not act: it was not reached, or it said so (429, 503)"


class Sink(Protocol):
    """Takes the bytes of a large answer as they arrive."""

    def write(self, data: bytes, /) -> object:
        """Take the next bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One HTTP request.

    Attributes:
        max_bytes: the largest answer that is read.
        sink: makes what takes a successful answer's body, once an attempt; None keeps the body in the response.
    """

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = field(default=None, repr=False)
    max_bytes: int = MAX_ANSWER_BYTES
    sink: Callable[[], Sink] | None = None
    repeat: Repeat = Repeat.SAFE


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One answer; header names are lower case; `body` is empty when a sink took it."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Sleep:
    """Waits for `seconds`."""

    seconds: float


Command: TypeAlias = Request | Sleep
Flow: TypeAlias = Generator[Command, object, T]


def exchange(request: Request) -> Flow[Response]:
    """Exchange one request, once.

    Raises:
        ConnectionFailedError: there was no answer.
        ProtocolError: the answer was too large, a redirect, or encoded.
    """
    answer = yield request
    if not isinstance(answer, Response):
        raise TypeError("a driver answers a request with a response")
    return answer


def sleep(seconds: float) -> Flow[None]:
    """Wait."""
    yield Sleep(seconds)


class Sync:
    """Marks a client whose calls block."""


class Async:
    """Marks a client whose calls are awaited."""


Mode = TypeVar("Mode", Sync, Async)


class Runner(Protocol):
    """Performs flows."""

    def run(self, flow: Flow[Any]) -> Any:  # noqa: ANN401 -- the result, or an awaitable of it
        """Perform `flow`: return its result, or a coroutine that does."""


class Bound(Generic[Mode]):
    """Something whose operations are performed by a runner."""

    _runner: Runner


class Operation(Generic[P, T]):
    """A method written as a flow: blocks on what is bound to `Sync`, is awaited on what is bound to `Async`."""

    def __init__(self, flow: Callable[Concatenate[Any, P], Flow[T]]) -> None:
        self.flow = flow
        self.__doc__ = flow.__doc__
        self.__wrapped__ = flow

    @overload
    def __get__(self, instance: None, owner: object) -> Operation[P, T]: ...
    @overload
    def __get__(self, instance: Bound[Sync], owner: object) -> Callable[P, T]: ...
    @overload
    def __get__(self, instance: Bound[Async], owner: object) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, instance: Bound[Any] | None, owner: object) -> object:
        """Return the method bound to `instance`."""
        if instance is None:
            return self

        @functools.wraps(self.flow)
        def call(*args: P.args, **kwargs: P.kwargs) -> object:
            return instance._runner.run(self.flow(instance, *args, **kwargs))  # noqa: SLF001 -- its own base class

        return call
