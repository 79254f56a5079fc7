"""Every case of `policies/cases` is decided by the real engine, and no action, role or kind is without one."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.access import TENANTS, AccessRoom, refused
from fakes.core import ACME
from modelkeep_platform.access.shipped import SHIPPED
from modelkeep_platform.access.validation import reserved_labels
from modelkeep_platform.core.actions import GRANTABLE, PLATFORM_ACTIONS, Action
from modelkeep_platform.core.callers import Caller, OperatorCaller, PrincipalKind, Role, TenantCaller
from modelkeep_platform.core.decisions import Decision
from modelkeep_platform.core.errors import CallerError
from modelkeep_platform.core.ids import PLATFORM, ObjectId, PrincipalId, RequestId
from modelkeep_platform.core.refs import Kind, ResourceRef
from modelkeep_platform.storage.tables.access import active_policies, grants
from modelkeep_platform.storage.transactions import System

POLICIES = Path(__file__).resolve().parents[2] / "policies"
OWNERS = {**TENANTS, "platform": PLATFORM}
Case = dict[str, Any]


def load() -> Iterator[tuple[str, Case]]:
    for path in sorted((POLICIES / "cases").glob("*.json")):
        for case in json.loads(path.read_text(encoding="utf-8"))["cases"]:
            yield path.stem, case


CASES = list(load())


def caller_of(case: Case) -> Caller:
    if case["principal"] == "operator":
        return OperatorCaller(
            principal=PrincipalId("p"), name="op", token_id="t", request_id=RequestId(f"case-{case['id']}")
        )
    return TenantCaller(
        tenant=ACME,
        principal=PrincipalId("p"),
        principal_kind=PrincipalKind(case["principal"]),
        name="p",
        roles=frozenset(map(Role, case["roles"])),
        token_id="t",
        request_id=RequestId(f"case-{case['id']}"),
    )


def ref_of(case: Case) -> ResourceRef:
    resource = case["resource"]
    return ResourceRef(owner=OWNERS[resource["owner"]], kind=Kind(resource["kind"]), object_id=ObjectId("obj_1"))


def sides(decision: Decision, ref: ResourceRef) -> tuple[list[str], list[str]]:
    """Return the ids of the caller's side and, of another tenant's object, those of the owner's."""
    own = decision.side(decision.caller_tenant)
    owner = decision.side(ref.owner) if ref.owner != decision.caller_tenant else None
    return ([] if own is None else sorted(own.policies), [] if owner is None else sorted(owner.policies))


def expected_sides(expected: Case) -> tuple[list[str], list[str]]:
    return expected["policies"], expected.get("owner_policies", [])


@pytest.fixture
def prepared(room: AccessRoom, request: pytest.FixtureRequest) -> Iterator[AccessRoom]:
    case: Case = request.param[1]
    for slug, name in case.get("policies", {}).items():
        room.put_policy(TENANTS[slug], (POLICIES / name).read_text(encoding="utf-8"))
    for grant in case.get("grants", []):
        ends = room.clock.now_s() if grant.get("ended") else None
        room.put_grant(ref_of(case), OWNERS[grant["to"]], grant["actions"], expires_at=ends)
    yield room
    if "policies" in case or "grants" in case:
        for tenant in TENANTS.values():
            with room.database.tenant(tenant, by=System(reason="clean up")) as tx:
                tx.change(tx.update(active_policies).values(version=1))
                tx.change(tx.delete(grants))
                tx.bump_epoch()
        room.epoch.refresh()


@pytest.mark.parametrize(
    ("prepared", "case"),
    [((area, case), case) for area, case in CASES],
    ids=[f"{area}-{case['id']}" for area, case in CASES],
    indirect=["prepared"],
)
def test_a_case_is_decided_as_it_says(prepared: AccessRoom, case: Case) -> None:
    caller, ref, expected = caller_of(case), ref_of(case), case["expect"]
    action, context = Action(case["action"]), case.get("context")
    if expected["decision"] == "allow":
        decision = prepared.authorizer.require(caller, action, ref, context)
        assert (decision.allow, decision.action, decision.ref) == (True, action, ref)
        assert sides(decision, ref) == expected_sides(expected)
        assert (decision.grant_id is not None) == (ref.owner != caller.tenant)
        return
    before = len(prepared.recorder.events)
    with pytest.raises(CallerError) as raised:
        prepared.authorizer.require(caller, action, ref, context)
    assert raised.value.error_code == expected["code"]
    assert sorted(raised.value.details.get("policies", [])) == expected["policies"]  # type: ignore[call-overload]
    (event,) = prepared.recorder.events[before:]
    assert refused(event, caller)[0] == action
    assert event.decision is not None
    assert sides(event.decision, ref) == expected_sides(expected)
    assert not prepared.authorizer.allows(caller, action, ref, context)


def keys(case: Case) -> list[tuple[str, str]]:
    if case["principal"] == "operator":
        return [(case["action"], "operator")]
    return [(case["action"], role) for role in case["roles"]] or [(case["action"], "nobody")]


def test_every_action_has_a_case_for_every_role() -> None:
    # Within the tenant, for users: combinations, accounts and foreign objects come on top.
    found = {
        key
        for _, case in CASES
        if len(case["roles"]) < 2 and case["principal"] != "service_account" and case["resource"]["owner"] != "globex"
        for key in keys(case)
    }
    wanted = {(str(action), who) for action in Action for who in (*map(str, Role), "nobody", "operator")}
    assert wanted - found == set(), "write cases in policies/cases for what is missing"
    assert found - wanted == set()


def test_every_tenants_action_has_a_foreign_case_and_every_account_one() -> None:
    actions = {str(action) for action in Action}
    accounts = {case["action"] for _, case in CASES if case["principal"] == "service_account"}
    assert accounts == actions
    foreign = {
        case["action"]
        for _, case in CASES
        if case["resource"]["owner"] == "globex" and case["expect"].get("code") == "not_found"
    }
    assert foreign == actions - {str(action) for action in PLATFORM_ACTIONS - {Action.AUDIT_READ}}


def test_every_grantable_action_has_granted_ungranted_and_ended_cases() -> None:
    crossing = [case for area, case in CASES if area == "cross-tenant"]
    for action in map(str, GRANTABLE):
        ids = {case["id"] for case in crossing if case["action"] == action}
        slug = action.replace(":", "-")
        assert {f"granted-to-another-{slug}", f"ended-{slug}", *(f"{role}-granted-{slug}" for role in Role)} <= ids


def test_every_shipped_policy_and_every_kind_determines_a_case() -> None:
    named = {policy for _, case in CASES for ids in expected_sides(case["expect"]) for policy in ids}
    shipped = {label.strip('"') for label in reserved_labels()}
    # The tenant guard is asked behind the check in Python, so no case of the whole path shows it: see test_guard.
    assert shipped - named == {"guard-tenant"}
    assert {case["resource"]["kind"] for _, case in CASES} == {str(kind) for kind in Kind}


def test_ids_of_cases_are_unique_and_files_are_named_by_their_area() -> None:
    for path in (POLICIES / "cases").glob("*.json"):
        document = json.loads(path.read_text(encoding="utf-8"))
        assert set(document) == {"about", "cases"}
        ids = [case["id"] for case in document["cases"]]
        assert len(ids) == len(set(ids))


def test_policies_hold_no_python_and_every_shipped_file() -> None:
    assert not list(POLICIES.rglob("*.py"))
    assert {path.name for path in POLICIES.glob("*.cedar")} == {*SHIPPED, "tenant-default.cedar"}
