"""The data plane: Open Inference Protocol V2 over REST, in JSON. A raw ASGI application, by-passing the router.

The path of a prediction that was allowed before in this epoch touches no database and no disk: token, decision and
version come from memory. Whatever is not in memory is looked up in a thread. Errors have the protocol's one shape.
"""

import asyncio
import logging
import math
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec
import numpy as np

from modelkeep_platform import __version__
from modelkeep_platform.core import strictjson
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import Caller, TenantCaller
from modelkeep_platform.core.errors import (
    CallerError,
    DeadlineError,
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
from modelkeep_platform.http.management import CallerSource, bearer
from modelkeep_platform.http.status import status_of
from modelkeep_platform.models.values import ServableVersion
from modelkeep_platform.serving.tensors import Tensor

_log = logging.getLogger(__name__)

_DTYPES: Final = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "FP32": "float32",
    "FP64": "float64",
}
_NAMES: Final = {dtype: name for name, dtype in _DTYPES.items()}
_CACHED: Final = 4096
_DEFAULT_TIMEOUT_S: Final = 30.0
_MAX_TIMEOUT_S: Final = 300.0
_BODY_TIMEOUT_S: Final = 60.0
_MAX_RANK: Final = 8

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


class _Input(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    shape: list[int]
    datatype: str
    data: list[Any]
    parameters: dict[str, Any] = {}


class _Output(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    parameters: dict[str, Any] = {}


class _Infer(msgspec.Struct, forbid_unknown_fields=True):
    inputs: list[_Input]
    id: str = ""
    parameters: dict[str, Any] = {}
    outputs: list[_Output] = []


_decoder: Final = msgspec.json.Decoder(_Infer)


@dataclass(frozen=True, slots=True)
class _Known:
    epoch: int
    servable: ServableVersion


class DataPlane:
    """Serves `/v2`.

    Args:
        authenticator: verifies tokens.
        models: decides and resolves versions.
        serving: computes.
        recorder: notes each prediction.
        epoch: what cached decisions live by.
        clock: ends cached grants.
        base_url: the platform's address.
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
        base_url: str,
    ) -> None:
        self._authenticator = authenticator
        self._models = models
        self._serving = serving
        self._recorder = recorder
        self._epoch = epoch
        self._clock = clock
        self._challenge = f'Bearer resource_metadata="{base_url}/.well-known/oauth-protected-resource"'
        self._known: OrderedDict[tuple[object, ...], _Known] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        request_id: RequestId = scope["request_id"]
        headers: list[tuple[bytes, bytes]] = []
        try:
            status, body = await self._route(scope, receive, request_id)
        except Exception as exc:  # noqa: BLE001 -- the edge: everything becomes the protocol's error
            status, body, headers = self._refusal(exc, request_id)
        sent = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"x-request-id", request_id.encode()),
            (b"cache-control", b"no-store"),
            *headers,
        ]
        await send({"type": "http.response.start", "status": status, "headers": sent})
        await send({"type": "http.response.body", "body": body})

    async def _route(self, scope: Scope, receive: Receive, request_id: RequestId) -> tuple[int, bytes]:
        parts = scope["path"].split("/")[2:]
        method = scope["method"]
        match parts:
            case ["health", "live"]:
                _method(method, "GET")
                return 200, b'{"live":true}'
            case ["health", "ready"]:
                _method(method, "GET")
                self._epoch.current()
                return 200, b'{"ready":true}'
            case []:
                _method(method, "GET")
                return 200, _server()
            case ["models", name, *rest]:
                version, verb = _version_and_verb(rest)
                caller = await self._caller(scope, request_id)
                if verb == "infer":
                    _method(method, "POST")
                    return await self._infer(scope, receive, caller, name, version)
                _method(method, "GET")
                servable = await self._servable(caller, name, version, Action.MODEL_READ)
                return 200, _metadata(name, servable) if verb == "" else _ready(name)
            case _:
                raise NotFoundError("there is no such path; the reference lists them", code="no_such_path")

    async def _infer(
        self, scope: Scope, receive: Receive, caller: TenantCaller, name: str, version: str | None
    ) -> tuple[int, bytes]:
        servable = await self._servable(caller, name, version, Action.MODEL_PREDICT)
        request = _decode(await _body(scope, receive))
        inputs = {item.name: _tensor(item) for item in request.inputs}
        if len(inputs) != len(request.inputs):
            raise UnprocessableError("an input is given twice", code="invalid_input")
        wanted = _wanted(request, servable)
        event = Event(
            tenant=servable.ref.owner,
            action=Action.MODEL_PREDICT,
            outcome=Outcome.DONE,
            actor=caller,
            ref=servable.ref,
            decision=servable.decision,
            facts={"version": servable.version},
        )
        self._recorder.record_soon(event)
        outputs = await self._serving.infer(servable, inputs, timeout_s=_timeout(request.parameters))
        answer: dict[str, Any] = {"model_name": name, "model_version": str(servable.version)}
        if request.id:
            answer["id"] = request.id
        answer["outputs"] = [_output(output, outputs[output]) for output in wanted]
        return 200, msgspec.json.encode(answer)

    async def _caller(self, scope: Scope, request_id: RequestId) -> TenantCaller:
        token = bearer([value.decode("latin-1") for key, value in scope["headers"] if key == b"authorization"])
        caller: Caller | None = self._authenticator.cached(token, request_id)
        if caller is None:
            caller = await asyncio.to_thread(self._authenticator.authenticate, token, request_id)
        if not isinstance(caller, TenantCaller):
            raise ForbiddenError(
                "models belong to tenants; an operator has no access to them", code="operator_forbidden"
            )
        return caller

    async def _servable(self, caller: TenantCaller, name: str, version: str | None, action: Action) -> ServableVersion:
        # INVARIANT: tenant, principal and roles are part of the key, and an entry lives for one epoch.
        key = (caller.tenant, caller.principal, caller.roles, name, version, action)
        epoch = self._epoch.current()
        known = self._known.get(key)
        if known is not None and known.epoch == epoch:
            return known.servable
        servable = await asyncio.to_thread(self._models.resolve_version, caller, name, version, action)
        if servable.decision.grant_id is None:
            # A granted version is decided each time (from the authorizer's memory): grants end by the clock.
            self._known[key] = _Known(epoch, servable)
            while len(self._known) > _CACHED:
                self._known.popitem(last=False)
        return servable

    def _refusal(self, error: Exception, request_id: RequestId) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
        if not isinstance(error, ModelkeepError):
            _log.error("request %s failed", request_id, exc_info=error)
            error = PlatformError("something went wrong on the platform; the operator finds it by the request id")
        status = status_of(error)
        headers: list[tuple[bytes, bytes]] = [(b"x-error-code", error.error_code.encode())]
        if status == 401:  # noqa: PLR2004 -- RFC 9110's number is the name
            headers.append((b"www-authenticate", self._challenge.encode()))
        if isinstance(error, _MethodError):
            headers.append((b"allow", error.allowed.encode()))
        # Reasons of a refusal are part of the text: the protocol has one string, and no more.
        return status, msgspec.json.encode({"error": error.message}), headers


class _MethodError(CallerError):
    code = "method_not_allowed"

    def __init__(self, allowed: str) -> None:
        super().__init__(f"this path takes {allowed}")
        self.allowed = allowed


def _method(given: str, allowed: str) -> None:
    if given != allowed:
        raise _MethodError(allowed)


def _version_and_verb(rest: list[str]) -> tuple[str | None, str]:
    version: str | None = None
    if rest[:1] == ["versions"] and len(rest) > 1:
        version, rest = rest[1], rest[2:]
    verb = rest[0] if len(rest) == 1 else ""
    if len(rest) > 1 or verb not in {"", "ready", "infer"}:
        raise NotFoundError("there is no such path; the reference lists them", code="no_such_path")
    return version, verb


async def _body(scope: Scope, receive: Receive) -> bytes:
    encoding, declared = b"identity", None
    for key, value in scope["headers"]:
        if key == b"content-encoding":
            encoding = value
        elif key == b"content-length":
            declared = value
        elif key == b"inference-header-content-length":
            raise UnprocessableError("binary tensors are not taken; send `data` in JSON", code="binary_not_supported")
    if declared is not None and (not declared.isdigit() or int(declared) > MAX_INFER_BYTES):
        raise _too_large()
    raw = await _read(receive)
    if encoding == b"identity":
        return raw
    if encoding != b"gzip":
        raise MalformedError("the Content-Encoding is gzip or none", code="encoding_refused")
    inflater = zlib.decompressobj(wbits=31)
    try:
        inflated = inflater.decompress(raw, MAX_INFER_BYTES)
    except zlib.error as exc:
        raise MalformedError("the body is not gzip") from exc
    if inflater.unconsumed_tail or not inflater.eof:
        raise _too_large()
    return inflated


async def _read(receive: Receive) -> bytes:
    chunks: list[bytes] = []
    size, more = 0, True
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise MalformedError("the connection closed before the body was whole")
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > MAX_INFER_BYTES:
                    raise _too_large()
                chunks.append(chunk)
                more = message.get("more_body", False)
    except TimeoutError as exc:
        raise DeadlineError("the body did not arrive in time", code="body_timeout") from exc
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_large() -> TooLargeError:
    return TooLargeError(f"the body is larger than the limit of {MAX_INFER_BYTES} bytes; send fewer rows")


def _decode(raw: bytes) -> _Infer:
    strictjson.check_structure(raw, max_depth=_MAX_RANK + 8)
    try:
        return _decoder.decode(raw)
    except msgspec.ValidationError as exc:
        text = str(exc)
        raise MalformedError(f"the body is not an inference request: {text[:1].lower()}{text[1:]}") from exc
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise MalformedError("the body is not JSON", code="invalid_json") from exc


def _tensor(item: _Input) -> Tensor:
    dtype = _DTYPES.get(item.datatype)
    if dtype is None:
        raise UnprocessableError(
            f"the datatype of `{item.name[:80]}` is one of {', '.join(_DTYPES)}", code="invalid_input"
        )
    if len(item.shape) > _MAX_RANK or any(size < 0 for size in item.shape):
        raise UnprocessableError(f"the shape of `{item.name[:80]}` is not one", code="invalid_input")
    try:
        array = np.asarray(item.data)
    except (ValueError, OverflowError) as exc:
        raise UnprocessableError(f"the data of `{item.name[:80]}` is ragged or mixed", code="invalid_input") from exc
    if array.size != math.prod(item.shape):
        raise UnprocessableError(
            f"the data of `{item.name[:80]}` has {array.size} elements, its shape {math.prod(item.shape)}",
            code="invalid_input",
        )
    return Tensor(dtype, tuple(item.shape), _cast(array, dtype, item.name).tobytes())


def _cast(array: "np.ndarray[Any, Any]", dtype: str, name: str) -> "np.ndarray[Any, Any]":
    """Return the array as `dtype`, refusing what would change its values' kind or overflow."""
    kinds = {"bool": "b", "uint8": "iu", "int32": "iu", "int64": "iu", "float32": "iuf", "float64": "iuf"}[dtype]
    if array.size and array.dtype.kind not in kinds:
        raise UnprocessableError(f"the data of `{name[:80]}` is not of its datatype", code="invalid_input")
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    if array.dtype.kind in "iu" and cast.dtype.kind in "iu" and not np.array_equal(cast, array):
        raise UnprocessableError(f"the data of `{name[:80]}` overflows its datatype", code="invalid_input")
    if cast.dtype.kind == "f" and not np.isfinite(cast).all():
        raise UnprocessableError(f"the data of `{name[:80]}` is not finite in its datatype", code="invalid_input")
    return cast


def _wanted(request: _Infer, servable: ServableVersion) -> list[str]:
    names = [output.name for output in servable.graph.outputs]
    if not request.outputs:
        return names
    wanted = [output.name for output in request.outputs]
    if len(set(wanted)) != len(wanted) or not set(wanted) <= set(names):
        raise UnprocessableError(f"the outputs of this model are {', '.join(names)}", code="invalid_output")
    return wanted


def _timeout(parameters: dict[str, Any]) -> float:
    given = parameters.get("timeout_ms")
    if given is None:
        return _DEFAULT_TIMEOUT_S
    if not isinstance(given, int) or isinstance(given, bool) or not 0 < given <= _MAX_TIMEOUT_S * 1000:
        raise UnprocessableError(f"`timeout_ms` is 1 to {_MAX_TIMEOUT_S * 1000:.0f}", code="invalid_parameter")
    return given / 1000


def _output(name: str, tensor: Tensor) -> dict[str, Any]:
    array = np.frombuffer(tensor.data, dtype=tensor.dtype)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UnprocessableError("the model's answer is not finite for these inputs", code="inference_failed")
    return {"name": name, "datatype": _NAMES[tensor.dtype], "shape": tensor.shape, "data": array.tolist()}


def _server() -> bytes:
    return msgspec.json.encode({"name": "modelkeep", "version": __version__, "extensions": []})


def _ready(name: str) -> bytes:
    return msgspec.json.encode({"name": name, "ready": True})


def _metadata(name: str, servable: ServableVersion) -> bytes:
    def shown(tensors: Any) -> list[dict[str, Any]]:  # noqa: ANN401 -- inputs or outputs
        return [{"name": t.name, "datatype": _NAMES[t.dtype], "shape": t.shape} for t in tensors]

    return msgspec.json.encode(
        {
            "name": name,
            "platform": "modelkeep_graph",
            "versions": [str(servable.version)],
            "inputs": shown(servable.graph.inputs),
            "outputs": shown(servable.graph.outputs),
        }
    )
