"""Endpoints of models, their versions and aliases."""

import base64
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.responses import Response

from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.limits import MAX_GRAPH_BYTES
from modelkeep_platform.http.answers import encode
from modelkeep_platform.http.downloads import Download
from modelkeep_platform.http.routing import Call, Endpoint
from modelkeep_platform.http.v1.converting import show, show_page
from modelkeep_platform.http.wire import models as wire
from modelkeep_platform.http.wire.fields import ListOf
from modelkeep_platform.models.admission import AdmissionService
from modelkeep_platform.models.service import ModelService


def endpoints(*, models: ModelService, admission: AdmissionService) -> list[Endpoint]:
    """Return the endpoints of models and versions."""
    return [*_model_endpoints(models), *_version_endpoints(models, admission)]


def _model_endpoints(models: ModelService) -> list[Endpoint]:
    return [
        Endpoint(
            method="GET",
            path="/v1/models",
            guard=Action.MODEL_LIST,
            handler=lambda call: show_page(models.list(call.tenant_caller, call.page), wire.Model),
            summary="List models",
            returns=ListOf[wire.Model],
            query=("limit", "cursor"),
        ),
        Endpoint(
            method="GET",
            path="/v1/models/{name}",
            guard=Action.MODEL_READ,
            handler=lambda call: show(models.get(call.tenant_caller, call.path["name"]), wire.Model),
            summary="Show a model",
            returns=wire.Model,
        ),
        Endpoint(
            method="DELETE",
            path="/v1/models/{name}",
            guard=Action.MODEL_DELETE,
            handler=lambda call: models.delete(call.tenant_caller, call.path["name"]),
            summary="Delete a model and all its versions; their keys are destroyed",
            status=204,
        ),
        Endpoint(
            method="PUT",
            path="/v1/models/{name}/aliases/{alias}",
            guard=Action.MODEL_ALIAS,
            handler=lambda call: show(
                models.set_alias(call.tenant_caller, call.path["name"], call.path["alias"], call.body.version),
                wire.Model,
            ),
            summary="Point an alias at a version",
            body=wire.AliasTarget,
            returns=wire.Model,
        ),
        Endpoint(
            method="DELETE",
            path="/v1/models/{name}/aliases/{alias}",
            guard=Action.MODEL_ALIAS,
            handler=lambda call: models.delete_alias(call.tenant_caller, call.path["name"], call.path["alias"]),
            summary="Delete an alias",
            status=204,
        ),
    ]


def _version_endpoints(models: ModelService, admission: AdmissionService) -> list[Endpoint]:
    return [
        Endpoint(
            method="POST",
            path="/v1/models/{name}/versions",
            guard=Action.MODEL_CREATE,
            handler=lambda call: show(
                admission.create_version(
                    call.tenant_caller,
                    call.path["name"],
                    encode(call.body.graph),
                    call.body.weights_bytes,
                    call.body.weights_sha256,
                    description=call.body.description,
                ),
                wire.VersionCreated,
            ),
            summary="Create a version and the upload of its weights",
            body=wire.NewVersion,
            returns=wire.VersionCreated,
            status=201,
            limit_bytes=MAX_GRAPH_BYTES,
        ),
        Endpoint(
            method="GET",
            path="/v1/models/{name}/versions",
            guard=Action.MODEL_READ,
            handler=lambda call: show_page(
                models.list_versions(call.tenant_caller, call.path["name"], call.page), wire.ModelVersion
            ),
            summary="List a model's versions",
            returns=ListOf[wire.ModelVersion],
            query=("limit", "cursor"),
        ),
        Endpoint(
            method="GET",
            path="/v1/models/{name}/versions/{version}",
            guard=Action.MODEL_READ,
            handler=lambda call: show(
                models.get_version(call.tenant_caller, call.path["name"], call.path["version"]), wire.ModelVersion
            ),
            summary="Show a version, by number or alias",
            returns=wire.ModelVersion,
        ),
        Endpoint(
            method="DELETE",
            path="/v1/models/{name}/versions/{version}",
            guard=Action.MODEL_DELETE,
            handler=lambda call: models.delete_version(call.tenant_caller, call.path["name"], call.path["version"]),
            summary="Delete a version; its number is never used again",
            status=204,
        ),
        Endpoint(
            method="GET",
            path="/v1/models/{name}/versions/{version}/graph",
            guard=Action.MODEL_EXPORT,
            handler=lambda call: Response(
                models.export_graph(call.tenant_caller, call.path["name"], call.path["version"]),
                media_type="application/json",
            ),
            summary="Download a version's graph",
            returns=msgspec.Raw,
        ),
        Endpoint(
            method="GET",
            path="/v1/models/{name}/versions/{version}/weights",
            guard=Action.MODEL_EXPORT,
            handler=_weights(models),
            summary="Download a version's weights as safetensors",
            media_type="application/octet-stream",
        ),
    ]


def _weights(models: ModelService) -> Callable[[Call], Any]:
    def handler(call: Call) -> Response:
        version, chunks = models.export_weights(call.tenant_caller, call.path["name"], call.path["version"])
        digest = base64.b64encode(bytes.fromhex(version.weights_sha256)).decode("ascii")
        return Download(
            chunks,
            headers={
                "content-length": str(version.weights_bytes),
                "content-digest": f"sha-256=:{digest}:",
                "cache-control": "no-store",
            },
        )

    return handler
