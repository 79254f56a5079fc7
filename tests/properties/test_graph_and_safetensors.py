"""Whatever bytes come, the parsers of graphs and of safetensors headers raise documented errors only, and soon."""

import copy
import json
import math
import time
from typing import Any, Final

from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.graphs import EXAMPLES, encoded, example, file_of, header_of, weights_of
from fakes.registry import GRAPH
from modelkeep_platform.core.errors import MalformedError, TooLargeError, UnprocessableError
from modelkeep_platform.core.safetensors import WIDTHS
from modelkeep_platform.datasets.readers.tensors import header_end, parse_header
from modelkeep_platform.datasets.spec import InvalidDatasetError
from modelkeep_platform.models import safetensors_check
from modelkeep_platform.models.graph import Graph, parse
from modelkeep_platform.models.graph.ops import OPS

SOON_S: Final = 2.0
CODES: Final = {"operation_not_allowed", "invalid_graph", "invalid_json", "too_large"}

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 1, 2**31, 2**63, -(2**63) - 1, 2**64, 10**300]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.sampled_from(["linear", "relu", "float32", "n", "x0", "F32", "modelkeep.graph/1", "__metadata__"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


def graph_or_refusal(data: bytes) -> Graph | None:
    began = time.process_time()
    try:
        return parse(data)
    except (UnprocessableError, MalformedError, TooLargeError) as exc:
        assert exc.error_code in CODES  # noqa: PT017 -- or nothing is raised
        assert 0 < len(exc.message) < 600  # noqa: PT017
        return None
    finally:
        assert time.process_time() - began < SOON_S


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value within a document."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += places(inner, (*path, key))
    return found


def put(document: Any, path: tuple[Any, ...], value: object) -> Any:
    changed = copy.deepcopy(document)
    at = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return changed


@given(st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_refused_as_graphs(data: bytes) -> None:
    assert graph_or_refusal(data) is None


@given(values)
@settings(max_examples=200, deadline=None)
def test_any_json_is_refused_as_a_graph(value: object) -> None:
    assert graph_or_refusal(encoded(value)) is None


@given(st.data(), st.sampled_from(sorted(EXAMPLES)), values)
@settings(max_examples=400, deadline=None)
def test_a_graph_with_any_value_exchanged_is_refused_or_is_its_own_canonical_form(
    data: st.DataObject, op: str, value: object
) -> None:
    good = example(op)
    path = data.draw(st.sampled_from(places(good)))
    graph = graph_or_refusal(encoded(put(good, path, value)))
    if graph is not None:
        assert parse(graph.to_json()) == graph
        assert graph.parameter_bytes() >= 0


def attribute(op: str, name: str) -> st.SearchStrategy[Any]:
    spec = OPS[op].attrs[name]
    if spec.kind == "bool":
        return st.booleans()
    if spec.kind == "choice":
        return st.sampled_from(spec.choices)
    if spec.kind in {"float", "floats"}:
        numbers: st.SearchStrategy[Any] = st.floats(spec.low, spec.high)
        return st.lists(numbers, min_size=1, max_size=4) if spec.kind == "floats" else numbers
    low, high = int(spec.low), int(spec.high)
    whole = st.integers(low, min(high, low + 9)) | st.sampled_from([low, high])
    return whole | st.lists(whole, min_size=1, max_size=3) if spec.kind == "ints" else whole


@given(st.data(), st.sampled_from([op for op in sorted(EXAMPLES) if OPS[op].attrs]))
@settings(max_examples=300, deadline=None)
def test_attributes_within_their_bounds_never_break_the_checks(data: st.DataObject, op: str) -> None:
    good = example(op)
    attrs = {name: data.draw(attribute(op, name)) for name in OPS[op].attrs}
    shape = data.draw(st.lists(st.sampled_from([-1, 1, 2, 3, 8, 1 << 24]), max_size=5))
    good["inputs"][0]["shape"] = shape
    good["outputs"][0]["shape"] = data.draw(st.lists(st.just(-1), max_size=5))
    good["nodes"][0]["attrs"] = attrs
    graph_or_refusal(encoded(good))


# --- safetensors ------------------------------------------------------------------------------------


def both_parsers(data: bytes) -> None:
    """Read bytes as weights and as a dataset."""
    began = time.process_time()
    try:
        end = safetensors_check.header_bytes(data, len(data))
        safetensors_check.check(data[8:end], len(data) - end, GRAPH.parameters())
    except UnprocessableError as exc:
        assert exc.error_code in {"invalid_weights", "pickle_refused"}  # noqa: PT017 -- or nothing is raised
        assert len(exc.message) < 600  # noqa: PT017
    try:
        end = header_end(data, len(data))
        check_cover(parse_header(data[8:end], len(data) - end), len(data) - end)
    except InvalidDatasetError as exc:
        assert exc.error_code == "invalid_dataset"  # noqa: PT017
    assert time.process_time() - began < SOON_S


def check_cover(tensors: list[Any], data_bytes: int) -> None:
    """What was accepted covers the data once, whatever was sent."""
    at = 0
    for tensor in tensors:
        assert tensor.begin == at
        assert tensor.end - tensor.begin == math.prod(tensor.shape) * WIDTHS[tensor.dtype]
        at = tensor.end
    assert at == data_bytes


@given(st.binary(max_size=400))
@settings(max_examples=150, deadline=None)
def test_any_bytes_as_a_file(data: bytes) -> None:
    both_parsers(data)


@given(values, st.binary(max_size=40))
@settings(max_examples=150, deadline=None)
def test_any_json_as_a_header(header: object, data: bytes) -> None:
    both_parsers(file_of(header, data))


@given(st.data(), values)
@settings(max_examples=300, deadline=None)
def test_a_header_with_any_value_exchanged(data: st.DataObject, value: object) -> None:
    header, size = header_of(GRAPH)
    path = data.draw(st.sampled_from(places(header)))
    both_parsers(file_of(put(header, path, value), bytes(size)))


@given(st.integers(0, len(weights_of(GRAPH)) - 1), st.integers(0, 255), st.integers(0, 3))
@settings(max_examples=300, deadline=None)
def test_one_changed_byte_or_a_cut_end(at: int, byte: int, cut: int) -> None:
    weights = bytearray(weights_of(GRAPH))
    weights[at] = byte
    both_parsers(bytes(weights[: len(weights) - cut]))


entries = st.tuples(st.sampled_from(sorted(WIDTHS)), st.lists(st.integers(0, 4), max_size=4))


@given(st.lists(entries, max_size=6), st.permutations(range(6)))
@settings(max_examples=150, deadline=None)
def test_every_well_formed_file_is_read_whatever_the_order_of_its_names(
    described: list[tuple[str, list[int]]], order: list[int]
) -> None:
    header: dict[str, Any] = {}
    at = 0
    for number, (dtype, shape) in enumerate(described):
        end = at + math.prod(shape) * WIDTHS[dtype]
        header[f"t{number}"] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
        at = end
    names = [f"t{number}" for number in order if number < len(described)]
    file = file_of({name: header[name] for name in names}, bytes(at))
    end = header_end(file, len(file))
    tensors = parse_header(file[8:end], len(file) - end)
    check_cover(tensors, at)
    assert {one.name: (one.dtype, list(one.shape)) for one in tensors} == {
        name: (entry["dtype"], entry["shape"]) for name, entry in header.items()
    }


def test_large_hostile_headers_are_refused_soon() -> None:
    entry = {"dtype": "F32", "shape": [1 << 47] * 8, "data_offsets": [0, 4]}
    both_parsers(file_of({f"t{number}": entry for number in range(4_000)}))
    both_parsers(file_of({"t": {**entry, "shape": [1 << 47] * 60_000}}))
    both_parsers(file_of(json.dumps({f"t{number}": {} for number in range(50_000)}).encode()))
