"""Endpoints of uploads: what arrived, each part, the end."""

import base64
import binascii
from typing import Final

from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.errors import MalformedError
from modelkeep_platform.core.limits import MAX_PART_BYTES
from modelkeep_platform.core.refs import Kind
from modelkeep_platform.datasets.service import DatasetService
from modelkeep_platform.http.routing import Call, Endpoint, decimal
from modelkeep_platform.http.v1.converting import show
from modelkeep_platform.http.wire import models as wire
from modelkeep_platform.http.wire.training import Dataset
from modelkeep_platform.models.admission import AdmissionService
from modelkeep_platform.uploads.service import UploadService

_SHA256_BYTES: Final = 32


def endpoints(*, admission: AdmissionService, datasets: DatasetService, uploads: UploadService) -> list[Endpoint]:
    """Return the endpoints of uploads, of models and datasets alike."""

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
