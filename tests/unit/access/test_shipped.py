"""The shipped policies: found in a checkout and in an installation, compiled once, asked once a shape."""

from pathlib import Path

import cedarpy
import pytest

from fakes.access import MODEL
from fakes.core import ACME, GLOBEX, tenant_caller
from modelkeep_platform.access import shipped as module
from modelkeep_platform.access.engine import Opinion, Question, ask, question
from modelkeep_platform.access.shipped import OWN_SIDE, ShippedPolicies, compiled, shipped
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import Role
from modelkeep_platform.core.ids import ObjectId
from modelkeep_platform.core.refs import Kind, ResourceRef


def test_an_installation_reads_its_own_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "guard.cedar").write_text("// installed")
    monkeypatch.setattr(module, "_INSTALLED", tmp_path)
    assert shipped.__wrapped__("guard.cedar") == "// installed"
    with pytest.raises(FileNotFoundError):
        shipped.__wrapped__("roles.cedar")


def test_files_are_compiled_once() -> None:
    assert compiled(OWN_SIDE) is compiled(OWN_SIDE)


def test_a_shape_is_asked_once_whatever_principal_object_and_context(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Question] = []

    def counted(asking: Question, policies: cedarpy.PolicySet) -> Opinion:
        asked.append(asking)
        return ask(asking, policies)

    monkeypatch.setattr(module, "ask", counted)
    policies = ShippedPolicies(OWN_SIDE)
    for name in ("ana", "bob"):
        for number in range(3):
            ref = ResourceRef(owner=ACME, kind=Kind.MODEL, object_id=ObjectId(f"mdl_{number}"))
            caller = tenant_caller(ACME, Role.ANALYST, name=name)
            asking = question(caller, Action.MODEL_READ, ref, {"version": number}, granted=frozenset())
            assert policies.opinion(asking).policies == ("analyst-uses",)
    assert len(asked) == 1
    policies.opinion(question(tenant_caller(GLOBEX, Role.ANALYST), Action.MODEL_READ, MODEL, {}, granted=frozenset()))
    granted = frozenset({GLOBEX})
    policies.opinion(question(tenant_caller(ACME, Role.ANALYST), Action.MODEL_READ, MODEL, {}, granted=granted))
    assert len(asked) == 3
