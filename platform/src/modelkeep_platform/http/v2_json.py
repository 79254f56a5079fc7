"""Inference requests and answers of the Open Inference Protocol V2 in JSON: bytes in, tensors out, and back. Pure.

Numbers are decoded straight into the type that the tensor's datatype names, so that `true` is no number, `1.0` no
integer, and nothing but nested arrays of numbers stands in `data`. Refused too: duplicate names, NaN and infinity,
numbers outside the datatype, ragged data, data that disagrees with the shape, and fields that the protocol has not.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, NoReturn

import msgspec
import numpy as np

from modelkeep_platform.core import strictjson
from modelkeep_platform.core.errors import MalformedError, UnprocessableError
from modelkeep_platform.serving.tensors import Tensor

DTYPES: Final[Mapping[str, str]] = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "FP32": "float32",
    "FP64": "float64",
}
"""The protocol's datatypes that models take, and the graph's names of them."""

NAMES: Final[Mapping[str, str]] = {dtype: name for name, dtype in DTYPES.items()}

DEFAULT_TIMEOUT_S: Final = 30.0
MAX_TIMEOUT_MS: Final = 300_000
_MAX_TENSORS: Final = 64
_MAX_RANK: Final = 8
_MAX_ID_CHARS: Final = 256
_ENVELOPE_DEPTH: Final = 8
_FEW: Final = 64
_OPEN: Final = ord("[")
_STRINGS_OF_AN_INPUT: Final = 6
"""`name`, `shape`, `datatype` and `data`, the name's value and the datatype's."""


class RequestInput(msgspec.Struct, forbid_unknown_fields=True):
    """A tensor that is given; `data` is nested arrays of numbers, or one flat, row by row."""

    name: str
    shape: list[int]
    datatype: str
    data: msgspec.Raw
    parameters: dict[str, Any] = {}


class RequestOutput(msgspec.Struct, forbid_unknown_fields=True):
    """An output that is wanted."""

    name: str
    parameters: dict[str, Any] = {}


class InferenceRequest(msgspec.Struct, forbid_unknown_fields=True):
    """What is to be predicted; `parameters.timeout_ms` bounds the wait, without `outputs` all are given."""

    inputs: Annotated[list[RequestInput], msgspec.Meta(max_length=_MAX_TENSORS)]
    id: Annotated[str, msgspec.Meta(max_length=_MAX_ID_CHARS)] = ""
    parameters: dict[str, Any] = {}
    outputs: Annotated[list[RequestOutput], msgspec.Meta(max_length=_MAX_TENSORS)] = []


def _nested(number: type) -> list[msgspec.json.Decoder[Any]]:
    """Return a decoder for each depth of arrays, from 1."""
    decoders: list[msgspec.json.Decoder[Any]] = []
    wanted: Any = number
    for _ in range(_MAX_RANK):
        wanted = list[wanted]
        decoders.append(msgspec.json.Decoder(wanted))
    return decoders


_request: Final = msgspec.json.Decoder(InferenceRequest)
_floats: Final = _nested(float)
_ints: Final = _nested(int)
_bools: Final = _nested(bool)
_DATA: Final = {
    "bool": _bools,
    "uint8": _ints,
    "int32": _ints,
    "int64": _ints,
    "float32": _floats,
    "float64": _floats,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class InferRequest:
    """What was asked.

    Args:
        inputs: tensors by name.
        outputs: names of the wanted outputs, in order; empty for all.
        id: echoed in the answer; empty for none.
        timeout_s: how long the caller waits, in seconds.
    """

    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    id: str
    timeout_s: float


def parse_request(body: bytes) -> InferRequest:
    """Return the request in `body`.

    Raises:
        MalformedError: not strict JSON, not of this protocol, or data and shape or datatype disagree.
        UnprocessableError: a datatype that is not taken, a name given twice, or a time-out out of range.
    """
    try:
        request = _request.decode(body)
    except msgspec.ValidationError as exc:
        raise MalformedError(f"the body is not an inference request: {_lower(exc)}", code="invalid_body") from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise MalformedError("the body is not JSON", code="invalid_json") from exc
    _check_envelope(body, request)
    inputs = {item.name: _tensor(item) for item in request.inputs}
    outputs = tuple(item.name for item in request.outputs)
    if len(inputs) != len(request.inputs) or len(set(outputs)) != len(outputs):
        raise UnprocessableError("an input or output is named twice", code="invalid_input")
    return InferRequest(inputs=inputs, outputs=outputs, id=request.id, timeout_s=_timeout_s(request.parameters))


def _check_envelope(body: bytes, request: InferenceRequest) -> None:
    """Check names and depth of everything but the data, which the typed decoders check.

    A tensor's data is found by its address in the body and left out; scanning megabytes of numbers for names
    that cannot be there would be most of the work.
    """
    if _holds_each_once(body, request):
        return
    base, at, kept = _address(body), 0, []
    for item in request.inputs:
        start = _address(item.data) - base
        if not at <= start <= len(body):
            strictjson.check_structure(body, max_depth=_ENVELOPE_DEPTH + _MAX_RANK)
            return
        kept.append(body[at:start])
        at = start + len(memoryview(item.data))
    strictjson.check_structure(b"0".join([*kept, body[at:]]), max_depth=_ENVELOPE_DEPTH)


def _holds_each_once(body: bytes, request: InferenceRequest) -> bool:
    """Return whether every string of the text is one that was decoded, once: then no name can be there twice.

    What was decoded stands in the text at least once. Were anything there twice, or a name with its default, there
    would be more quotation marks. Without `parameters` nothing but data nests, which its own decoder bounds.
    """
    if request.parameters or request.outputs or b"\\" in body:
        return False
    strings = 3 if request.id else 1
    for item in request.inputs:
        if item.parameters:
            return False
        strings += _STRINGS_OF_AN_INPUT
    return body.count(b'"') == 2 * strings


def _address(buffer: Any) -> int:  # noqa: ANN401 -- anything with the buffer protocol
    address: int = np.frombuffer(buffer, dtype=np.uint8).__array_interface__["data"][0]
    return address


def _tensor(item: RequestInput) -> Tensor:
    name = item.name[:80]
    dtype = DTYPES.get(item.datatype)
    if dtype is None:
        raise UnprocessableError(
            f"the datatype of the input `{name}` is not taken in JSON; use one of {', '.join(DTYPES)}",
            code="unsupported_datatype",
        )
    if len(item.shape) > _MAX_RANK or any(size < 0 for size in item.shape):
        _refuse(name, f"has a shape that is not one: 0 to {_MAX_RANK} dimensions, none negative")
    array = _array(item.data, dtype, name)
    # Python's integers do not overflow: a product past any memory simply differs from the size.
    wanted = math.prod(item.shape)
    if array.size != wanted:
        _refuse(name, f"has {array.size} elements where its shape says {str(wanted)[:20]}")
    if array.ndim != 1 and list(array.shape) != item.shape:
        _refuse(name, f"nests like {list(array.shape)} where its shape says {item.shape}")
    return Tensor(dtype, tuple(item.shape), array.tobytes())


def _array(data: msgspec.Raw, dtype: str, name: str) -> "np.ndarray[Any, Any]":
    depth = _depth(bytes(memoryview(data)[:256]))
    if not 1 <= depth <= _MAX_RANK:
        _refuse(name, f"has data that is not an array nested 1 to {_MAX_RANK} deep")
    try:
        values = _DATA[dtype][depth - 1].decode(data)
        with np.errstate(over="ignore"):
            array = np.array(values, dtype=dtype)
    except OverflowError:
        _refuse(name, f"has a number outside {NAMES[dtype]}")
    except (msgspec.DecodeError, ValueError) as exc:
        why = _lower(exc) if isinstance(exc, msgspec.ValidationError) else "it is ragged or not JSON"
        _refuse(name, f"has data that is not {NAMES[dtype]}: {why}")
    if not _finite(array):
        _refuse(name, f"has a number outside {NAMES[dtype]}")
    return array


def _finite(array: "np.ndarray[Any, Any]") -> bool:
    if array.dtype.kind != "f":
        return True
    # A call of numpy's costs as much as a hundred numbers of Python's.
    return all(map(math.isfinite, array.ravel().tolist())) if array.size < _FEW else bool(np.isfinite(array).all())


def _depth(text: bytes) -> int:
    depth = 0
    for byte in text:
        if byte == _OPEN:
            depth += 1
        elif byte not in b" \t\r\n":
            break
    return depth


def _timeout_s(parameters: Mapping[str, Any]) -> float:
    given = parameters.get("timeout_ms")
    if given is None:
        return DEFAULT_TIMEOUT_S
    if not isinstance(given, int) or isinstance(given, bool) or not 0 < given <= MAX_TIMEOUT_MS:
        raise UnprocessableError(f"`timeout_ms` is a number from 1 to {MAX_TIMEOUT_MS}", code="invalid_timeout")
    return given / 1000


def encode_answer(
    *, model: str, version: int, request: InferRequest, outputs: Mapping[str, Tensor], names: tuple[str, ...]
) -> bytes:
    """Return the JSON answer.

    Args:
        model: the name as it was asked for.
        version: the version that answered.
        request: whose `id` is echoed and whose choice of outputs holds.
        outputs: what the model gave, by name.
        names: the model's outputs in order.

    Raises:
        UnprocessableError: an unknown output was asked for, or the answer holds NaN or infinity.
    """
    answer: dict[str, Any] = {"model_name": model, "model_version": str(version)}
    if request.id:
        answer["id"] = request.id
    answer["outputs"] = [_output(name, outputs[name]) for name in request.outputs or names]
    return msgspec.json.encode(answer)


def check_outputs(request: InferRequest, names: tuple[str, ...]) -> None:
    """Check that the wanted outputs are among the model's.

    Raises:
        UnprocessableError: one is not.
    """
    for name in request.outputs:
        if name not in names:
            raise UnprocessableError(
                f"the model has no output `{name[:80]}`; it has {', '.join(names)}", code="invalid_output"
            )


def _output(name: str, tensor: Tensor) -> dict[str, Any]:
    array = np.frombuffer(tensor.data, dtype=tensor.dtype)
    if not _finite(array):
        raise UnprocessableError(
            f"the output `{name}` holds NaN or infinity for these inputs, which JSON cannot carry",
            code="inference_failed",
        )
    return {"name": name, "datatype": NAMES[tensor.dtype], "shape": tensor.shape, "data": array.tolist()}


def _refuse(name: str, what: str) -> NoReturn:
    raise MalformedError(f"the input `{name}` {what}", code="invalid_tensor")


def _lower(exc: Exception) -> str:
    text = str(exc)
    return text[:1].lower() + text[1:]
