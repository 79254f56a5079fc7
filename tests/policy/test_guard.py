"""The tenant guard: asked of the shipped policies alone, with Python's own check out of the way."""

import itertools

import cedarpy
import pytest

from fakes.access import FOREIGN, INITECH, MODEL, AccessRoom
from fakes.core import ACME, GLOBEX, operator_caller, tenant_caller
from modelkeep_platform.access.engine import Verdict, ask, question
from modelkeep_platform.access.lexer import policies_of
from modelkeep_platform.access.opinions import Opinions
from modelkeep_platform.access.shipped import OWN_SIDE, OWNER_SIDE, SHIPPED, compiled, shipped
from modelkeep_platform.core.actions import GRANTABLE, PLATFORM_ACTIONS, Action
from modelkeep_platform.core.callers import Caller, PrincipalKind, Role
from modelkeep_platform.core.errors import NotFoundError
from modelkeep_platform.core.ids import ObjectId, TenantId
from modelkeep_platform.core.refs import PLATFORM_REF, Kind, ResourceRef

SIDES = {"own": OWN_SIDE, "owner": OWNER_SIDE}
NOBODY: frozenset[TenantId] = frozenset()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("action", Action, ids=str)
def test_the_guard_forbids_every_action_on_what_is_foreign_and_not_granted(side: str, action: Action) -> None:
    for caller in (tenant_caller(ACME, *Role), operator_caller()):
        opinion = ask(question(caller, action, FOREIGN, {}, granted=NOBODY), compiled(SIDES[side]))
        assert opinion.verdict is Verdict.FORBID
        assert "guard-tenant" in opinion.policies


@pytest.mark.parametrize("side", SIDES)
def test_a_grant_to_another_tenant_does_not_lift_the_guard(side: str) -> None:
    granted = frozenset({INITECH, GLOBEX})
    asked = question(tenant_caller(ACME, *Role), Action.MODEL_READ, FOREIGN, {}, granted=granted)
    assert ask(asked, compiled(SIDES[side])).policies == ("guard-tenant",)


@pytest.mark.parametrize("action", sorted(GRANTABLE), ids=str)
def test_a_grant_lifts_the_guard_for_its_grantee_and_permits_on_the_owners_side(action: Action) -> None:
    asked = question(tenant_caller(ACME, Role.AUDITOR), action, FOREIGN, {}, granted=frozenset({ACME}))
    assert ask(asked, compiled(OWNER_SIDE)).policies == ("grant",)
    assert ask(asked, compiled(OWN_SIDE)).verdict is Verdict.SILENT


@pytest.mark.parametrize("action", sorted(PLATFORM_ACTIONS - {Action.AUDIT_READ}), ids=str)
def test_no_tenants_caller_reaches_the_platforms_actions_even_as_the_platform(action: Action) -> None:
    # A tenant whose id were the platform's own passes the tenant guard; the operators' guard still stands.
    for caller in (tenant_caller(ACME, *Role), tenant_caller(PLATFORM_REF.owner, *Role)):
        ref = ResourceRef(owner=caller.tenant, kind=Kind.PLATFORM, object_id=ObjectId("platform"))
        opinion = ask(question(caller, action, ref, {}, granted=NOBODY), compiled(OWN_SIDE))
        assert (opinion.verdict, opinion.policies) == (Verdict.FORBID, ("guard-operators",))


def test_operators_have_nothing_but_the_platform_and_its_log() -> None:
    permitted = set()
    for kind, action in itertools.product(Kind, Action):
        ref = ResourceRef(owner=PLATFORM_REF.owner, kind=kind, object_id=ObjectId("x"))
        opinion = ask(question(operator_caller(), action, ref, {}, granted=NOBODY), compiled(OWN_SIDE))
        if opinion.verdict is Verdict.PERMIT and action in PLATFORM_ACTIONS:
            permitted.add((kind, action))
    assert permitted == {
        *((Kind.PLATFORM, action) for action in PLATFORM_ACTIONS),
        (Kind.AUDIT_LOG, Action.AUDIT_READ),
    }


@pytest.mark.parametrize(
    "text",
    [
        "permit (principal, action, resource);",
        "permit (principal, action, resource) when { context.cross_tenant };",
        f'permit (principal, action, resource) when {{ resource.tenant == "{GLOBEX}" }};',
        f'permit (principal, action, resource) when {{ principal.tenant != "{GLOBEX}" }};',
        'permit (principal, action, resource == Modelkeep::Model::"mdl_globex");',
    ],
    ids=["everything", "cross", "by-owner", "by-caller", "by-object"],
)
def test_no_permit_of_either_tenant_lifts_the_guard(room: AccessRoom, text: str) -> None:
    caller = tenant_caller(ACME, *Role)
    for tenant in (ACME, GLOBEX):
        room.put_policy(tenant, text)
    before = len(room.recorder.events)
    for action in Action:
        with pytest.raises(NotFoundError):
            room.authorizer.require(caller, action, FOREIGN)
    assert len(room.recorder.events) - before == len(Action)
    for tenant in (ACME, GLOBEX):
        room.put_policy(tenant, "")


def test_shipped_policies_are_valid_in_the_strict_sense_and_each_has_an_id() -> None:
    for name in (*SHIPPED, "tenant-default.cedar"):
        assert cedarpy.validate_policies(shipped(name), shipped("schema.cedarschema")).validation_passed, name
        assert all(source.label() is not None for source in policies_of(shipped(name)))


CALLERS: list[Caller] = [
    operator_caller(),
    tenant_caller(ACME, Role.AUDITOR, Role.ANALYST),
    *(tenant_caller(tenant, role, kind=kind) for tenant in (ACME, GLOBEX) for role in Role for kind in PrincipalKind),
]


@pytest.mark.parametrize("names", [OWN_SIDE, OWNER_SIDE], ids=["own", "owner"])
def test_a_kept_opinion_is_what_the_whole_question_gets(names: tuple[str, ...]) -> None:
    kept = Opinions(compiled(names), kept=8192)
    for caller, action, granted in itertools.product(CALLERS, Action, (NOBODY, frozenset({GLOBEX}))):
        for ref in (MODEL, PLATFORM_REF):
            asked = question(caller, action, ref, {"name": "m", "alias": "a", "version": 3}, granted=granted)
            assert kept.about(asked) == kept.about(asked) == ask(asked, compiled(names))
