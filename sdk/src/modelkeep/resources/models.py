"""Models: upload, list, show, point aliases, download, delete."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol, TypeAlias

from modelkeep._core.answers import json_of
from modelkeep._core.decode import decode, fields_of
from modelkeep._core.flows import MIB, Flow, Mode, Operation
from modelkeep._core.progress import DownloadProgress, DownloadReport, UploadReport, download_report
from modelkeep._core.session import Session, check_same
from modelkeep._core.sources import SourceLike, source_of
from modelkeep.errors import ConfigurationError, NotFoundError, ProtocolError
from modelkeep.resources import uploads
from modelkeep.resources.base import Resource
from modelkeep.types import Download, Model, ModelVersion, Upload

_MAX_GRAPH_BYTES: Final = 8 * MIB
_MAX_WEIGHTS_BYTES: Final = 32 * 1024 * MIB  # the platform's largest upload
_PRODUCTION: Final = "production"
_Versions: TypeAlias = list[ModelVersion]  # `list` is a method below


class Traced(Protocol):
    """What `modelkeep.torch.trace` gives: a graph, and weights as safetensors."""

    @property
    def graph(self) -> Mapping[str, Any]:
        """Return the description, as JSON."""

    @property
    def weights(self) -> bytes:
        """Return the weights."""


class Models(Resource[Mode]):
    """Models of the own tenant; ``owner~name`` where another tenant granted one."""

    @Operation
    def upload(
        self,
        name: str,
        traced: Traced | None = None,
        *,
        graph: Mapping[str, Any] | None = None,
        weights: SourceLike | None = None,
        description: str = "",
        progress: UploadReport = False,
    ) -> Flow[ModelVersion]:
        """Upload a new version of a model; a new name makes a new model.

        Args:
            name: the model's name, ``[a-z0-9][a-z0-9._-]{0,63}``.
            traced: what `modelkeep.torch.trace` gave; or else `graph` and `weights`.
            graph: the description, as JSON.
            weights: safetensors: bytes, or the path of a file.
            description: of the model, when it is new.
            progress: a function that is told how many bytes arrived, or true for a bar.

        Raises:
            InvalidRequestError: the graph or the weights are refused; `details` names the place.
            UploadInterruptedError: it stopped half-way; `client.uploads.resume` goes on.
        """
        graph, weights = _parts(traced, graph, weights)
        source = source_of(weights)
        digest = source.sha256()
        body = {
            "graph": dict(graph),
            "weights_bytes": source.size,
            "weights_sha256": digest,
            "description": description,
        }
        created = fields_of(
            (yield from self._session.json("POST", "v1", "models", name, "versions", body=body)), "version"
        )
        upload = decode(Upload, created.get("upload"))
        uploads.check(upload, source, digest)
        completed = yield from uploads.send(self._session, upload, source, progress, title=name)
        version = decode(ModelVersion, completed)
        check_same(name, version.name, "model")
        check_same(digest, version.weights_sha256, "digest")
        return version

    @Operation
    def list(self, *, limit: int | None = None) -> Flow[list[Model]]:
        """List models, at most `limit`."""
        return (yield from self._session.list(Model, "v1", "models", limit=limit))

    @Operation
    def get(self, name: str) -> Flow[Model]:
        """Show a model."""
        return (yield from _model(self._session, name))

    @Operation
    def versions(self, name: str, *, limit: int | None = None) -> Flow[_Versions]:
        """List a model's versions, at most `limit`."""
        found = yield from self._session.list(ModelVersion, "v1", "models", name, "versions", limit=limit)
        for version in found:
            _check_name(name, version.name)
        return found

    @Operation
    def version(self, name: str, version: int | str | None = None) -> Flow[ModelVersion]:
        """Show a version, by number or alias; by default the one that serves predictions."""
        return (yield from _version(self._session, name, version))

    @Operation
    def set_alias(self, name: str, alias: str, *, version: int) -> Flow[Model]:
        """Point `alias` at `version`; predictions that name the alias follow at once."""
        body = {"version": version}
        answer = yield from self._session.json("PUT", "v1", "models", name, "aliases", alias, body=body)
        model = decode(Model, answer)
        _check_name(name, model.name)
        return model

    @Operation
    def delete_alias(self, name: str, alias: str) -> Flow[None]:
        """Delete an alias."""
        yield from self._session.delete("v1", "models", name, "aliases", alias)

    @Operation
    def delete(self, name: str, *, version: int | None = None) -> Flow[None]:
        """Delete a model with all its versions, or one version; their keys are destroyed, there is no way back."""
        if version is None:
            yield from self._session.delete("v1", "models", name)
        else:
            yield from self._session.delete("v1", "models", name, "versions", version)

    @Operation
    def download(
        self, name: str, version: int | str | None = None, *, progress: DownloadReport = False
    ) -> Flow[Download]:
        """Download a version, graph and weights, and check both digests.

        Args:
            name: the model; ``owner~name`` where `model:export` was granted.
            version: its number or alias; by default the one that serves predictions.
            progress: a function that is told how many bytes of the weights arrived, or true for a bar.

        Raises:
            ProtocolError: the bytes are not those that the version's digests name.
        """
        found = yield from _version(self._session, name, version)
        place = ("v1", "models", name, "versions", found.version)
        graph = yield from self._session.send("GET", *place, "graph", max_bytes=_MAX_GRAPH_BYTES)
        _check_digest(hashlib.sha256(graph.body).hexdigest(), found.graph_sha256, "graph")
        weights = yield from _weights(self._session, place, found, progress)
        return Download(
            name=found.name,
            version=found.version,
            graph=fields_of(json_of(graph), "graph"),
            weights=weights,
            graph_sha256=found.graph_sha256,
            weights_sha256=found.weights_sha256,
        )


class _Counting:
    """Keeps what arrives, and says how much that is."""

    def __init__(self, report: Callable[[DownloadProgress], object], total_bytes: int) -> None:
        self.kept = io.BytesIO()
        self._report = report
        self._total_bytes = total_bytes

    def write(self, data: bytes, /) -> None:
        self.kept.write(data)
        self._report(DownloadProgress(received_bytes=self.kept.tell(), total_bytes=self._total_bytes))


def _weights(
    session: Session, place: tuple[str | int, ...], found: ModelVersion, progress: DownloadReport
) -> Flow[bytes]:
    # What the server says bounds what it may send, and is bounded itself: all of it is kept in memory.
    if not 0 < found.weights_bytes <= _MAX_WEIGHTS_BYTES:
        raise ProtocolError("the server says that the weights have more bytes than any that it takes, or none at all")
    # Each attempt begins a fresh buffer; the last one made is that of the answer that came through.
    buffers: list[_Counting] = []
    with download_report(progress, found.name) as report:

        def sink() -> _Counting:
            buffers[:] = [_Counting(report, found.weights_bytes)]
            return buffers[0]

        yield from session.send(
            "GET", *place, "weights", accept="application/octet-stream", max_bytes=found.weights_bytes, sink=sink
        )
    data = buffers[0].kept.getvalue()
    _check_digest(hashlib.sha256(data).hexdigest(), found.weights_sha256, "weights")
    return data


def _check_digest(found: str, wanted: str, what: str) -> None:
    if found != wanted:
        raise ProtocolError(f"the downloaded {what} are not those of this version: the digests differ")


def _model(session: Session, name: str) -> Flow[Model]:
    model = yield from session.get(Model, "v1", "models", name)
    _check_name(name, model.name)
    return model


def _version(session: Session, name: str, version: int | str | None) -> Flow[ModelVersion]:
    if version is None:
        model = yield from _model(session, name)
        version = model.aliases.get(_PRODUCTION, model.latest_version)
        if version is None:
            raise NotFoundError(
                f"`{name}` has no version that is ready; upload one", code="no_ready_version", status=404
            )
    found = yield from session.get(ModelVersion, "v1", "models", name, "versions", version)
    _check_name(name, found.name)
    if isinstance(version, int) or (version.isascii() and version.isdigit()):
        check_same(int(version), found.version, "version")
    return found


def _check_name(wanted: str, found: str) -> None:
    check_same(wanted.rpartition("~")[2], found.rpartition("~")[2], "model")


def _parts(
    traced: Traced | None, graph: Mapping[str, Any] | None, weights: SourceLike | None
) -> tuple[Mapping[str, Any], SourceLike]:
    if traced is not None and graph is None and weights is None:
        return traced.graph, traced.weights
    if traced is None and graph is not None and weights is not None:
        return graph, weights
    raise ConfigurationError("pass what `modelkeep.torch.trace` gave, or both `graph` and `weights`")
