"""Datasets: declare and upload tables and images, list, show, delete. Rows cannot be downloaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from modelkeep._core import safetensors
from modelkeep._core.arrays import flat_of, is_numpy
from modelkeep._core.decode import decode, fields_of
from modelkeep._core.flows import Flow, Mode, Operation
from modelkeep._core.progress import UploadReport
from modelkeep._core.session import Session, check_same
from modelkeep._core.sources import SourceLike, source_of
from modelkeep.errors import ConfigurationError
from modelkeep.resources import uploads
from modelkeep.resources.base import Resource
from modelkeep.types import Dataset, Upload

_FLOATS: Final = frozenset({"float32", "float64"})
_MAX_BYTE: Final = 255
_RECORDS: Final = ("features", "images")


class Datasets(Resource[Mode]):
    """Datasets of the own tenant.

    `schema` declares columns with public bounds, or images: facts of the domain, never computed from the rows.
    `privacy` is ``{"visibility": "private", "unit": "row", "n_public": N, "budget": {"epsilon": E, "delta": D}}`` or
    ``{"visibility": "public", "reason": "..."}``. See docs/reference/datasets.md.
    """

    @Operation
    def upload_csv(
        self,
        name: str,
        data: SourceLike,
        *,
        schema: Mapping[str, Any],
        privacy: Mapping[str, Any],
        description: str = "",
        progress: UploadReport = False,
    ) -> Flow[Dataset]:
        """Upload a table as CSV with a header row.

        Args:
            name: the dataset's name.
            data: the CSV as bytes, or the path of a file.
            schema: columns, and which is the target.
            privacy: private with a budget, or public with a reason.
            description: for people.
            progress: a function that is told how many bytes arrived, or true for a bar.

        Raises:
            InvalidRequestError: the declaration is wrong, or a cell is; `details` has row and column.
        """
        spec = _spec(name, "csv", schema, privacy, description)
        return (yield from _upload(self._session, spec, data, progress))

    @Operation
    def upload_arrays(
        self,
        name: str,
        arrays: Mapping[str, Any],
        *,
        schema: Mapping[str, Any],
        privacy: Mapping[str, Any],
        description: str = "",
        progress: UploadReport = False,
    ) -> Flow[Dataset]:
        """Upload arrays: `features` [N, d] or `images` [N, C, H, W], and `target` [N].

        Args:
            name: the dataset's name.
            arrays: numpy arrays or nested lists. Features and a real-valued target keep float32 or become float64,
                images of whole numbers up to 255 become uint8, other images float32, classes int64.
            schema: columns or images, with bounds and classes.
            privacy: private with a budget, or public with a reason.
            description: for people.
            progress: a function that is told how many bytes arrived, or true for a bar.

        Raises:
            ConfigurationError: the arrays are ragged, or named otherwise.
            InvalidRequestError: the declaration is wrong, or a value is.
        """
        spec = _spec(name, "arrays", schema, privacy, description)
        data = safetensors.write(arrays, dtypes={key: _dtype(key, value) for key, value in arrays.items()})
        return (yield from _upload(self._session, spec, data, progress))

    @Operation
    def upload(
        self,
        name: str,
        data: SourceLike,
        *,
        format: Literal["csv", "arrays"],  # noqa: A002 -- the wire's word
        schema: Mapping[str, Any],
        privacy: Mapping[str, Any],
        description: str = "",
        progress: UploadReport = False,
    ) -> Flow[Dataset]:
        """Upload bytes or a file that already has its format: CSV, or safetensors for ``arrays``."""
        spec = _spec(name, format, schema, privacy, description)
        return (yield from _upload(self._session, spec, data, progress))

    @Operation
    def list(self, *, limit: int | None = None) -> Flow[list[Dataset]]:
        """List datasets, at most `limit`."""
        return (yield from self._session.list(Dataset, "v1", "datasets", limit=limit))

    @Operation
    def get(self, name: str) -> Flow[Dataset]:
        """Show a dataset's declaration."""
        dataset = yield from self._session.get(Dataset, "v1", "datasets", name)
        check_same(name.rpartition("~")[2], dataset.name.rpartition("~")[2], "dataset")
        return dataset

    @Operation
    def delete(self, name: str) -> Flow[None]:
        """Delete a dataset; its key is destroyed, what was charged stays charged."""
        yield from self._session.delete("v1", "datasets", name)


def _spec(
    name: str, kind: str, schema: Mapping[str, Any], privacy: Mapping[str, Any], description: str
) -> dict[str, Any]:
    return {
        "name": name,
        "description": description,
        "format": kind,
        "schema": dict(schema),
        "privacy": dict(privacy),
    }


def _upload(session: Session, spec: dict[str, Any], data: SourceLike, progress: UploadReport) -> Flow[Dataset]:
    source = source_of(data)
    digest = source.sha256()
    body = {**spec, "size_bytes": source.size, "sha256": digest}
    created = fields_of((yield from session.json("POST", "v1", "datasets", body=body)), "dataset")
    upload = decode(Upload, created.get("upload"))
    uploads.check(upload, source, digest)
    completed = yield from uploads.send(session, upload, source, progress, title=spec["name"])
    dataset = decode(Dataset, completed)
    check_same(spec["name"], dataset.name, "dataset")
    return dataset


def _dtype(name: str, value: object) -> str:
    if name not in {*_RECORDS, "target"}:
        raise ConfigurationError(f"an array is named `features`, `images` or `target`, not `{name}`")
    given = str(getattr(value, "dtype", "")) if is_numpy(value) else ""
    if given in _FLOATS:
        return given
    if name == "features":
        return "float64"
    if given == "uint8" and name == "images":
        return given
    flat: Sequence[Any] = flat_of(value)
    whole = all(isinstance(item, int) for item in flat)
    if name == "target":
        return "int64" if whole else "float32"
    return "uint8" if whole and all(0 <= item <= _MAX_BYTE for item in flat) else "float32"
