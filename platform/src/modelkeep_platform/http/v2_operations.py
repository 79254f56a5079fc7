"""The data plane's operations, as the OpenAPI document describes them; `v2.DataPlane` serves them by itself.

The types are the Open Inference Protocol's (V2, JSON tensors). Those of answers are what is encoded.
"""

from typing import Final, NoReturn

import msgspec

from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.limits import MAX_INFER_BYTES
from modelkeep_platform.http.routing import Call, Endpoint, Public
from modelkeep_platform.http.v2_json import InferenceRequest

_MODEL: Final = "/v2/models/{name}"
_VERSION: Final = "/v2/models/{name}/versions/{version}"


class ServerLive(msgspec.Struct):
    """Says that the process answers."""

    live: bool


class ServerReady(msgspec.Struct):
    """Says that it should get requests."""

    ready: bool


class ServerMetadata(msgspec.Struct):
    """Name and version of the server."""

    name: str
    version: str
    extensions: list[str]


class ModelReady(msgspec.Struct):
    """Says that a model can be used."""

    name: str
    ready: bool


class TensorMetadata(msgspec.Struct):
    """A tensor that a model takes or gives; -1 in its shape is any number of rows."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(msgspec.Struct):
    """The tensors that a model takes and gives."""

    name: str
    platform: str
    versions: list[str]
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ResponseOutput(msgspec.Struct):
    """A tensor of a prediction, its numbers in one flat array, row by row."""

    name: str
    datatype: str
    shape: list[int]
    data: list[bool | float]


class InferenceResponse(msgspec.Struct, omit_defaults=True):
    """A prediction; `id` is the request's."""

    model_name: str
    model_version: str
    outputs: list[ResponseOutput]
    id: str = ""


def operations() -> list[Endpoint]:
    """Return every route of `/v2`, for the document."""
    open_to_all = Public("probes and clients ask before they have a token")
    found = [
        _get("/v2", open_to_all, "Show name and version of the server", ServerMetadata),
        _get("/v2/health/live", open_to_all, "Say that the process answers", ServerLive),
        _get("/v2/health/ready", open_to_all, "Say whether the server should get requests", ServerReady),
    ]
    for path, which in ((_MODEL, "a model's production version"), (_VERSION, "one version (a number or an alias)")):
        found += [
            _get(path, Action.MODEL_PREDICT, f"Show the tensors of {which}", ModelMetadata),
            _get(f"{path}/ready", Action.MODEL_PREDICT, f"Say whether {which} can be used", ModelReady),
            Endpoint(
                method="POST",
                path=f"{path}/infer",
                guard=Action.MODEL_PREDICT,
                handler=_elsewhere,
                summary=f"Predict with {which}",
                body=InferenceRequest,
                returns=InferenceResponse,
                limit_bytes=MAX_INFER_BYTES,
                refuses=(504,),
            ),
        ]
    return found


def _get(path: str, guard: Action | Public, summary: str, returns: type[msgspec.Struct]) -> Endpoint:
    # 409: the operator lets no worker predict with the owner's models.
    refuses = (409,) if isinstance(guard, Action) else ()
    return Endpoint(
        method="GET", path=path, guard=guard, handler=_elsewhere, summary=summary, returns=returns, refuses=refuses
    )


def _elsewhere(_call: Call) -> NoReturn:
    raise RuntimeError("the data plane serves this route")
