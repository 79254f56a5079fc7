"""Models, their versions and aliases, and the uploads of models and datasets."""

import base64
import binascii
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.responses import Response

from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.errors import MalformedError
from modelkeep_platform.core.limits import MAX_GRAPH_BYTES, MAX_PART_BYTES
from modelkeep_platform.core.refs import Kind
from modelkeep_platform.datasets.service import DatasetService
from modelkeep_platform.http.answers import encode
from modelkeep_platform.http.downloads import Download
from modelkeep_platform.http.routing import Call, Endpoint, decimal
from modelkeep_platform.http.v1.converting import show, show_page
from modelkeep_platform.http.wire import models as wire
from modelkeep_platform.http.wire.fields import ListOf
from modelkeep_platform.http.wire.training import Dataset
from modelkeep_platform.models.admission import AdmissionService
from modelkeep_platform.models.service import ModelService
from modelkeep_platform.uploads.service import UploadService

_SHA256_BYTES = 32


def endpoints(
    *, models: ModelService, admission: AdmissionService, datasets: DatasetService, uploads: UploadService
) -> list[Endpoint]:
    """Return the endpoints of models and uploads."""
    return [
        *_model_endpoints(models),
        *_version_endpoints(models, admission),
        *_upload_endpoints(admission, datasets, uploads),
    ]


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


def _upload_endpoints(admission: AdmissionService, datasets: DatasetService, uploads: UploadService) -> list[Endpoint]:
    def complete(call: Call) -> wire.ModelVersion | Dataset:
        caller, upload_id = call.tenant_caller, call.path["id"]
        if uploads.status(caller, upload_id).kind == Kind.MODEL:
            return show(admission.complete(caller, upload_id), wire.ModelVersion)
        return show(datasets.complete(caller, upload_id), Dataset)

    return [
        Endpoint(
            method="GET",
            path="/v1/uploads/{id}",
            guard=Action.UPLOAD_WRITE,
            handler=lambda call: show(uploads.status(call.tenant_caller, call.path["id"]), wire.Upload),
            summary="Show an upload and which parts arrived",
            returns=wire.Upload,
        ),
        Endpoint(
            method="PUT",
            path="/v1/uploads/{id}/parts/{number}",
            guard=Action.UPLOAD_WRITE,
            handler=lambda call: show(
                uploads.put_part(
                    call.tenant_caller,
                    call.path["id"],
                    decimal(call.path["number"], "number"),
                    call.raw,
                    _content_digest(call.headers.get("content-digest")),
                ),
                wire.Part,
            ),
            summary="Send one part; sealed before it is stored",
            body=bytes,
            returns=wire.Part,
            limit_bytes=MAX_PART_BYTES,
        ),
        Endpoint(
            method="POST",
            path="/v1/uploads/{id}/complete",
            guard=Action.UPLOAD_WRITE,
            handler=complete,
            summary="Check the whole and make it visible",
            returns=wire.ModelVersion | Dataset,
        ),
        Endpoint(
            method="DELETE",
            path="/v1/uploads/{id}",
            guard=Action.UPLOAD_WRITE,
            handler=lambda call: uploads.abort(call.tenant_caller, call.path["id"]),
            summary="Give up an upload",
            status=204,
        ),
    ]


def _content_digest(header: str | None) -> bytes:
    """Return the SHA-256 of RFC 9530's ``sha-256=:base64:``."""
    if header is not None and header.startswith("sha-256=:") and header.endswith(":"):
        try:
            digest = base64.b64decode(header[len("sha-256=:") : -1], validate=True)
        except (binascii.Error, ValueError):
            digest = b""
        if len(digest) == _SHA256_BYTES:
            return digest
    raise MalformedError("send the part's digest as `Content-Digest: sha-256=:BASE64:`", code="digest_missing")
