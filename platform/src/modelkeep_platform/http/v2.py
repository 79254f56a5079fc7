"""The data plane: Open Inference Protocol V2 over REST, in JSON. A raw ASGI application, by-passing the router.

The path of a prediction that was allowed before in this epoch touches no database and no disk: token, decision and
version come from memory. Whatever is not in memory is looked up in a thread. Errors have the protocol's one shape.
"""

import asyncio
import logging
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol

import msgspec
from starlette.responses import Response

from modelkeep_platform import __version__
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import Caller, TenantCaller
from modelkeep_platform.core.epoch_cache import EpochCache
from modelkeep_platform.core.errors import (
    ForbiddenError,
    MalformedError,
    ModelkeepError,
    NotFoundError,
    PlatformError,
    TooLargeError,
    UnprocessableError,
)
from modelkeep_platform.core.events import Event, Outcome
from modelkeep_platform.core.ids import RequestId
from modelkeep_platform.core.limits import MAX_INFER_BYTES
from modelkeep_platform.core.ports import Clock, EpochSource, Recorder
from modelkeep_platform.http.answers import ALWAYS, MethodNotAllowedError, code_of, protocol_error_response
from modelkeep_platform.http.bodies import BODY_TIMEOUT_S, IDENTITY, content_encoding, read_raw
from modelkeep_platform.http.management import CallerSource, bearer
from modelkeep_platform.http.refusals import CALLER, Notes, noted
from modelkeep_platform.http.v2_json import NAMES, check_outputs, encode_answer, parse_request
from modelkeep_platform.http.v2_operations import (
    ModelMetadata,
    ModelReady,
    ServerLive,
    ServerMetadata,
    ServerReady,
    TensorMetadata,
)
from modelkeep_platform.http.watch import ACTION, CODE, INFER, ROUTE, matched
from modelkeep_platform.limits.service import RequestLimitError, RequestLimits
from modelkeep_platform.limits.service import headers as limit_headers
from modelkeep_platform.models.values import ServableVersion
from modelkeep_platform.serving.tensors import Tensor

_log = logging.getLogger(__name__)

_CACHED: Final = 4096
_IN_LINE_BYTES: Final = 128 * 1024
_TEMPLATES: Final = {
    "infer": (INFER, Action.MODEL_PREDICT),
    "ready": ("GET /v2/models/{name}/ready", Action.MODEL_PREDICT),
    "": ("GET /v2/models/{name}", Action.MODEL_PREDICT),
}

Scope = Any
Receive = Any
Send = Any


class VersionSource(Protocol):
    """Decides and resolves versions."""

    def resolve_version(self, caller: TenantCaller, name: str, version: str | None, action: Action) -> ServableVersion:
        """Return the version the caller may use for `action`."""


class Inference(Protocol):
    """The serving port."""

    async def infer(
        self, servable: ServableVersion, inputs: dict[str, Tensor], *, timeout_s: float
    ) -> dict[str, Tensor]:
        """Return the outputs."""


class DataPlane:
    """Serves `/v2`.

    Args:
        authenticator: verifies tokens.
        models: decides and resolves versions.
        serving: computes.
        recorder: notes each prediction.
        epoch: what cached decisions live by.
        clock: ends cached grants.
        limits: counts requests and those under way.
        base_url: the platform's address.
        notes: where refusals of known callers are noted that no policy decided.
        body_timeout_s: how long a body may take to arrive, in seconds.
        ready: raises `UnavailableError` when the server should get no requests; None asks the epoch alone.
    """

    def __init__(
        self,
        *,
        authenticator: CallerSource,
        models: VersionSource,
        serving: Inference,
        recorder: Recorder,
        epoch: EpochSource,
        clock: Clock,
        limits: RequestLimits,
        base_url: str,
        notes: Notes,
        body_timeout_s: float = BODY_TIMEOUT_S,
        ready: Callable[[], object] | None = None,
    ) -> None:
        self._ready = ready or epoch.current
        self._limits = limits
        self._authenticator = authenticator
        self._models = models
        self._serving = serving
        self._recorder = recorder
        self._epoch = epoch
        self._clock = clock
        self._notes = notes
        self._body_timeout_s = body_timeout_s
        self._metadata = f"{base_url}/.well-known/oauth-protected-resource"
        self._known: EpochCache[tuple[object, ...], ServableVersion] = EpochCache(_CACHED)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        request_id: RequestId = scope["request_id"]
        try:
            status, body = await self._route(scope, receive, request_id)
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"x-request-id", request_id.encode()),
                *ALWAYS,
            ]
        except Exception as exc:  # noqa: BLE001 -- the edge: everything becomes the protocol's error
            refused = self._refusal(exc, scope)
            status, body, headers = refused.status_code, bytes(refused.body), list(refused.raw_headers)
            if isinstance(exc, RequestLimitError):
                scope["standing"] = exc.standing
        standing = scope.get("standing")
        if standing is not None:
            headers += [(key.encode(), value.encode()) for key, value in limit_headers(standing).items()]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _refusal(self, error: Exception, scope: Scope) -> Response:
        # Reasons of a refusal are part of the text: the protocol has one string, and no more.
        # A caller is known only after the route was matched: what decides it is what the entry names.
        action, route = scope.get(ACTION, Action.MODEL_PREDICT), scope.get(ROUTE, INFER)
        error = noted(error, scope, notes=self._notes, action=action, route=route)
        scope[CODE] = code_of(error)
        return protocol_error_response(error, request_id=scope["request_id"], resource_metadata=self._metadata)

    async def _route(self, scope: Scope, receive: Receive, request_id: RequestId) -> tuple[int, bytes]:
        parts = scope["path"].split("/")[2:]
        method = scope["method"]
        match parts:
            case ["health", "live"]:
                matched(scope, "GET /v2/health/live", None)
                _method(method, "GET")
                return 200, msgspec.json.encode(ServerLive(live=True))
            case ["health", "ready"]:
                matched(scope, "GET /v2/health/ready", None)
                _method(method, "GET")
                await asyncio.to_thread(self._ready)
                return 200, msgspec.json.encode(ServerReady(ready=True))
            case []:
                matched(scope, "GET /v2", None)
                _method(method, "GET")
                return 200, _server()
            case ["models", name, *rest]:
                version, verb = _version_and_verb(rest)
                # One template for a model and its versions: what is counted is what was asked of it.
                matched(scope, *_TEMPLATES[verb])
                caller = await self._caller(scope, request_id)
                standing = self._limits.admit_now(caller) or await asyncio.to_thread(self._limits.admit, caller)
                scope["standing"] = standing
                with await self._limits.place(caller):
                    await self._limits.turn(caller)
                    return await self._model(scope, receive, caller, (name, version, verb))
            case _:
                raise NotFoundError("there is no such path; the reference lists them", code="no_such_path")

    async def _model(
        self, scope: Scope, receive: Receive, caller: TenantCaller, asked: tuple[str, str | None, str]
    ) -> tuple[int, bytes]:
        name, version, verb = asked
        if verb == "infer":
            _method(scope["method"], "POST")
            return await self._infer(scope, receive, caller, name, version)
        _method(scope["method"], "GET")
        # Whoever may predict may know what a prediction takes; and whoever may not has no business on this plane.
        servable = await self._servable(caller, name, version, Action.MODEL_PREDICT)
        return 200, _metadata(name, servable) if verb == "" else _ready(name)

    async def _infer(
        self, scope: Scope, receive: Receive, caller: TenantCaller, name: str, version: str | None
    ) -> tuple[int, bytes]:
        servable = await self._servable(caller, name, version, Action.MODEL_PREDICT)
        body = await _body(scope, receive, self._body_timeout_s)
        # Megabytes of numbers are parsed and written in a thread, so that they do not hold up the others.
        request = parse_request(body) if len(body) < _IN_LINE_BYTES else await asyncio.to_thread(parse_request, body)
        names = tuple(output.name for output in servable.graph.outputs)
        check_outputs(request, names)
        try:
            outputs = await self._serving.infer(servable, request.inputs, timeout_s=request.timeout_s)
            await self._limits.turn(caller)
            encode = partial(
                encode_answer, model=name, version=servable.version, request=request, outputs=outputs, names=names
            )
            small = sum(len(tensor.data) for tensor in outputs.values()) < _IN_LINE_BYTES
            answer = encode() if small else await asyncio.to_thread(encode)
        except Exception as exc:
            code = exc.error_code if isinstance(exc, ModelkeepError) else PlatformError.code
            self._record(caller, servable, Outcome.FAILED, code)
            if isinstance(exc, ModelkeepError):
                exc.recorded = True
            raise
        # INVARIANT: no answer leaves before its entry is queued; a log that takes no entries stops predictions.
        self._record(caller, servable, Outcome.DONE, "")
        return 200, answer

    def _record(self, caller: TenantCaller, servable: ServableVersion, outcome: Outcome, code: str) -> None:
        facts: dict[str, str | int | bool] = {"version": servable.version}
        if code:
            facts["error"] = code
        self._recorder.record_soon(
            Event(
                tenant=servable.ref.owner,
                action=Action.MODEL_PREDICT,
                outcome=outcome,
                actor=caller,
                ref=servable.ref,
                decision=servable.decision,
                facts=facts,
            )
        )

    async def _caller(self, scope: Scope, request_id: RequestId) -> TenantCaller:
        token = bearer([value.decode("latin-1") for key, value in scope["headers"] if key == b"authorization"])
        caller: Caller | None = self._authenticator.cached(token, request_id)
        if caller is None:
            caller = await asyncio.to_thread(self._authenticator.authenticate, token, request_id)
        scope[CALLER] = caller
        if not isinstance(caller, TenantCaller):
            raise ForbiddenError(
                "models belong to tenants; an operator has no access to them", code="operator_forbidden"
            )
        return caller

    async def _servable(self, caller: TenantCaller, name: str, version: str | None, action: Action) -> ServableVersion:
        # INVARIANT: tenant, principal and roles are part of the key, so is the owner of a granted model, by the name it
        # is asked for by. An entry lives for one epoch, and no longer than the grant it was decided by.
        key = (caller.tenant, caller.principal, caller.roles, name, version, action)
        epoch = self._epoch.current()
        known = self._known.get(key, epoch=epoch)
        if known is not None and not known.decision.ended(self._clock):
            return known
        servable = await asyncio.to_thread(self._models.resolve_version, caller, name, version, action)
        self._known.put(key, servable, epoch=epoch)
        return servable


def _method(given: str, allowed: str) -> None:
    if given != allowed:
        raise MethodNotAllowedError(allowed)


def _version_and_verb(rest: list[str]) -> tuple[str | None, str]:
    version: str | None = None
    if rest[:1] == ["versions"] and len(rest) > 1:
        version, rest = rest[1], rest[2:]
    verb = rest[0] if len(rest) == 1 else ""
    if len(rest) > 1 or verb not in {"", "ready", "infer"}:
        raise NotFoundError("there is no such path; the reference lists them", code="no_such_path")
    return version, verb


async def _body(scope: Scope, receive: Receive, timeout_s: float) -> bytes:
    headers = scope["headers"]
    if any(name == b"inference-header-content-length" for name, _ in headers):
        raise UnprocessableError("binary tensors are not taken; send `data` in JSON", code="binary_not_supported")
    raw = await read_raw(headers, receive, limit_bytes=MAX_INFER_BYTES, timeout_s=timeout_s)
    encoding = content_encoding(headers)
    if encoding == IDENTITY:
        return raw
    if encoding != b"gzip":
        raise MalformedError("the Content-Encoding is gzip or none", code="encoding_refused")
    return _inflated(raw) if len(raw) < _IN_LINE_BYTES // 8 else await asyncio.to_thread(_inflated, raw)


def _inflated(raw: bytes) -> bytes:
    inflater = zlib.decompressobj(wbits=31)
    try:
        inflated = inflater.decompress(raw, MAX_INFER_BYTES)
        if inflater.unconsumed_tail or (not inflater.eof and inflater.decompress(b"", 1)):
            raise _too_large()
    except zlib.error as exc:
        raise MalformedError("the body is not gzip", code="invalid_gzip") from exc
    if not inflater.eof or inflater.unused_data:
        raise MalformedError("the body is not one whole gzip member", code="invalid_gzip")
    return inflated


def _too_large() -> TooLargeError:
    return TooLargeError(f"the body is larger than the limit of {MAX_INFER_BYTES} bytes; send fewer rows")


def _server() -> bytes:
    return msgspec.json.encode(ServerMetadata(name="modelkeep", version=__version__, extensions=[]))


def _ready(name: str) -> bytes:
    return msgspec.json.encode(ModelReady(name=name, ready=True))


def _metadata(name: str, servable: ServableVersion) -> bytes:
    def shown(tensors: Any) -> list[TensorMetadata]:  # noqa: ANN401 -- inputs or outputs
        return [TensorMetadata(name=t.name, datatype=NAMES[t.dtype], shape=list(t.shape)) for t in tensors]

    return msgspec.json.encode(
        ModelMetadata(
            name=name,
            platform="modelkeep_graph",
            versions=[str(servable.version)],
            inputs=shown(servable.graph.inputs),
            outputs=shown(servable.graph.outputs),
        )
    )
