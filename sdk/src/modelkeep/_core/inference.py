"""The Open Inference Protocol in JSON: inputs to a request, an answer to outputs. No I/O."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from modelkeep._core.arrays import check_finite, flat_of, is_numpy, nested, shape_of
from modelkeep._core.decode import fields_of
from modelkeep.errors import ConfigurationError, ProtocolError

_NUMPY: Final = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP32": "float32",
    "FP64": "float64",
}
_MAX_RANK: Final = 16
DEFAULT_INPUT: Final = "input"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorMetadata:
    """What a model says of one input."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A request, and how its answer is to be given back."""

    body: dict[str, Any]
    single: bool
    as_numpy: bool


def metadata_of(value: object, model: str) -> tuple[TensorMetadata, ...]:
    """Return the inputs of a model's metadata.

    Raises:
        ProtocolError: it is not metadata, or of another model.
    """
    document = fields_of(value, "model metadata")
    check_model(document.get("name"), model)
    inputs = document.get("inputs")
    if not isinstance(inputs, list) or not inputs:
        raise ProtocolError("the model's metadata names no inputs")
    return tuple(_tensor(item) for item in inputs)


def prepare(inputs: object, expected: Sequence[TensorMetadata], *, request_id: str) -> Prepared:
    """Return the request for `inputs`.

    A value with one dimension less than the model's input is a single row: it gets the dimension, and the outputs
    lose it again.

    Args:
        inputs: a value for a model with one input, or a mapping from input names to values.
        expected: the model's inputs.
        request_id: echoed by the server.

    Raises:
        ConfigurationError: an input is missing, unknown, ragged, of another shape, or not finite.
    """
    given = _named(inputs, expected)
    shapes = {tensor.name: shape_of(given[tensor.name]) for tensor in expected}
    rows = [len(shapes[tensor.name]) == len(tensor.shape) - 1 for tensor in expected]
    if any(rows) and not all(rows):
        raise ConfigurationError("some inputs are single rows and others are batches")
    single = all(rows)
    tensors = []
    for tensor in expected:
        shape = [1, *shapes[tensor.name]] if single else shapes[tensor.name]
        _check_shape(tensor, shape)
        values = _typed(flat_of(given[tensor.name]), tensor)
        tensors.append({"name": tensor.name, "shape": shape, "datatype": tensor.datatype, "data": values})
    return Prepared(
        body={"id": request_id, "inputs": tensors},
        single=single,
        as_numpy=any(is_numpy(value) for value in given.values()),
    )


def guess(inputs: object, *, request_id: str) -> Prepared:
    """Return a request for a model whose inputs the caller may not read: a granted one, with predicting alone.

    A value without a name goes to the input `input`; one dimension is taken for a single row; lists are FP32.
    """
    given: Mapping[str, Any] = inputs if isinstance(inputs, Mapping) else {DEFAULT_INPUT: inputs}
    shapes = {name: shape_of(value) for name, value in given.items()}
    single = all(len(shape) <= 1 for shape in shapes.values())
    tensors = []
    for name, value in given.items():
        shape = [1, *shapes[name]] if single else shapes[name]
        known = {dtype: datatype for datatype, dtype in _NUMPY.items()}
        tensor = TensorMetadata(
            name=name, datatype=known.get(str(getattr(value, "dtype", "")), "FP32"), shape=tuple(shape)
        )
        values = _typed(flat_of(value), tensor)
        tensors.append({"name": name, "shape": shape, "datatype": tensor.datatype, "data": values})
    return Prepared(
        body={"id": request_id, "inputs": tensors},
        single=single,
        as_numpy=any(is_numpy(value) for value in given.values()),
    )


def outputs_of(value: object, prepared: Prepared, *, model: str, version: str) -> Any:  # noqa: ANN401 -- array, list or a dict of them
    """Return the outputs: the one value, or a dictionary of several; numpy arrays where numpy went in.

    Raises:
        ProtocolError: the answer is for another request or model, or data and shape disagree.
    """
    document = fields_of(value, "prediction")
    if document.get("id") != prepared.body["id"]:
        raise ProtocolError("the server answered another request than ours")
    check_model(document.get("model_name"), model)
    # By an alias, or by none, the server chooses the version.
    if version.isascii() and version.isdigit() and document.get("model_version") != str(int(version)):
        raise ProtocolError("the server answered for another version")
    outputs = document.get("outputs")
    if not isinstance(outputs, list) or not outputs:
        raise ProtocolError("the server's answer holds no outputs")
    found: dict[str, Any] = {}
    for output in outputs:
        tensor = _tensor(output)
        if tensor.name in found:
            raise ProtocolError(f"the server's answer holds the output `{tensor.name}` twice")
        found[tensor.name] = _value(tensor, fields_of(output, "output").get("data"), prepared)
    return next(iter(found.values())) if len(found) == 1 else found


def check_model(found: object, model: str) -> None:
    """Check that an answer names `model`, with or without its owner.

    Raises:
        ProtocolError: it names another.
    """
    if found not in (model, model.rpartition("~")[2]):
        raise ProtocolError("the server answered for another model")


def _named(inputs: object, expected: Sequence[TensorMetadata]) -> Mapping[str, Any]:
    names = [tensor.name for tensor in expected]
    if not isinstance(inputs, Mapping):
        if len(names) != 1:
            listed = ", ".join(f"`{name}`" for name in names)
            raise ConfigurationError(f"this model has several inputs; pass a mapping with {listed}")
        return {names[0]: inputs}
    for name in inputs:
        if name not in names:
            raise ConfigurationError(f"this model has no input `{name}`; it has {', '.join(f'`{n}`' for n in names)}")
    for name in names:
        if name not in inputs:
            raise ConfigurationError(f"the input `{name}` is missing")
    return inputs


def _check_shape(tensor: TensorMetadata, shape: Sequence[int]) -> None:
    fits = len(shape) == len(tensor.shape) and all(
        want in (-1, size) for want, size in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        raise ConfigurationError(
            f"input `{tensor.name}` has the shape {list(shape)}, the model wants {list(tensor.shape)} (-1 varies)"
        )


def _typed(values: list[Any], tensor: TensorMetadata) -> list[Any]:
    """Return `values` as the numbers of the tensor's datatype, as JSON writes them."""
    check_finite(values, tensor.name)
    if tensor.datatype.startswith("FP"):
        return [float(value) for value in values]
    if tensor.datatype == "BOOL":
        return [bool(value) for value in values]
    if any(int(value) != value for value in values):
        raise ConfigurationError(f"input `{tensor.name}` takes whole numbers")
    return [int(value) for value in values]


def _value(tensor: TensorMetadata, data: object, prepared: Prepared) -> Any:  # noqa: ANN401
    shape = list(tensor.shape)
    if not isinstance(data, list) or any(size < 0 for size in shape):
        raise ProtocolError(f"the output `{tensor.name}` is not a tensor")
    flat = flat_of(data)
    if len(flat) != math.prod(shape) or (shape_of(data) != shape and len(data) != len(flat)):
        raise ProtocolError(f"the output `{tensor.name}` holds another number of values than its shape says")
    if any(not isinstance(item, int | float | None) for item in flat):
        raise ProtocolError(f"the output `{tensor.name}` holds something that is no number")
    values = [math.nan if item is None else item for item in flat]
    if prepared.single:
        if not shape or shape[0] != 1:
            raise ProtocolError(f"the output `{tensor.name}` is not one row")
        shape = shape[1:]
    if not prepared.as_numpy:
        return nested(values, shape)
    numpy = sys.modules["numpy"]
    return numpy.array(values, dtype=_NUMPY[tensor.datatype]).reshape(shape)


def _tensor(value: object) -> TensorMetadata:
    found = fields_of(value, "tensor")
    name, datatype, shape = found.get("name"), found.get("datatype"), found.get("shape")
    if not isinstance(name, str) or datatype not in _NUMPY or not isinstance(shape, list) or len(shape) > _MAX_RANK:
        raise ProtocolError("a tensor of the server's answer is not one")
    if any(type(size) is not int or size < -1 for size in shape):
        raise ProtocolError("a shape of the server's answer is not one")
    return TensorMetadata(name=name, datatype=datatype, shape=tuple(shape))
