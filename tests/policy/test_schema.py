"""The schema, the enum of actions and the engine's names say the same."""

import re

import cedarpy
import pytest

from modelkeep_platform.access.engine import _TYPES
from modelkeep_platform.access.shipped import shipped
from modelkeep_platform.core.actions import GRANTABLE, PLATFORM_ACTIONS, Action
from modelkeep_platform.core.refs import Kind

SCHEMA = shipped("schema.cedarschema")


def declared() -> dict[str, tuple[set[str], set[str]]]:
    """Return each action's principal and resource types."""
    found = {}
    pattern = r"action ([^;{]+?)\s*appliesTo \{ principal: \[([^\]]+)\], resource: \[([^\]]+)\], context: Call \};"
    for names, principals, resources in re.findall(pattern, SCHEMA):
        for name in re.findall(r'"([^"]+)"', names):
            assert name not in found
            found[name] = (set(principals.split(", ")), set(resources.split(", ")))
    return found


def test_the_schema_lists_every_action_and_no_other() -> None:
    assert set(declared()) == {str(action) for action in Action}


def test_operators_are_principals_of_the_platforms_actions_alone() -> None:
    for name, (principals, resources) in declared().items():
        tenants = {"User", "ServiceAccount"}
        if name == Action.AUDIT_READ:
            assert (principals, resources) == (tenants | {"Operator"}, {"AuditLog"})
        elif Action(name) in PLATFORM_ACTIONS:
            assert (principals, resources) == ({"Operator"}, {"Platform"})
        else:
            assert principals == tenants


def test_every_kind_has_an_entity_type_with_owner_and_grants() -> None:
    assert set(_TYPES) == set(Kind)
    types = re.search(r"entity (Platform[^{]+)\{\s*tenant: String,\s*granted: Set<String>,\s*\}", SCHEMA)
    assert types is not None
    assert set(types[1].split()) == {f"{name}," for name in _TYPES.values()} - {"AuditLog,"} | {"AuditLog"}


def test_only_models_and_datasets_can_be_granted_and_never_a_change() -> None:
    assert {str(action) for action in GRANTABLE} == {
        "model:read",
        "model:predict",
        "model:export",
        "dataset:read",
        "dataset:train",
    }


@pytest.mark.parametrize(
    "text",
    [
        'permit (principal, action == Modelkeep::Action::"model:read", resource is Modelkeep::Dataset);',
        'permit (principal is Modelkeep::User, action == Modelkeep::Action::"tenant:create", resource);',
    ],
    ids=["another-kind", "another-principal"],
)
def test_an_action_of_another_kind_or_principal_is_refused(text: str) -> None:
    assert not cedarpy.validate_policies(text, SCHEMA).validation_passed
