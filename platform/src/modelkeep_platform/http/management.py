"""The management API: turns declared endpoints into Starlette routes.

Order of each request: route, authenticate, read the body under its limit, parse, call the handler in a thread,
answer. An unknown path or method gets the same envelope as every other error.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from modelkeep_platform.core import strictjson
from modelkeep_platform.core.callers import Caller
from modelkeep_platform.core.errors import CallerError, MalformedError, NotFoundError, UnauthenticatedError
from modelkeep_platform.core.ids import RequestId
from modelkeep_platform.http.answers import encode, error_response, json_response
from modelkeep_platform.http.bodies import read_body
from modelkeep_platform.http.idempotency import IdempotencyStore
from modelkeep_platform.http.routing import Call, Endpoint, Public, parse_body


class MethodNotAllowedError(CallerError):
    """The path exists, but not with this method."""

    code = "method_not_allowed"


class CallerSource(Protocol):
    """Turns a bearer token into a caller."""

    def authenticate(self, token: str, request_id: RequestId) -> Caller:
        """Verify `token`; may read the database."""

    def cached(self, token: str, request_id: RequestId) -> Caller | None:
        """Return the caller of a token verified before in this epoch, from memory."""


class Management:
    """Builds the Starlette application of `/v1`.

    Args:
        endpoints: everything that is served.
        authenticator: verifies tokens.
        idempotency: keeps answers by `Idempotency-Key`.
        base_url: the platform's own address.
    """

    def __init__(
        self,
        *,
        endpoints: Iterable[Endpoint],
        authenticator: CallerSource,
        idempotency: IdempotencyStore,
        base_url: str,
    ) -> None:
        self.endpoints = tuple(endpoints)
        self._authenticator = authenticator
        self._idempotency = idempotency
        self._metadata = f"{base_url}/.well-known/oauth-protected-resource"

    def app(self, more: Iterable[BaseRoute] = ()) -> Starlette:
        """Return the application, with `more` routes (the issuer's pages) beside its own."""
        routes: list[BaseRoute] = [
            Route(endpoint.path, partial(self._serve, endpoint), methods=[endpoint.method])
            for endpoint in self._grouped()
        ]
        return Starlette(routes=[*routes, *more], exception_handlers={HTTPException: self._refuse_path})

    def _grouped(self) -> list[Endpoint]:
        # Literal paths before templates, so that `/v1/policies/check` is not a version named `check`.
        return sorted(self.endpoints, key=lambda endpoint: [part.startswith("{") for part in endpoint.path.split("/")])

    async def _serve(self, endpoint: Endpoint, request: Request) -> Response:
        request_id: RequestId = request.scope["request_id"]
        try:
            caller = None if isinstance(endpoint.guard, Public) else await self._caller(request, request_id)
            raw = b"" if endpoint.body is None else await read_body(request, endpoint.limit_bytes)
            return await run_in_threadpool(self._answer, endpoint, request, caller, raw, request_id)
        except Exception as exc:  # noqa: BLE001 -- the edge: everything becomes an envelope
            return error_response(exc, request_id=request_id, resource_metadata=self._metadata)

    async def _caller(self, request: Request, request_id: RequestId) -> Caller:
        token = bearer(request.headers.getlist("authorization"))
        cached = self._authenticator.cached(token, request_id)
        if cached is not None:
            return cached
        return await run_in_threadpool(self._authenticator.authenticate, token, request_id)

    def _answer(
        self, endpoint: Endpoint, request: Request, caller: Caller | None, raw: bytes, request_id: RequestId
    ) -> Response:
        call = Call(
            request_id=request_id,
            source=request.client.host if request.client else "",
            caller=caller,
            path=request.path_params,
            query=_query(request, endpoint),
            headers=request.headers,
            body=self._parsed(endpoint, raw),
            raw=raw,
        )
        key = request.headers.get("idempotency-key")
        if key is None or caller is None or endpoint.method != "POST":
            result = endpoint.handler(call)
            if isinstance(result, Response):
                result.headers["x-request-id"] = request_id
                return result
            return self._json(endpoint, result, request_id)
        named = f"{endpoint.method} {request.url.path}\n".encode() + raw
        status, body = self._idempotency.once(
            caller,
            key,
            named,
            lambda: (endpoint.status, encode(endpoint.handler(call))),
            replayable=endpoint.replayable,
        )
        return json_response(body, status=status, request_id=request_id)

    def _parsed(self, endpoint: Endpoint, raw: bytes) -> Any:  # noqa: ANN401 -- the endpoint's own type
        if endpoint.body is None or endpoint.body is bytes:
            return None
        return parse_body(strictjson.loads(raw, max_bytes=endpoint.limit_bytes), endpoint.body)

    def _json(self, endpoint: Endpoint, result: object, request_id: RequestId) -> Response:
        if endpoint.returns is None:
            return Response(status_code=204, headers={"x-request-id": request_id})
        return json_response(encode(result), status=endpoint.status, request_id=request_id)

    async def _refuse_path(self, request: Request, exc: Exception) -> Response:
        status = exc.status_code if isinstance(exc, HTTPException) else 404
        error: CallerError
        if status == 405:  # noqa: PLR2004 -- RFC 9110's number is the name
            error = MethodNotAllowedError("this path has no such method")
        else:
            error = NotFoundError("there is no such path; the reference lists them", code="no_such_path")
        response = error_response(error, request_id=request.scope["request_id"], resource_metadata=self._metadata)
        if isinstance(exc, HTTPException) and exc.headers:
            response.headers.update(exc.headers)
        return response


def bearer(headers: list[str]) -> str:
    """Return the token of the one Authorization header.

    Raises:
        UnauthenticatedError: none, several, or another scheme.
    """
    if len(headers) != 1:
        raise UnauthenticatedError(
            "send one Authorization header with a bearer token; log in first", code="token_missing"
        )
    scheme, _, token = headers[0].partition(" ")
    if scheme.lower() != "bearer" or not token or not token.isascii():
        raise UnauthenticatedError("the Authorization header is not a bearer token; log in first", code="token_missing")
    return token


def _query(request: Request, endpoint: Endpoint) -> dict[str, str]:
    query: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in endpoint.query or name in query:
            raise MalformedError(
                f"the query parameter `{name[:80]}` is unknown here or given twice", code="invalid_parameter"
            )
        query[name] = value
    return query
