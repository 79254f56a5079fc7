"""Opinions: each asked once for all questions that look the same to the policies, and bounded."""

import tracemalloc

import cedarpy
import pytest

from fakes.access import MODEL
from fakes.core import ACME, GLOBEX, tenant_caller
from modelkeep_platform.access import opinions as module
from modelkeep_platform.access.engine import Opinion, Question, Verdict, ask, question
from modelkeep_platform.access.opinions import Opinions
from modelkeep_platform.access.shipped import OWN_SIDE, compiled
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import Role
from modelkeep_platform.core.decisions import Attributes
from modelkeep_platform.core.ids import ObjectId
from modelkeep_platform.core.refs import Kind, ResourceRef


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Question]:
    """Every question that reaches Cedar."""
    found: list[Question] = []

    def counted(asking: Question, policies: cedarpy.PolicySet) -> Opinion:
        found.append(asking)
        return ask(asking, policies)

    monkeypatch.setattr(module, "ask", counted)
    return found


def about(name: str = "ana", number: int = 1, context: Attributes | None = None) -> Question:
    ref = ResourceRef(owner=ACME, kind=Kind.MODEL, object_id=ObjectId(f"mdl_{number}"))
    caller = tenant_caller(ACME, Role.ANALYST, name=name)
    return question(caller, Action.MODEL_READ, ref, context or {}, granted=frozenset())


def test_it_is_asked_once_whatever_principal_object_and_context(asked: list[Question]) -> None:
    policies = Opinions(compiled(OWN_SIDE), kept=16)
    for name in ("ana", "bob"):
        for number in range(3):
            assert policies.about(about(name, number, {"version": number})).policies == ("analyst-uses",)
    assert len(asked) == 1
    globex = tenant_caller(GLOBEX, Role.ANALYST)
    policies.about(question(globex, Action.MODEL_READ, MODEL, {}, granted=frozenset()))
    granted = frozenset({GLOBEX})
    policies.about(question(tenant_caller(ACME, Role.ANALYST), Action.MODEL_READ, MODEL, {}, granted=granted))
    assert len(asked) == 3


def test_what_a_policy_reads_tells_questions_apart_and_nothing_else_does(asked: list[Question]) -> None:
    text = 'forbid (principal, action, resource) when { context.alias == "draft" && principal.name == "ana" };'
    policies = Opinions(cedarpy.PolicySet.from_str(text), kept=16)
    for number in range(3):
        assert policies.about(about("ana", number, {"alias": "draft", "version": number})).verdict is Verdict.FORBID
        assert policies.about(about("ana", number, {"alias": "live"})).verdict is Verdict.SILENT
        assert policies.about(about("bob", number, {"alias": "draft"})).verdict is Verdict.SILENT
    assert len(asked) == 3


def test_a_policy_for_one_object_is_asked_for_each(asked: list[Question]) -> None:
    text = 'forbid (principal, action, resource == Modelkeep::Model::"mdl_1");'
    policies = Opinions(cedarpy.PolicySet.from_str(text), kept=16)
    said = [policies.about(about(number=number)).verdict for number in (0, 1, 2, 1)]
    assert said == [Verdict.SILENT, Verdict.FORBID, Verdict.SILENT, Verdict.FORBID]
    assert len(asked) == 3


def test_no_more_are_kept_than_asked_for(asked: list[Question]) -> None:
    text = 'permit (principal, action, resource == Modelkeep::Model::"mdl_1");'
    policies = Opinions(cedarpy.PolicySet.from_str(text), kept=2)
    for number in (1, 2, 3, 1):
        policies.about(about(number=number))
    assert len(asked) == 4


def test_a_failure_is_told_and_not_kept(asked: list[Question]) -> None:
    # The engine's words repeat the policy's, 60 KB of them.
    text = f'forbid (principal, action, resource) when {{ Modelkeep::User::"{"y" * 60_000}".name == context.name }};'
    policies = Opinions(cedarpy.PolicySet.from_str(text), kept=16)
    for _ in range(2):
        opinion = policies.about(about(context={"name": "m"}))
        assert opinion.verdict is Verdict.FORBID
        assert opinion.error is not None
    assert len(asked) == 2


def test_what_is_kept_of_hostile_policies_is_small() -> None:
    ids = [f"{number:03d}-{'i' * 60}" for number in range(200)]
    text = "\n".join(
        f'@id("{one}") permit (principal, action, resource) when {{ context.name != "{one}" }};' for one in ids
    )
    policies = Opinions(cedarpy.PolicySet.from_str(text), kept=256)
    tracemalloc.start()
    try:
        for number in range(300):
            assert len(policies.about(about(context={"name": f"m-{number}"})).policies) == 200
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 2**20
