"""Every text of `policies/bad` is refused, at the place and with the words that `expected.json` says."""

import json
from pathlib import Path
from typing import Any

import pytest

from modelkeep_platform.access.validation import InvalidPolicyError, validate, warnings_of

POLICIES = Path(__file__).resolve().parents[2] / "policies"
EXPECTED: dict[str, list[dict[str, Any]]] = json.loads((POLICIES / "bad" / "expected.json").read_text())


def test_every_bad_policy_has_its_expectation() -> None:
    assert {path.stem for path in (POLICIES / "bad").glob("*.cedar")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_bad_policy_is_refused_with_its_place(name: str) -> None:
    with pytest.raises(InvalidPolicyError) as raised:
        validate((POLICIES / "bad" / f"{name}.cedar").read_text(encoding="utf-8"))
    found: Any = raised.value.details["errors"]
    assert raised.value.error_code == "invalid_policy"
    assert [(at["line"], at["column"]) for at in found] == [(at["line"], at["column"]) for at in EXPECTED[name]]
    for said, expected in zip(found, EXPECTED[name], strict=True):
        assert expected["says"] in said["message"]
        assert "policy0" not in said["message"]
    first = found[0]
    place = f"line {first['line']}, column {first['column']}"
    assert raised.value.message == f"the policy is refused at {place}: {first['message']}"


@pytest.mark.parametrize("path", sorted((POLICIES / "examples").glob("*.cedar")), ids=lambda path: path.stem)
def test_an_example_is_accepted_without_warnings(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(validate(text)) == 1
    assert warnings_of(text) == ()
    assert f'@id("{path.stem}")' in text
