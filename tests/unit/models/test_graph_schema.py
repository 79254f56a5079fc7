"""The published JSON schema agrees with the parser on every operation: what is taken, and what is refused."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from fakes.graphs import encoded, example
from modelkeep_platform.core.errors import UnprocessableError
from modelkeep_platform.models.graph import parse
from modelkeep_platform.models.graph.format import InvalidGraphError
from modelkeep_platform.models.graph.ops import OPS

REFERENCE = Path(__file__).resolve().parents[3] / "docs" / "reference"
jsonschema = pytest.importorskip("jsonschema")


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = json.loads((REFERENCE / "graph.schema.json").read_text(encoding="utf-8"))
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_every_example_of_the_page_is_a_graph(validator: Any) -> None:
    page = (REFERENCE / "graph.md").read_text(encoding="utf-8")
    examples = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    assert examples
    for text in examples:
        assert validator.is_valid(json.loads(text))
        parse(text.encode())


@pytest.mark.parametrize("op", OPS)
def test_every_operation_is_described(validator: Any, op: str) -> None:
    described = example(op)
    validator.validate(described)
    validator.validate(json.loads(parse(encoded(described)).to_json()))
    assert f"| `{op}` |" in (REFERENCE / "graph.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("op", "name"), [(op, name) for op in OPS for name in OPS[op].attrs])
def test_schema_and_parser_refuse_the_same_attributes(validator: Any, op: str, name: str) -> None:
    spec = OPS[op].attrs[name]
    wrong: list[object] = ["1", {}, [], [[1]]]
    if spec.kind in {"int", "float", "dim", "ints"}:
        wrong += [min(spec.low, spec.low * 1.5) - 1, spec.high * 1.5 + 1]
    if spec.kind != "bool":
        wrong += [True]
    if spec.required or spec.default is not None:
        wrong += [None]
    for value in wrong:
        described = example(op)
        described["nodes"][0]["attrs"][name] = value
        assert not validator.is_valid(described), value
        with pytest.raises(InvalidGraphError, match=re.escape(f"the attribute `{name}` of node `n`")):
            parse(encoded(described))


def test_the_schema_refuses_what_is_no_graph(validator: Any) -> None:
    good = example("linear")
    changes: list[tuple[list[Any], object]] = [
        (["format"], "modelkeep.graph/2"),
        (["extra"], 1),
        (["inputs"], []),
        (["inputs", 0, "dtype"], "float16"),
        (["inputs", 0, "shape"], [0]),
        (["nodes", 0, "id"], "a/b"),
        (["nodes", 0, "op"], "eval"),
        (["nodes", 0, "inputs"], []),
        (["nodes", 0, "attrs", "callback"], "f"),
        (["nodes", 0, "params", "weight"], "../x"),
        (["outputs", 0, "node"], 7),
    ]
    for path, value in changes:
        described = copy.deepcopy(good)
        at = described
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value
        assert not validator.is_valid(described), path
        with pytest.raises(UnprocessableError):
            parse(encoded(described))
