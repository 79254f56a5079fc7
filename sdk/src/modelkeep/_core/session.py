"""One server and one login: sends calls with a token, logs in again once on a 401, and raises typed errors."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from modelkeep._core.answers import error_of, is_success, json_of
from modelkeep._core.decode import decode, fields_of
from modelkeep._core.flows import MAX_ANSWER_BYTES, Flow, Repeat, Request, Response, Sink
from modelkeep._core.site import Auth, Site
from modelkeep._core.unacknowledged import warn_unacknowledged
from modelkeep._core.urls import path
from modelkeep.errors import ConfigurationError, ProtocolError

T = TypeVar("T")
_PAGE: Final = 200
_MAX_ITEMS: Final = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Sends calls to one server.

    Attributes:
        site: the server.
        auth: how to log in; None for calls that need no login.
    """

    site: Site
    auth: Auth | None

    def send(
        self,
        method: str,
        *segments: str | int,
        query: Mapping[str, str | int | None] | None = None,
        body: object = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        max_bytes: int = MAX_ANSWER_BYTES,
        sink: Callable[[], Sink] | None = None,
        accept: str = "application/json",
        keyed: bool = True,
        repeat: Repeat = Repeat.SAFE,
    ) -> Flow[Response]:
        """Send one call and return its successful answer; warn if server processes have not seen what it changed.

        Args:
            method: the HTTP method.
            *segments: of the path, not yet encoded.
            query: parameters; those that are None are left out.
            body: sent as JSON, unless None.
            content: sent as it is, instead of `body`.
            headers: more headers.
            max_bytes: the largest answer that is read.
            sink: takes the answer's body.
            accept: the media type wanted.
            keyed: whether a POST gets an idempotency key, the same for all its attempts.
            repeat: when the call may be sent again.

        Raises:
            APIError: the server refused or failed.
            ConnectionFailedError: there was no answer.
            ProtocolError: the answer breaks the protocol.
        """
        request = Request(
            method=method,
            url=self.site.base_url + path(*segments, query=query),
            headers={
                "accept": accept,
                **({} if body is None else {"content-type": "application/json"}),
                **({} if content is None else {"content-type": "application/octet-stream"}),
                **({"idempotency-key": uuid.uuid4().hex} if keyed and method == "POST" else {}),
                **(headers or {}),
            },
            content=content if body is None else to_json(body),
            max_bytes=max_bytes,
            sink=sink,
            repeat=repeat,
        )
        response = yield from self._authenticated(request)
        warn_unacknowledged(response)
        if not is_success(response):
            raise error_of(response)
        return response

    def json(self, method: str, *segments: str | int, **options: Any) -> Flow[Any]:  # noqa: ANN401 -- those of `send`
        """Send one call and return the JSON of its answer."""
        response = yield from self.send(method, *segments, **options)
        return json_of(response)

    def get(self, wanted: type[T], *segments: str | int, **options: Any) -> Flow[T]:  # noqa: ANN401
        """Read one object."""
        return decode(wanted, (yield from self.json("GET", *segments, **options)))

    def post(self, wanted: type[T], *segments: str | int, **options: Any) -> Flow[T]:  # noqa: ANN401
        """Send a POST and read the object it answers with."""
        return decode(wanted, (yield from self.json("POST", *segments, **options)))

    def delete(self, *segments: str | int) -> Flow[None]:
        """Delete one object."""
        yield from self.send("DELETE", *segments)

    def list(
        self,
        wanted: type[T],
        *segments: str | int,
        limit: int | None = None,
        query: Mapping[str, str | int | None] | None = None,
    ) -> Flow[list[T]]:
        """Read a list, page after page, until its end or until `limit` items.

        Raises:
            ProtocolError: the pages go in a circle, or do not end.
        """
        items: list[T] = []
        cursor: str | None = None
        seen: set[str] = set()
        while True:
            want = _PAGE if limit is None else min(_PAGE, limit - len(items))
            if want <= 0:
                return items
            page = fields_of(
                (yield from self.json("GET", *segments, query={**(query or {}), "limit": want, "cursor": cursor})),
                "list",
            )
            found = page.get("items")
            if not isinstance(found, list) or len(found) > want:
                raise ProtocolError("a page of the server's list is not one, or holds more than was asked for")
            items += [decode(wanted, item) for item in found]
            cursor = page.get("next_cursor")
            if cursor is None:
                return items
            if not isinstance(cursor, str) or cursor in seen or len(items) > _MAX_ITEMS:
                raise ProtocolError("the server's list does not end")
            seen.add(cursor)

    def _authenticated(self, request: Request) -> Flow[Response]:
        if self.auth is None:
            return (yield from self.site.retrying.send(request))
        token = yield from self.auth.token(self.site, rejected=None)
        response = yield from self.site.retrying.send(_with_token(request, token))
        if response.status != 401:  # noqa: PLR2004 -- RFC 9110's number is the name
            return response
        again = yield from self.auth.token(self.site, rejected=token)
        if again == token:
            return response
        return (yield from self.site.retrying.send(_with_token(request, again)))


def to_json(value: object) -> bytes:
    """Return `value` as JSON.

    Raises:
        ConfigurationError: it is not JSON: an unknown type, NaN, an infinity.
    """
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as exc:
        raise ConfigurationError(f"what is to be sent cannot be written as JSON: {exc}") from exc


def check_same(wanted: str | int, found: str | int, what: str) -> None:
    """Check that an answer speaks of what was asked for.

    Raises:
        ProtocolError: it speaks of something else.
    """
    if wanted != found:
        raise ProtocolError(f"the server answered for another {what}, `{found}`, than for `{wanted}`")


def _with_token(request: Request, token: str) -> Request:
    return replace(request, headers={**request.headers, "authorization": f"Bearer {token}"})
