"""Model files that attack: pickles in every wrapper, broken safetensors, hostile graphs; through the real admission.

Each is refused with its code, nothing of it becomes visible or stays, no code of it ran, and the refusal of an
authenticated caller is in the log. The last part sends what can be told apart over HTTP to a whole platform.
"""

import bz2
import contextlib
import gzip
import hashlib
import io
import itertools
import json
import lzma
import pickle
import tarfile
import zipfile
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from fakes.core import tenant_caller
from fakes.graphs import document, encoded, example, file_of, header_of, node, weights_of
from fakes.registry import GRAPH, LAYER, WEIGHTS, ModelRoom, memory_room
from modelkeep_platform.audit.refusal_notes import RefusalNotes
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.errors import (
    CallerError,
    MalformedError,
    NotFoundError,
    TooLargeError,
    UnprocessableError,
)
from modelkeep_platform.core.events import Outcome
from modelkeep_platform.core.limits import MAX_GRAPH_BYTES
from modelkeep_platform.core.refusals import Quota
from modelkeep_platform.http.refusals import CALLER, noted
from modelkeep_platform.http.status import status_of
from modelkeep_platform.storage.pages import PageRequest
from services.evidence import Entry, Evidence
from services.house import House

ME = tenant_caller()
NOTHING = {"models": 0, "model_versions": 0, "model_aliases": 0}


@pytest.fixture
def room() -> Iterator[ModelRoom]:
    with memory_room() as room:
        yield room


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def attack(room: ModelRoom, weights: bytes, code: str, graph: object = LAYER) -> str:
    """Upload `weights`, see them refused with `code` and look for what they left; return the message."""
    new = room.send(weights=weights, graph=graph)
    with pytest.raises(UnprocessableError) as caught:
        room.admission.complete(ME, new.upload.id)
    assert caught.value.error_code == code
    assert status_of(caught.value) == 422
    assert len(caught.value.message) < 400
    assert room.rows() == NOTHING
    assert room.stored(new.model_id) == 0
    assert room.sealer.keys == set()
    assert room.models.list(ME, PageRequest()).items == []
    with pytest.raises(NotFoundError):
        room.models.get(ME, "cells")
    last = room.recorder.events[-1]
    assert (str(last.action), str(last.outcome), last.actor) == ("model:create", "failed", ME)
    assert dict(last.facts) == {"upload": new.upload.id, "version": 1, "code": code}
    return caught.value.message


# --- pickles and archives ---------------------------------------------------------------------------


def in_zip(name: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, data)
    return out.getvalue()


def in_tar(data: bytes, form: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        info = tarfile.TarInfo("pickle")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def npy(payload: Payload) -> bytes:
    out = io.BytesIO()
    np.save(out, np.array([payload], dtype=object), allow_pickle=True)
    return out.getvalue()


def npz(payload: Payload) -> bytes:
    out = io.BytesIO()
    np.savez(out, weights=np.array([payload], dtype=object))
    return out.getvalue()


def by_joblib(payload: Payload, compress: Any) -> bytes:
    joblib = pytest.importorskip("joblib")
    out = io.BytesIO()
    joblib.dump([payload, np.zeros(3)], out, compress=compress)
    return out.getvalue()


def by_torch(payload: Payload, *, archive: bool) -> bytes:
    torch = pytest.importorskip("torch")
    out = io.BytesIO()
    torch.save({"weight": torch.zeros(2), "x": payload}, out, _use_new_zipfile_serialization=archive)
    return out.getvalue()


def stuffed(payload: Payload) -> bytes:
    """A pickle whose first bytes could be the length of a header."""
    return (1 << 10).to_bytes(8, "little") + pickle.dumps(payload)


PICKLES: dict[str, Callable[[Payload], bytes]] = {
    **{f"pickle protocol {n}": lambda p, n=n: pickle.dumps(p, protocol=n) for n in range(2, 6)},  # type: ignore[misc]
    "joblib": lambda p: by_joblib(p, 0),
    "joblib zlib": lambda p: by_joblib(p, ("zlib", 3)),
    "joblib zlib, fast": lambda p: by_joblib(p, ("zlib", 1)),
    "joblib zlib, best": lambda p: by_joblib(p, ("zlib", 9)),
    "joblib gzip": lambda p: by_joblib(p, ("gzip", 3)),
    "joblib bz2": lambda p: by_joblib(p, ("bz2", 3)),
    "joblib xz": lambda p: by_joblib(p, ("xz", 3)),
    "joblib lzma": lambda p: by_joblib(p, ("lzma", 3)),
    "npy of objects": npy,
    "npz of objects": npz,
    "zip": lambda p: in_zip("archive/data.pkl", pickle.dumps(p)),
    "empty zip": lambda _p: b"PK\x05\x06" + bytes(18),
    "tar": lambda p: in_tar(pickle.dumps(p), tarfile.USTAR_FORMAT),
    "tar, pax": lambda p: in_tar(pickle.dumps(p), tarfile.PAX_FORMAT),
    "tar, gnu": lambda p: in_tar(pickle.dumps(p), tarfile.GNU_FORMAT),
    "tar.gz": lambda p: gzip.compress(in_tar(pickle.dumps(p), tarfile.USTAR_FORMAT)),
    "gzip": lambda p: gzip.compress(pickle.dumps(p)),
    "bzip2": lambda p: bz2.compress(pickle.dumps(p)),
    "xz": lambda p: lzma.compress(pickle.dumps(p)),
    "lzma": lambda p: lzma.compress(pickle.dumps(p), format=lzma.FORMAT_ALONE),
    "zlib": lambda p: zlib.compress(pickle.dumps(p)),
    "7z": lambda p: b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(24) + pickle.dumps(p),
    "rar": lambda p: b"Rar!\x1a\x07\x01\x00" + pickle.dumps(p),
    "zstandard": lambda p: b"\x28\xb5\x2f\xfd" + pickle.dumps(p),
    "hdf5": lambda p: b"\x89HDF\r\n\x1a\n" + pickle.dumps(p),
}
# What no first bytes give away is refused for not being safetensors.
UNNAMED: dict[str, Callable[[Payload], bytes]] = {
    "pickle protocol 0": lambda p: pickle.dumps(p, protocol=0),
    "pickle protocol 1": lambda p: pickle.dumps(p, protocol=1),
    "behind a length": stuffed,
    "behind the start of a header": lambda p: file_of(b"{" + pickle.dumps(p)),
    "onnx": lambda _p: b"\x08\x07\x12\x07pytorch:\x85\x01",
    "python": lambda p: f"__import__('pathlib').Path({str(p.mark)!r}).touch()".encode(),
    "elf": lambda _p: b"\x7fELF" + bytes(60),
}


def test_the_payload_is_one(tmp_path: Path) -> None:
    # Were it opened, this would show.
    mark = tmp_path / "ran"
    pickle.loads(pickle.dumps(Payload(mark)))  # noqa: S301 -- the attack, carried out
    assert mark.exists()


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_is_refused_whatever_it_is_wrapped_in(room: ModelRoom, tmp_path: Path, name: str) -> None:
    mark = tmp_path / "ran"
    message = attack(room, PICKLES[name](Payload(mark)), "pickle_refused")
    assert message.startswith("this is a")
    assert message.endswith("such files can hold code and are never opened here: convert it to safetensors")
    assert not mark.exists()


@pytest.mark.torch
@pytest.mark.parametrize("archive", [True, False])
def test_what_torch_saves_is_refused(room: ModelRoom, tmp_path: Path, archive: bool) -> None:
    mark = tmp_path / "ran"
    attack(room, by_torch(Payload(mark), archive=archive), "pickle_refused")
    assert not mark.exists()


@pytest.mark.parametrize("name", UNNAMED)
def test_what_looks_like_nothing_is_refused_too(room: ModelRoom, tmp_path: Path, name: str) -> None:
    mark = tmp_path / "ran"
    attack(room, UNNAMED[name](Payload(mark)), "invalid_weights")
    assert not mark.exists()


@pytest.mark.parametrize("wrapped", ["model.pt", "model.safetensors", "model.bin", "archive/data.pkl", "model.7z"])
def test_the_name_within_an_archive_does_not_matter(room: ModelRoom, tmp_path: Path, wrapped: str) -> None:
    mark = tmp_path / "ran"
    attack(room, in_zip(wrapped, pickle.dumps(Payload(mark))), "pickle_refused")
    attack(room, in_zip(wrapped, WEIGHTS), "pickle_refused")
    assert not mark.exists()


def test_an_archive_behind_good_weights_is_not_taken_along(room: ModelRoom, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    message = attack(room, WEIGHTS + in_zip("data.pkl", pickle.dumps(Payload(mark))), "invalid_weights")
    assert message.endswith("the ranges of the tensors do not cover the file")
    assert not mark.exists()


# --- safetensors ------------------------------------------------------------------------------------

HEADER, DATA = header_of(GRAPH)
WEIGHT, BIAS = HEADER["layer.weight"], HEADER["layer.bias"]


def with_header(**changes: object) -> bytes:
    header = {**HEADER, **{name.replace("__", "."): entry for name, entry in changes.items()}}
    return file_of({name: entry for name, entry in header.items() if entry is not None}, bytes(DATA))


def with_entry(**changes: object) -> bytes:
    return with_header(layer__weight={**WEIGHT, **changes})


def with_length(length: int) -> bytes:
    return length.to_bytes(8, "little") + WEIGHTS[8:]


def text_of(header: object) -> bytes:
    return json.dumps(header).encode()


TWICE = text_of(HEADER)[:-1] + b", " + text_of({"layer.bias": BIAS})[1:]

BROKEN: dict[str, tuple[bytes, str]] = {
    "one byte": (b"\x00", "the weights are not a safetensors file"),
    "a length alone": (WEIGHTS[:8], "the weights are not a safetensors file"),
    "header of no bytes": (with_length(0), "the weights are not a safetensors file"),
    "header of one byte": (with_length(1), "the weights are not a safetensors file"),
    "header longer than the file": (with_length(len(WEIGHTS) - 7), "the weights are not a safetensors file"),
    "header of 2^63 bytes": (with_length(1 << 63), "the weights are not a safetensors file"),
    "header of 2^64 - 1 bytes": (with_length((1 << 64) - 1), "the weights are not a safetensors file"),
    "header past the limit": (
        file_of(b"{" + b" " * MAX_GRAPH_BYTES + b"}", bytes(DATA)),
        "the weights are not a safetensors file",
    ),
    "header one byte too short": (with_length(len(text_of(HEADER)) - 1), "the weights are refused: the header is not"),
    "header one byte too long": (with_length(len(text_of(HEADER)) + 1), "the weights are refused: the header is not"),
    "header of a list": (file_of([]), "the weights are not a safetensors file"),
    "space before the header": (file_of(b" " + text_of(HEADER), bytes(DATA)), "the weights are not a safetensors"),
    "not JSON": (file_of(b"{'weight': 1}"), "the weights are refused: the header is not strict JSON"),
    "not UTF-8": (file_of(b'{"\xff": 1}'), "the weights are refused: the header is not strict JSON"),
    "NaN": (file_of(b'{"w": NaN}'), "the weights are refused: the header is not strict JSON"),
    "depth": (
        file_of(b'{"w": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        "the weights are refused: the header is not",
    ),
    "a tensor twice": (file_of(TWICE, bytes(DATA)), "the weights are refused: the header is not strict JSON: the name"),
    "a field twice": (
        file_of(text_of(HEADER).replace(b'"dtype": "F32"', b'"dtype": "F32", "dtype": "F32"'), bytes(DATA)),
        "the weights are refused: the header is not strict JSON: the name `dtype` occurs twice",
    ),
    "trailing bytes": (WEIGHTS + b"\x00", "the weights are refused: the ranges of the tensors do not cover the file"),
    "missing bytes": (WEIGHTS[:-1], "the weights are refused: the ranges of the tensors do not cover the file"),
    "a tensor missing": (
        file_of({"layer.weight": WEIGHT}, bytes(24)),
        "the weights lack the tensor `layer.bias` of the graph",
    ),
    "a tensor too many": (
        with_header(layer__more={"dtype": "F32", "shape": [0], "data_offsets": [DATA, DATA]}),
        "the graph has no parameter `layer.more`; leave it out of the weights",
    ),
    "ranges that overlap": (
        with_header(layer__bias={**BIAS, "data_offsets": [23, 35]}),
        "the weights are refused: the ranges leave a gap or overlap at tensor `layer.bias`",
    ),
    "ranges with a gap": (
        with_header(layer__bias={**BIAS, "data_offsets": [25, 37]}),
        "the weights are refused: the ranges leave a gap or overlap at tensor `layer.bias`",
    ),
    "the same range twice": (
        with_header(layer__bias={**WEIGHT, "shape": [3, 2]}),
        "the weights are refused: the ranges leave a gap or overlap",
    ),
    "range not from the start": (
        file_of({"layer.weight": {**WEIGHT, "data_offsets": [1, 25]}}, bytes(25)),
        "the weights are refused: the ranges leave a gap or overlap at tensor `layer.weight`",
    ),
    "range backwards": (
        with_entry(data_offsets=[24, 0]),
        "the weights are refused: the range of tensor `layer.weight`",
    ),
    "range of one number": (with_entry(data_offsets=[0]), "the weights are refused: shape and offsets"),
    "range of three": (with_entry(data_offsets=[0, 24, 36]), "the weights are refused: shape and offsets"),
    "range too short": (with_entry(data_offsets=[0, 23]), "the weights are refused: the range of tensor"),
    "negative offset": (with_entry(data_offsets=[-24, 0]), "the weights are refused: shape and offsets"),
    "offset past 64 bits": (with_entry(data_offsets=[1 << 64, (1 << 64) + 24]), "the weights are refused: shape and"),
    "offsets of floats": (with_entry(data_offsets=[0.0, 24.0]), "the weights are refused: shape and offsets"),
    "offsets of booleans": (with_entry(data_offsets=[False, True]), "the weights are refused: shape and offsets"),
    "no range": (with_entry(data_offsets=None), "the weights are refused: shape and offsets"),
    "shape that wraps to the size in 64 bits": (
        with_entry(shape=[(1 << 62) + 6]),
        "the weights are refused: shape and offsets of tensor `layer.weight` are natural numbers",
    ),
    "shape whose product wraps in 64 bits": (
        with_entry(shape=[1 << 32, 1 << 32]),
        "the weights are refused: the range of tensor `layer.weight` does not fit its shape",
    ),
    "negative shape": (with_entry(shape=[-3, -2]), "the weights are refused: shape and offsets"),
    "shape of no list": (with_entry(shape=6), "the weights are refused: shape and offsets"),
    "shape transposed": (with_entry(shape=[2, 3]), "the tensor `layer.weight` is float32 [3, 2] in the graph, float32"),
    "another dtype of the width": (
        with_entry(dtype="I32"),
        "the tensor `layer.weight` is float32 [3, 2] in the graph, int32 [3, 2] in the weights",
    ),
    "half precision": (with_entry(dtype="F16"), "the weights are refused: the dtype of tensor `layer.weight` is one"),
    "dtype in lower case": (with_entry(dtype="f32"), "the weights are refused: the dtype of tensor"),
    "dtype of a list": (with_entry(dtype=["F32"]), "the weights are refused: the dtype of tensor"),
    "dtype of an object": (with_entry(dtype={}), "the weights are refused: the dtype of tensor"),
    "entry with a field too many": (with_entry(file="/etc/passwd"), "the weights are refused: the entry of tensor"),
    "entry of no object": (with_header(layer__weight=[1]), "the weights are refused: the entry of tensor"),
    "metadata of numbers": (
        file_of({**HEADER, "__metadata__": {"format": 1}}, bytes(DATA)),
        "the weights are refused: `__metadata__` is",
    ),
    "metadata of a list": (file_of({**HEADER, "__metadata__": []}, bytes(DATA)), "the weights are refused: `__metad"),
    "metadata twice": (
        file_of(b'{"__metadata__": {}, "__metadata__": {}}'),
        "the weights are refused: the header is not strict JSON",
    ),
    "a name that goes on for ever": (
        with_header(**{"x" * 1_000_000: {"dtype": "F32"}}),
        "the weights are refused: the entry of tensor `xxx",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_safetensors_are_refused(room: ModelRoom, name: str) -> None:
    weights, message = BROKEN[name]
    assert attack(room, weights, "invalid_weights").startswith(message)


def test_a_shape_of_a_million_dimensions_is_not_multiplied(room: ModelRoom) -> None:
    # The product of so many would take minutes; the whole family runs under the suite's limit of time.
    weights = with_entry(shape=[(1 << 48) - 1] * 200_000)
    assert "at most 8 dimensions" in attack(room, weights, "invalid_weights")


def test_good_weights_are_admitted_with_padding_and_metadata(room: ModelRoom) -> None:
    header = text_of({"__metadata__": {"format": "pt"}, **HEADER}) + b" " * 7
    new = room.send(weights=file_of(header, bytes(DATA)))
    assert room.admission.complete(ME, new.upload.id).version == 1


def test_the_weights_of_another_graph_are_refused(room: ModelRoom) -> None:
    assert attack(room, WEIGHTS, "invalid_weights", example("conv1d")).startswith("the weights lack the tensor `n.")


# --- graphs -----------------------------------------------------------------------------------------


def hostile(room: ModelRoom, graph: object, code: str) -> CallerError:
    """Begin a version with `graph`, see it refused with `code` and look for what it left."""
    with pytest.raises((UnprocessableError, MalformedError, TooLargeError)) as caught:
        room.send(graph=graph)
    assert caught.value.error_code == code
    assert room.rows() == NOTHING
    assert room.sealer.keys == set()
    # Nothing was begun; the edge notes the refusal.
    assert room.recorder.events == []
    notes = RefusalNotes(recorder=room.recorder, clock=room.clock, per_window=lambda _: Quota(1, 1))
    route = "POST /v1/models/{name}/versions"
    error = noted(caught.value, {CALLER: ME}, notes=notes, action=Action.MODEL_CREATE, route=route)
    assert error is caught.value
    assert status_of(error) == {"invalid_json": 400, "too_large": 413}.get(code, 422)
    (event,) = room.recorder.events
    assert (event.action, event.outcome, event.actor) == (Action.MODEL_CREATE, Outcome.DENIED, ME)
    assert dict(event.facts) == {"reason": code, "route": route}
    with pytest.raises(NotFoundError):
        room.models.get(ME, "cells")
    return caught.value


@pytest.mark.parametrize(
    "op", ["eval", "python", "os.system", "Linear", "custom::op", "if", "loop", "__class__", "\x1b[2J"]
)
def test_an_operation_outside_the_list_is_refused_by_name(room: ModelRoom, op: str) -> None:
    layer = {**node("identity", {}, "x0", name="bad"), "op": op}
    error = hostile(room, document([layer], [(-1, 2)], (-1, 2)), "operation_not_allowed")
    assert error.details == {"node": "bad", "operation": op}
    assert f"`{op}` of node `bad`" in error.message


def chain(length: int) -> Any:
    nodes = [node("relu", {}, f"n{at - 1}" if at else "x0", name=f"n{at}") for at in range(length)]
    return document(nodes, [(-1, 2)], (-1, 2))


def linear(name: str, source: str, **params: str) -> dict[str, Any]:
    layer = node("linear", {"in_features": 2, "out_features": 2}, source, name=name)
    return {**layer, "params": {**layer["params"], **params}}


GRAPHS: dict[str, tuple[object, str]] = {
    "cycle of one": (document([node("add", {}, "x0", "n")], [(-1, 2)], (-1, 2)), "node `n` reads `n`"),
    "cycle of two": (
        document([node("add", {}, "x0", "b", name="a"), node("relu", {}, "a", name="b")], [(-1, 2)], (-1, 2)),
        "node `a` reads `b`, which nothing before it gives",
    ),
    "dangling input": (document([node("relu", {}, "nowhere")], [(-1, 2)], (-1, 2)), "node `n` reads `nowhere`"),
    "dangling output": (
        {**LAYER, "outputs": [{**LAYER["outputs"][0], "node": "nowhere"}]},
        "the output `y` is given by no node",
    ),
    "reads an output": (document([node("relu", {}, "y")], [(-1, 2)], (-1, 2)), "node `n` reads `y`"),
    "huge input": (
        document([node("relu", {}, "x0")], [(1 << 24,) * 8], (1 << 24,) * 8),
        "the input `x0` holds more than",
    ),
    "dimension past the limit": (document([node("relu", {}, "x0")], [(1 << 62,)], (1,)), "a dimension of an input"),
    "dimension that wraps": (document([node("relu", {}, "x0")], [(-(1 << 63),)], (1,)), "a dimension of an input"),
    "huge reshape": (
        document([node("reshape", {"shape": [1 << 24] * 8}, "x0")], [(-1, 2)], (-1, 2)),
        "node `n` cannot be a `reshape` here",
    ),
    "huge product": (
        document([node("matmul", {}, "x0", "x1")], [(-1, 1 << 24, 1), (1, 1 << 24)], (-1,)),
        "node `n` cannot be a `matmul` here",
    ),
    "huge parameters": (
        document(
            [node("linear", {"in_features": 1 << 20, "out_features": 1 << 20}, "x0")], [(-1, 1 << 20)], (-1, 1 << 20)
        ),
        "the parameters are larger than",
    ),
    "huge padding": (
        document(
            [node("conv2d", {"in_channels": 1, "out_channels": 1, "kernel_size": 1, "padding": 1 << 40}, "x0")],
            [(-1, 1, 4, 4)],
            (-1, 1, 4, 4),
        ),
        "the attribute `padding` of node `n` is out of bounds",
    ),
    "more nodes than allowed": (chain(4097), "`nodes` is a list of 1 to 4096 items"),
    "same id twice": (
        document([node("relu", {}, "x0"), node("tanh", {}, "n")], [(-1, 2)], (-1, 2)),
        "two nodes have the id `n`",
    ),
    "id of an input": (document([node("relu", {}, "x0", name="x0")], [(-1, 2)], (-1, 2)), "two nodes have the id `x0`"),
    "path as an id": (
        document([node("relu", {}, "x0", name="../../x")], [(-1, 2)], (-1, 2)),
        "a node's id is 1 to 128",
    ),
    "parameter of two nodes": (
        document(
            [linear("a", "x0"), linear("b", "a", weight="a.weight")],
            [(-1, 2)],
            (-1, 2),
        ),
        "the parameter `a.weight` has two places",
    ),
    "parameter of two roles": (
        document([linear("a", "x0", bias="a.weight")], [(-1, 2)], (-1, 2)),
        "the parameter `a.weight` has two places",
    ),
    "path as a parameter": (
        document([linear("a", "x0", bias="../../etc/passwd")], [(-1, 2)], (-1, 2)),
        "a parameter of `a` is 1 to 128 letters",
    ),
    "code in an attribute": (
        document([node("gelu", {"approximate": "__import__('os')"}, "x0")], [(-1, 2)], (-1, 2)),
        "the attribute `approximate` of node `n` is out of bounds or of another type",
    ),
    "attribute of another operation": (
        document([{**node("relu", {}, "x0"), "attrs": {"callback": "os.system"}}], [(-1, 2)], (-1, 2)),
        "the attributes of `n` are not those of its operation: `callback` is unknown",
    ),
    "external data": (
        {**LAYER, "external": "/etc/passwd"},
        "the graph is an object with exactly: format, inputs, nodes, outputs",
    ),
    "of another format": ({**LAYER, "format": "onnx"}, "the graph's format is `modelkeep.graph/1`"),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_hostile_graph_is_refused(room: ModelRoom, name: str) -> None:
    graph, message = GRAPHS[name]
    assert hostile(room, graph, "invalid_graph").message.startswith(message)


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-1e400", b"1" * 5000])
def test_numbers_that_are_none_are_refused(room: ModelRoom, number: bytes) -> None:
    text = encoded(document([node("elu", {"alpha": 0.125}, "x0")], [(-1, 2)], (-1, 2)))
    hostile(room, text.replace(b"0.125", number), "invalid_json")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        pytest.param(b"[" * 1_000_000, "invalid_json", id="depth"),
        pytest.param(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "invalid_json", id="depth of objects"),
        pytest.param(encoded(LAYER)[:-1] + b',"format":"modelkeep.graph/1"}', "invalid_json", id="name twice"),
        pytest.param(encoded(LAYER) + b"{}", "invalid_json", id="trailing bytes"),
        pytest.param(encoded(LAYER) + b" " * MAX_GRAPH_BYTES, "too_large", id="bytes"),
        pytest.param(pickle.dumps(LAYER), "invalid_json", id="pickle"),
        pytest.param(encoded(LAYER).replace(b'"y"', b'"\\ud800"'), "invalid_json", id="half a surrogate"),
    ],
)
def test_what_is_no_strict_json_is_refused(room: ModelRoom, text: bytes, code: str) -> None:
    hostile(room, text, code)


def test_the_longest_chain_is_admitted_and_run_without_recursion(room: ModelRoom) -> None:
    graph = chain(4096)
    new = room.send(weights=file_of({}), graph=graph)
    assert room.admission.complete(ME, new.upload.id).version == 1
    with contextlib.suppress(ImportError):
        import torch

        from modelkeep_platform.models.graph import parse
        from modelkeep_platform.models.graph.torch_build import build

        module = build(parse(encoded(graph)))
        assert module(torch.ones(1, 2)).tolist() == [[1.0, 1.0]]


@pytest.mark.torch
def test_what_is_admitted_is_what_the_library_of_the_worker_reads() -> None:
    library = pytest.importorskip("safetensors.torch")
    tensors = library.load(weights_of(GRAPH, fill=0))
    assert {name: tuple(value.shape) for name, value in tensors.items()} == {"layer.weight": (3, 2), "layer.bias": (3,)}


# --- over HTTP ----------------------------------------------------------------------------------------

EXTENSIONS = (".pt", ".bin", ".pkl", ".safetensors", ".npy", ".onnx", ".joblib", "")
SAMPLED = ("header of 2^64 - 1 bytes", "ranges that overlap", "a tensor twice", "shape transposed", "depth")
"""Broken safetensors, one of each kind of check; all of them are in `BROKEN`."""


class Edge:
    """A whole platform, and somebody who may upload to it."""

    def __init__(self, folder: Path) -> None:
        self.house = House(folder, tenant_refusals_per_minute=1_000_000, principal_refusals_per_minute=1_000_000)
        self.evidence = Evidence(self.house)
        self.http = self.house.http(self.house.acme.clients["developer"])

    def begin(self, graph: object, weights: bytes, name: str = "cells") -> httpx.Response:
        """Declare a version; `graph` may be the very bytes."""
        said = encoded({"weights_bytes": len(weights), "weights_sha256": hashlib.sha256(weights).hexdigest()})
        body = b'{"graph": ' + (graph if isinstance(graph, bytes) else encoded(graph)) + b", " + said[1:]
        headers = {"content-type": "application/json"}
        return self.http.post(f"/v1/models/{name}/versions", content=body, headers=headers)

    def send(self, weights: bytes, name: str) -> tuple[str, httpx.Response]:
        """Upload weights under a name; return the upload's id and what its completion is answered with."""
        begun = self.begin(LAYER, weights, name)
        assert begun.status_code == 201, begun.text
        path = f"/v1/uploads/{begun.json()['upload']['id']}"
        digest = {"content-digest": f"sha-256=:{b64encode(hashlib.sha256(weights).digest()).decode()}:"}
        assert self.http.put(f"{path}/parts/0", content=weights, headers=digest).status_code == 200
        return path.rpartition("/")[2], self.http.post(f"{path}/complete")

    def left(self) -> object:
        """Return all rows but those of uploads, which say that each ended, all blobs, and the storage that counts."""
        rows = {name: rows for name, rows in self.evidence.state().items() if not name.startswith("upload")}
        blobs = {path for path in (self.house.made.data / "blobs").rglob("*") if path.is_file()}
        return rows, blobs, self.house.acme.admin.tenant().limits["storage_mib"].used

    def attack(self, files: Iterable[tuple[str, bytes]], code: str) -> None:
        """Upload files under the names of models; see each refused with 422 and `code`, recorded, and nothing left."""
        before, sent = self.left(), [self.send(weights, name) for name, weights in files]
        assert [answer_of(answer) for _, answer in sent] == [(422, code)] * len(sent)
        assert self.left() == before
        assert self.http.get("/v1/models").json()["items"] == []
        for upload, answer in sent:
            ended, denied = self.evidence.entries(answer.headers["x-request-id"])
            facts = {"upload": upload, "version": 1, "code": code}
            assert ended == Entry("acme", Action.MODEL_CREATE, Outcome.FAILED, facts)
            assert (denied.tenant, denied.outcome, denied.facts["reason"]) == ("acme", Outcome.DENIED, code)


def answer_of(answer: httpx.Response) -> tuple[int, str]:
    """Return status and code of a refusal, of the documented shape."""
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "request_id", "details"}
    return answer.status_code, error["code"]


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    edge = Edge(Path(tmp_path_factory.mktemp("edge")))
    yield edge
    edge.http.close()
    edge.house.close()


def named(files: Iterable[bytes]) -> list[tuple[str, bytes]]:
    """Give each file a name with one extension after the other."""
    return [(f"m{n}{end}", file) for n, (file, end) in enumerate(zip(files, itertools.cycle(EXTENSIONS)))]


@pytest.mark.e2e
def test_a_pickle_is_refused_over_http_whatever_its_wrapper_and_extension(edge: Edge, tmp_path: Path) -> None:
    payload = Payload(tmp_path / "ran")
    edge.attack(named(wrap(payload) for wrap in PICKLES.values()), "pickle_refused")
    edge.attack(((f"same{end}", PICKLES["zip"](payload)) for end in EXTENSIONS), "pickle_refused")
    assert not payload.mark.exists()


@pytest.mark.e2e
def test_broken_weights_are_refused_over_http(edge: Edge, tmp_path: Path) -> None:
    payload = Payload(tmp_path / "ran")
    edge.attack(
        named([*(wrap(payload) for wrap in UNNAMED.values()), *(BROKEN[name][0] for name in SAMPLED)]),
        "invalid_weights",
    )
    assert not payload.mark.exists()


@pytest.mark.e2e
def test_a_hostile_graph_is_refused_over_http(edge: Edge) -> None:
    custom = document([{**node("identity", {}, "x0", name="bad"), "op": "custom::op"}], [(-1, 2)], (-1, 2))
    wanted = [(custom, 422, "operation_not_allowed"), (b"[" * 1000, 400, "invalid_json"), (b"NaN", 400, "invalid_json")]
    wanted += [(graph, 422, "invalid_graph") for graph, _ in GRAPHS.values()]
    with edge.evidence.nothing_changes():
        answers = [edge.begin(graph, WEIGHTS) for graph, _, _ in wanted]
    assert [answer_of(answer) for answer in answers] == [(status, code) for _, status, code in wanted]
    for answer, (_, _, code) in zip(answers, wanted, strict=True):
        facts = {"reason": code, "route": "POST /v1/models/{name}/versions"}
        (entry,) = edge.evidence.entries(answer.headers["x-request-id"])
        assert entry == Entry("acme", Action.MODEL_CREATE, Outcome.DENIED, facts)
