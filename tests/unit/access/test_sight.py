"""What policies can see: what their text reads, in policies whose scope takes the action, and all when in doubt."""

import cedarpy
import pytest

from modelkeep_platform.access.shipped import OWN_SIDE, OWNER_SIDE, compiled
from modelkeep_platform.access.sight import EVERYTHING, NOTHING, Sight, Sights
from modelkeep_platform.core.actions import Action

PRINCIPAL = Sight(principal=True, principal_name=True)
CONTEXT = Sight(name=True, alias=True, version=True)

CONDITIONS = {
    "true": NOTHING,
    'principal.roles.contains("analyst") && principal.tenant == resource.tenant': NOTHING,
    "resource.granted.contains(principal.tenant) || context.cross_tenant": NOTHING,
    "principal is Modelkeep::User && resource is Modelkeep::Model": NOTHING,
    "context has alias && principal has name && resource has tenant": NOTHING,
    'action == Modelkeep::Action::"model:read"': NOTHING,
    'principal.name == "ana"': Sight(principal_name=True),
    'principal["name"] like "a*"': Sight(principal_name=True),
    'context.name == "x"': Sight(name=True),
    'context["alias"] == "x"': Sight(alias=True),
    "context.version > 3": Sight(version=True),
    'if context.alias == "" then context.version > 1 else principal.name == "x"': Sight(
        alias=True, version=True, principal_name=True
    ),
    '[context.name].contains("x")': Sight(name=True),
    '{a: {b: context.name}}.a.b == "x"': Sight(name=True),
    "principal == principal": PRINCIPAL,
    '{a: principal}.a.name == "x"': PRINCIPAL,
    '(if true then principal else principal).name == "x"': PRINCIPAL,
    "[principal].contains(resource)": PRINCIPAL | Sight(object=True),
    "principal in resource": PRINCIPAL | Sight(object=True),
    "principal is Modelkeep::User in resource": PRINCIPAL | Sight(object=True),
    "[resource] == []": Sight(object=True),
    "{c: context}.c.cross_tenant": CONTEXT,
    "context == {}": CONTEXT,
    'Modelkeep::User::"u1".name == "x"': EVERYTHING,
    'Modelkeep::User::"u1" has name': EVERYTHING,
    'resource == Modelkeep::Model::"m1"': EVERYTHING,
    "principal has name.first": Sight(principal_name=True),
    'context.unheard_of == "x"': EVERYTHING,
    'principal.hasTag("x")': PRINCIPAL,
}


def sight(text: str, action: str = "model:read") -> Sight:
    return Sights(cedarpy.PolicySet.from_str(text)).of(action)


@pytest.mark.parametrize("keyword", ["when", "unless"])
@pytest.mark.parametrize(("condition", "seen"), CONDITIONS.items(), ids=CONDITIONS.keys())
def test_a_condition_sees_what_it_reads(condition: str, seen: Sight, keyword: str) -> None:
    assert sight(f"permit (principal, action, resource) {keyword} {{ {condition} }};") == seen


SCOPES = {
    "principal, action, resource": NOTHING,
    "principal is Modelkeep::User, action, resource is Modelkeep::Model": NOTHING,
    'principal == Modelkeep::User::"u", action, resource': Sight(principal=True),
    'principal in Modelkeep::User::"u", action, resource': Sight(principal=True),
    'principal is Modelkeep::User in Modelkeep::User::"u", action, resource': Sight(principal=True),
    'principal, action, resource == Modelkeep::Model::"m"': Sight(object=True),
    'principal, action, resource in Modelkeep::Model::"m"': Sight(object=True),
    'principal, action, resource is Modelkeep::Model in Modelkeep::Model::"m"': Sight(object=True),
}


@pytest.mark.parametrize(("scope", "seen"), SCOPES.items(), ids=SCOPES.keys())
def test_a_scope_sees_whom_it_names(scope: str, seen: Sight) -> None:
    assert sight(f"forbid ({scope});") == seen


def test_policies_of_other_actions_see_nothing_of_this_one() -> None:
    text = """
    forbid (principal, action == Modelkeep::Action::"model:read", resource) when { context.name == "x" };
    forbid (principal, action in [Modelkeep::Action::"model:export", Modelkeep::Action::"model:delete"], resource)
    when { context.alias == "x" };
    permit (principal, action, resource) when { principal.name == "x" };
    """
    found = Sights(cedarpy.PolicySet.from_str(text))
    assert found.of("model:read") == Sight(name=True, principal_name=True)
    assert found.of("model:export") == found.of("model:delete") == Sight(alias=True, principal_name=True)
    assert found.of("model:predict") == Sight(principal_name=True)


def test_what_cannot_be_looked_into_sees_everything() -> None:
    # The tree goes a hundred levels deep; Cedar's own parser goes further.
    deep = "permit (principal, action, resource) when { true" + " && true" * 150 + " };"
    policies = cedarpy.PolicySet.from_str(deep)
    with pytest.raises(ValueError, match="nest"):
        policies.to_pst()
    assert sight(deep) == EVERYTHING
    assert sight("permit (principal == ?principal, action, resource);") == EVERYTHING


@pytest.mark.parametrize("names", [OWN_SIDE, OWNER_SIDE], ids=["own", "owner"])
@pytest.mark.parametrize("action", Action)
def test_shipped_policies_see_no_one_principal_object_or_call(names: tuple[str, ...], action: Action) -> None:
    assert Sights(compiled(names)).of(action) == NOTHING
