"""Uploads: parts of at most 8 MiB with their digests, which go on where they stopped."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from modelkeep._core.decode import decode
from modelkeep._core.flows import MIB, Flow, Mode, Operation
from modelkeep._core.progress import UploadProgress, UploadReport, upload_report
from modelkeep._core.session import Session, check_same
from modelkeep._core.sources import Source, SourceLike, source_of
from modelkeep.errors import (
    ConfigurationError,
    ConnectionFailedError,
    ProtocolError,
    ServerError,
    UploadInterruptedError,
)
from modelkeep.resources.base import Resource
from modelkeep.types import Dataset, ModelVersion, Upload

_MAX_PART_BYTES: Final = 64 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class _Receipt:
    number: int


class Uploads(Resource[Mode]):
    """Uploads under way. `models.upload` and `datasets.upload` use them; here they are resumed or given up."""

    @Operation
    def get(self, upload_id: str) -> Flow[Upload]:
        """Show an upload and which parts arrived."""
        return (yield from _get(self._session, upload_id))

    @Operation
    def resume(
        self, upload_id: str, data: SourceLike, *, progress: UploadReport = False
    ) -> Flow[ModelVersion | Dataset]:
        """Send the parts that are missing, and complete the upload.

        Args:
            upload_id: from `UploadInterruptedError.upload_id`.
            data: the same bytes, or the path of the same file.
            progress: a function that is told, or true for a bar.

        Returns:
            The model version or the dataset.

        Raises:
            ConfigurationError: these are other bytes.
            UploadInterruptedError: it stopped again.
        """
        source = source_of(data)
        upload = yield from _get(self._session, upload_id)
        if (source.size, source.sha256()) != (upload.size_bytes, upload.sha256):
            raise ConfigurationError("these are other bytes than those the upload was begun with")
        completed = yield from send(self._session, upload, source, progress, title=upload.kind)
        if upload.kind == "model":
            version = decode(ModelVersion, completed)
            check_same(upload.object_id, version.model_id, "model")
            check_same(upload.version, version.version, "version")
            check_same(upload.sha256, version.weights_sha256, "digest")
            return version
        dataset = decode(Dataset, completed)
        check_same(upload.object_id, dataset.id, "dataset")
        return dataset

    @Operation
    def abort(self, upload_id: str) -> Flow[None]:
        """Give an upload up; what arrived is deleted."""
        yield from self._session.delete("v1", "uploads", upload_id)


def check(upload: Upload, source: Source, sha256: str) -> None:
    """Check that the server took down what is to be sent.

    Raises:
        ProtocolError: other bytes, or parts that do not add up.
    """
    check_same(source.size, upload.size_bytes, "length")
    check_same(sha256, upload.sha256, "digest")
    whole = 0 < upload.part_bytes <= _MAX_PART_BYTES and -(-source.size // upload.part_bytes) == upload.parts
    if not whole or any(not 0 <= number < upload.parts for number in upload.received):
        raise ProtocolError("the parts of the upload do not add up to what is to be sent")


def send(session: Session, upload: Upload, source: Source, progress: UploadReport, *, title: str) -> Flow[Any]:
    """Send the parts that are missing and complete the upload; return the JSON of what it made.

    Raises:
        UploadInterruptedError: the connection or the server failed, past the retries; what arrived is kept.
    """
    check(upload, source, upload.sha256)
    try:
        with upload_report(progress, title) as report:
            yield from _send_parts(session, upload, source, report)
        return (yield from session.json("POST", "v1", "uploads", upload.id, "complete"))
    except (ConnectionFailedError, ServerError) as exc:
        raise UploadInterruptedError(
            f"the upload stopped: {exc.message}; what arrived is kept until it expires. "
            f"Go on with `client.uploads.resume({upload.id!r}, data)`",
            upload_id=upload.id,
        ) from exc


def _send_parts(
    session: Session, upload: Upload, source: Source, report: Callable[[UploadProgress], object]
) -> Flow[None]:
    arrived = set(upload.received)
    sent = sum(_length(upload, source, number) for number in arrived)
    report(UploadProgress(sent_bytes=sent, total_bytes=source.size))
    for number in range(upload.parts):
        if number in arrived:
            continue
        data = source.read(number * upload.part_bytes, _length(upload, source, number))
        digest = b64encode(hashlib.sha256(data).digest()).decode("ascii")
        receipt = yield from session.json(
            "PUT",
            "v1",
            "uploads",
            upload.id,
            "parts",
            number,
            content=data,
            headers={"content-digest": f"sha-256=:{digest}:"},
        )
        check_same(number, decode(_Receipt, receipt).number, "part")
        sent += len(data)
        report(UploadProgress(sent_bytes=sent, total_bytes=source.size))


def _length(upload: Upload, source: Source, number: int) -> int:
    return min(upload.part_bytes, source.size - number * upload.part_bytes)


def _get(session: Session, upload_id: str) -> Flow[Upload]:
    upload = yield from session.get(Upload, "v1", "uploads", upload_id)
    check_same(upload_id, upload.id, "upload")
    return upload
