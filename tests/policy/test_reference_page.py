"""`docs/reference/policies.md` says what the code, the schema and the cases say, and its policies are valid."""

import json
import re
from pathlib import Path

import pytest

from modelkeep_platform.access.engine import _TYPES
from modelkeep_platform.access.shipped import shipped
from modelkeep_platform.access.validation import validate
from modelkeep_platform.core.actions import GRANTABLE, PLATFORM_ACTIONS, Action
from modelkeep_platform.core.callers import Role

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "reference" / "policies.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```cedar\n(.*?)```", PAGE, re.DOTALL)
ACCESS = ROOT / "platform" / "src" / "modelkeep_platform" / "access"


def rows(first: str) -> list[list[str]]:
    """Return the cells of the table whose head begins with `first`."""
    lines = PAGE.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith(f"| {first} |"))
    found = []
    for line in lines[at + 2 :]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def test_the_table_of_roles_is_what_the_cases_decide() -> None:
    allowed = set()
    for path in (ROOT / "policies" / "cases").glob("*.json"):
        for case in json.loads(path.read_text(encoding="utf-8"))["cases"]:
            plain = not {"policies", "grants", "context"} & set(case) and case["principal"] != "service_account"
            if plain and case["expect"]["decision"] == "allow" and len(case["roles"]) < 2:
                allowed.add((case["action"], "operator" if case["principal"] == "operator" else case["roles"][0]))
    columns = [*map(str, Role), "operator"]
    shown = set()
    table = rows("action")
    for name, *cells in table:
        action = name.strip("`")
        shown |= {(action, who) for who, cell in zip(columns, cells, strict=False) if cell == "yes"}
        assert (cells[len(columns)] == "yes") == (Action(action) in GRANTABLE)
    assert shown == allowed
    assert {name.strip("`") for name, *_ in table} == {str(action) for action in Action}


def test_every_attribute_of_the_schema_and_every_entity_type_is_described() -> None:
    described = {name.strip("`") for name, *_ in rows("name")}
    context = re.search(r"type Call = \{([^}]*)\}", shipped("schema.cedarschema"))
    assert context is not None
    wanted = {f"context.{name}" for name in re.findall(r"(\w+):", context[1])}
    wanted |= {f"principal.{name}" for name in ("tenant", "roles", "name")}
    wanted |= {"principal", "action", "resource", "resource.tenant", "resource.granted"}
    assert described == wanted
    types = " ".join(name for name, *_ in rows("entity type"))
    assert set(re.findall(r"Modelkeep::(\w+)", types)) == set(_TYPES.values())


def test_what_the_contexts_name_is_is_said_once_for_every_action_of_tenants() -> None:
    said = [action for actions, _ in rows("actions") for action in re.findall(r"`([^`]+)`", actions)]
    assert sorted(said) == sorted({*Action} - PLATFORM_ACTIONS | {Action.AUDIT_READ})


@pytest.mark.parametrize("text", EXAMPLES, ids=[re.findall(r'"([^"]+)"', text)[0] for text in EXAMPLES])
def test_an_example_is_valid_and_is_one_that_cases_decide_by(text: str) -> None:
    assert len(validate(text)) == 1
    name = re.findall(r'@id\("([^"]+)"\)', text)[0]
    assert (ROOT / "policies" / "examples" / f"{name}.cedar").read_text(encoding="utf-8").endswith(text)


def test_every_code_of_the_room_is_described() -> None:
    described = {name.strip("`") for name, *_ in rows("code")}
    raised = set()
    for path in ACCESS.glob("*.py"):
        raised |= set(re.findall(r'code(?:: str)? ?= ?"([a-z_]+)"', path.read_text(encoding="utf-8")))
    assert raised - described == set()
    assert {"not_found", "too_large", "integrity", "epoch_unreadable"} <= described
