"""One question to Cedar: what reaches it, and what every answer and every failure becomes."""

import json
from typing import Any

import cedarpy
import pytest

from fakes.access import MODEL
from fakes.core import ACME, GLOBEX, operator_caller, tenant_caller
from modelkeep_platform.access.engine import Context, Opinion, Verdict, ask, failed, question
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import Caller, PrincipalKind, Role
from modelkeep_platform.core.decisions import Attributes
from modelkeep_platform.core.ids import ObjectId, TenantId
from modelkeep_platform.core.refs import Kind, ResourceRef


def opinion_of(
    text: str, *, caller: Caller | None = None, context: Attributes | None = None, ref: ResourceRef = MODEL
) -> Opinion:
    asked = question(
        caller or tenant_caller(ACME, Role.ANALYST), Action.MODEL_READ, ref, context or {}, granted=frozenset({GLOBEX})
    )
    return ask(asked, cedarpy.PolicySet.from_str(text))


def holds(condition: str, **more: Any) -> bool:
    verdict = opinion_of(f"permit (principal, action, resource) when {{ {condition} }};", **more).verdict
    return verdict is Verdict.PERMIT


@pytest.mark.parametrize(
    ("text", "verdict", "policies"),
    [
        ("", Verdict.SILENT, ()),
        ("permit (principal, action, resource) when { context.version == 9 };", Verdict.SILENT, ()),
        ('@id("yes") permit (principal, action, resource);', Verdict.PERMIT, ("yes",)),
        ('@id("no") forbid (principal, action, resource);', Verdict.FORBID, ("no",)),
        (
            '@id("yes") permit (principal, action, resource); @id("no") forbid (principal, action, resource);',
            Verdict.FORBID,
            ("no",),
        ),
        (
            '@id("z") permit (principal, action, resource); @id("a") permit (principal, action, resource);',
            Verdict.PERMIT,
            ("a", "z"),
        ),
        ("permit (principal, action, resource);", Verdict.PERMIT, ("policy0",)),
        ("@id permit (principal, action, resource);", Verdict.PERMIT, ("policy0",)),
    ],
    ids=["empty", "other", "permit", "forbid", "forbid-wins", "sorted", "no-id", "bare-id"],
)
def test_what_policies_say_becomes_a_verdict_with_their_ids(
    text: str, verdict: Verdict, policies: tuple[str, ...]
) -> None:
    assert opinion_of(text) == Opinion(verdict=verdict, policies=policies)


@pytest.mark.parametrize(
    "failing",
    [
        '@id("x") forbid (principal, action, resource) when { context.version + 9223372036854775807 > 0 };',
        '@id("x") permit (principal, action, resource) when { context.version + 9223372036854775807 > 0 };',
        '@id("x") forbid (principal, action, resource) when { principal.nothing };',
    ],
    ids=["forbid", "permit", "attribute"],
)
def test_a_policy_that_fails_forbids_whatever_the_others_say(failing: str) -> None:
    opinion = opinion_of(f"permit (principal, action, resource); {failing}", context={"version": 1})
    assert (opinion.verdict, opinion.policies) == (Verdict.FORBID, ())
    assert opinion.error is not None
    assert "policy1" in opinion.error


def test_a_question_that_cedar_cannot_read_forbids() -> None:
    for caller, ref in (
        (tenant_caller(ACME, Role.TENANT_ADMIN, name="\ud800"), MODEL),
        (tenant_caller(), ResourceRef(owner=ACME, kind=Kind.MODEL, object_id=ObjectId("\ud800"))),
        (tenant_caller(), ResourceRef(owner=TenantId("\ud800"), kind=Kind.MODEL, object_id=ObjectId("m"))),
    ):
        opinion = opinion_of("permit (principal, action, resource);", caller=caller, ref=ref)
        assert opinion.verdict is Verdict.FORBID
        assert opinion.error


def test_no_decision_forbids(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = cedarpy.AuthzResult({"decision": "NoDecision", "diagnostics": {"reason": [], "errors": []}})
    monkeypatch.setattr(cedarpy, "is_authorized", lambda *_: nothing)
    assert opinion_of("permit (principal, action, resource);") == failed("no decision")


def test_principals_are_seen_with_type_id_tenant_roles_and_name() -> None:
    person = tenant_caller(ACME, Role.ANALYST, Role.AUDITOR, name="ana")
    account = tenant_caller(ACME, Role.ANALYST, name="ana", kind=PrincipalKind.SERVICE_ACCOUNT)
    who = f'principal.tenant == "{ACME}" && principal.name == "ana"'
    roles = 'principal.roles == ["analyst", "auditor"]'
    assert holds(f'principal == Modelkeep::User::"principal-ana" && {who} && {roles}', caller=person)
    assert holds(f'principal == Modelkeep::ServiceAccount::"principal-ana" && {who}', caller=account)
    operator = 'principal == Modelkeep::Operator::"operator" && principal.roles == [] && principal.tenant == "platform"'
    assert holds(operator, caller=operator_caller())


def test_resources_are_seen_with_type_id_owner_and_grantees() -> None:
    assert holds(
        f'resource == Modelkeep::Model::"mdl_acme" && resource.tenant == "{ACME}" && resource.granted == ["{GLOBEX}"]'
    )
    types = {}
    for kind in Kind:
        asked = question(
            tenant_caller(),
            Action.MODEL_READ,
            ResourceRef(owner=ACME, kind=kind, object_id=ObjectId("x")),
            {},
            granted=frozenset(),
        )
        resource: Any = asked.request["resource"]
        types[kind] = resource["type"]
    assert len(set(types.values())) == len(Kind)


def test_the_context_holds_name_alias_version_and_whether_tenants_differ_and_nothing_else() -> None:
    asked = question(
        tenant_caller(GLOBEX),
        Action.MODEL_READ,
        MODEL,
        {"name": "m", "alias": "production", "version": 3, "secret": "no"},
        granted=frozenset(),
    )
    assert json.loads(str(asked.request["context"])) == {
        "name": "m",
        "alias": "production",
        "version": 3,
        "cross_tenant": True,
    }


@pytest.mark.parametrize(
    ("version", "seen"),
    [(0, 0), (7, 7), ("7", 7), (10**18 - 1, 10**18 - 1), (10**18, 0), (-1, 0), ("², ", 0), ("²", 0), ("9" * 5000, 0)],
    ids=lambda value: repr(value)[:20],
)
def test_a_version_is_a_number_that_cedar_can_hold_or_none(version: str | int, seen: int) -> None:
    assert Context.of({"version": version}) == ("", "", seen)
    assert holds(f"context.version == {seen}", context={"version": version})
