"""The management API: turns declared endpoints into Starlette routes.

Order of each request: route, authenticate, read the body under its limit, parse, call the handler in a thread,
answer. An unknown path or method gets the same envelope as every other error.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Final, Protocol

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from modelkeep_platform.core import strictjson
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import Caller
from modelkeep_platform.core.errors import CallerError, MalformedError, NotFoundError, UnauthenticatedError
from modelkeep_platform.core.ids import RequestId
from modelkeep_platform.http.answers import (
    MethodNotAllowedError,
    announced,
    code_of,
    encode,
    error_response,
    json_response,
)
from modelkeep_platform.http.bodies import BODY_TIMEOUT_S, read_body
from modelkeep_platform.http.downloads import Download
from modelkeep_platform.http.idempotency import IdempotencyStore
from modelkeep_platform.http.refusals import CALLER, Notes, noted
from modelkeep_platform.http.routing import MAX_QUERY_CHARS, Call, Endpoint, Public, parse_body
from modelkeep_platform.http.watch import CODE, matched
from modelkeep_platform.limits.rates import Standing
from modelkeep_platform.limits.service import RequestLimitError, RequestLimits
from modelkeep_platform.limits.service import headers as limit_headers

"""Names the server processes that had not seen a change within a second."""

_REQUEST: Final = "request"


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
        limits: counts requests and those under way.
        notes: where refusals of known callers are noted that no policy decided.
        body_timeout_s: how long a body may take to arrive, in seconds.
        unacknowledged: names the server processes that had not seen this thread's change in time.
    """

    def __init__(
        self,
        *,
        endpoints: Iterable[Endpoint],
        authenticator: CallerSource,
        idempotency: IdempotencyStore,
        base_url: str,
        limits: RequestLimits,
        notes: Notes,
        body_timeout_s: float = BODY_TIMEOUT_S,
        unacknowledged: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self.endpoints = tuple(endpoints)
        self._authenticator = authenticator
        self._idempotency = idempotency
        self._limits = limits
        self._notes = notes
        self._body_timeout_s = body_timeout_s
        self._unacknowledged = unacknowledged
        self._metadata = f"{base_url}/.well-known/oauth-protected-resource"

    def app(self, more: Iterable[BaseRoute] = ()) -> Starlette:
        """Return the application, with `more` routes (the issuer's pages) beside its own."""
        routes: list[BaseRoute] = [
            Route(path, partial(self._dispatch, methods), methods=sorted(methods))
            for path, methods in self._grouped().items()
        ]
        # A slash too many is no such path: a redirect would name whatever host the client wrote into its request.
        app = Starlette(
            routes=[*routes, *more], exception_handlers={HTTPException: self._refuse_path, Exception: self._fail}
        )
        app.router.redirect_slashes = False
        return app

    def _grouped(self) -> dict[str, dict[str, Endpoint]]:
        """Return the endpoints by path and method.

        Raises:
            ValueError: two answer the same method of the same path; one would never be asked.
        """
        # Literal paths before templates, so that `/v1/policies/check` is not a version named `check`.
        literal_first = sorted(
            self.endpoints, key=lambda endpoint: [part.startswith("{") for part in endpoint.path.split("/")]
        )
        grouped: dict[str, dict[str, Endpoint]] = {}
        for endpoint in literal_first:
            methods = grouped.setdefault(endpoint.path, {})
            if endpoint.method in methods:
                raise ValueError(f"{endpoint.method} {endpoint.path} is registered twice")
            methods[endpoint.method] = endpoint
        return grouped

    async def _dispatch(self, methods: Mapping[str, Endpoint], request: Request) -> Response:
        return await self._serve(methods["GET" if request.method == "HEAD" else request.method], request)

    async def _serve(self, endpoint: Endpoint, request: Request) -> Response:
        request_id: RequestId = request.scope["request_id"]
        route = f"{endpoint.method} {endpoint.path}"
        matched(request.scope, route, endpoint.guard)
        standing: Standing | None = None
        try:
            if isinstance(endpoint.guard, Public):
                return await self._run(endpoint, request, None, request_id)
            caller = request.scope[CALLER] = await self._caller(request, request_id)
            standing = self._limits.admit_now(caller)
            if standing is None:
                standing = await run_in_threadpool(self._limits.admit, caller)
            with ExitStack() as held:
                held.enter_context(await self._limits.place(caller))
                response = await self._run(endpoint, request, caller, request_id)
                if isinstance(response, Download):
                    response.held = held.pop_all()
        except Exception as exc:  # noqa: BLE001 -- the edge: everything becomes an envelope
            answered = noted(
                exc,
                request.scope,
                notes=self._notes,
                action=endpoint.guard if isinstance(endpoint.guard, Action) else _REQUEST,
                route=route,
            )
            request.scope[CODE] = code_of(answered)
            response = error_response(answered, request_id=request_id, resource_metadata=self._metadata)
            if isinstance(exc, RequestLimitError):
                standing = exc.standing
        if standing is not None:
            response.headers.update(limit_headers(standing))
        return response

    async def _run(
        self, endpoint: Endpoint, request: Request, caller: Caller | None, request_id: RequestId
    ) -> Response:
        raw = b""
        if endpoint.body is not None:
            raw = await read_body(
                request.headers.raw,
                request.receive,
                limit_bytes=endpoint.limit_bytes,
                timeout_s=self._body_timeout_s,
            )
        return await run_in_threadpool(self._answered, endpoint, request, caller, raw, request_id)

    async def _caller(self, request: Request, request_id: RequestId) -> Caller:
        token = bearer(request.headers.getlist("authorization"))
        cached = self._authenticator.cached(token, request_id)
        if cached is not None:
            return cached
        return await run_in_threadpool(self._authenticator.authenticate, token, request_id)

    def _answered(
        self, endpoint: Endpoint, request: Request, caller: Caller | None, raw: bytes, request_id: RequestId
    ) -> Response:
        return announced(lambda: self._answer(endpoint, request, caller, raw, request_id), self._unacknowledged)

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
        keys = request.headers.getlist("idempotency-key")
        if len(keys) > 1:
            raise MalformedError("one Idempotency-Key is sent with a request", code="invalid_key")
        if not keys or caller is None or endpoint.method != "POST":
            result = endpoint.handler(call)
            if isinstance(result, Response):
                return result
            return self._json(endpoint, result, request_id)
        # Not `request.url`: that is made with the Host header, which the client writes.
        named = f"{endpoint.method} {request.scope['path']}\n".encode() + raw
        status, body = self._idempotency.once(
            caller,
            keys[0],
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
            return Response(status_code=204)
        return json_response(encode(result), status=endpoint.status, request_id=request_id)

    async def _refuse_path(self, request: Request, exc: Exception) -> Response:
        error: CallerError = NotFoundError("there is no such path; the reference lists them", code="no_such_path")
        if isinstance(exc, HTTPException) and exc.headers and "Allow" in exc.headers:
            error = MethodNotAllowedError(", ".join(sorted(exc.headers["Allow"].split(", "))))
        return self._envelope(request, error)

    async def _fail(self, request: Request, exc: Exception) -> Response:
        return self._envelope(request, exc)

    def _envelope(self, request: Request, error: Exception) -> Response:
        request.scope[CODE] = code_of(error)
        return error_response(error, request_id=request.scope["request_id"], resource_metadata=self._metadata)


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
        if len(value) > MAX_QUERY_CHARS:
            raise MalformedError(
                f"the query parameter `{name}` has more than {MAX_QUERY_CHARS} characters", code="invalid_parameter"
            )
        query[name] = value
    return query
